"""Rotary position embedding: ``out = x * cos + rotate(x) * sin``, where ``rotate`` maps each pair (a, b) to (-b, a).

Shapes: ``x`` [B, S, H, D] (``sequence_dim`` 1) or [B, H, S, D] (2); ``cos`` and ``sin`` [S, W] or [B, S, W] with W = D
(one value an element) or D/2 (one a pair), shared by all heads. Pairs are neighbours (``interleaved``) or half a head
apart. Any B, S and H; D even, at most 512. Floats of 2 or 4 bytes, of ``x``, tables and result each its own; float32
inside.

Tiling: tokens lie on partitions, several consecutive ones on each where there are more than 128, because a DMA is
efficient for long runs; heads and channels lie on the free axis. A table tile is loaded once and serves every head of
its tokens. GpSimd multiplies by cos and Vector by sin. Vector reads its table from PSUM, which halves the cost of an
instruction of two inputs, and leaves its product there, which does the same for the addition. Scalar writes that table,
with the pairs swapped and the sign folded in. On two cores each takes half of the tokens, or half of the heads when
tokens are few.
"""

import nki
import nki.isa as nisa
import nki.language as nl

GROUP = 512  # most elements per partition of one instruction: a PSUM bank of float32
TILE = 1536  # elements per partition that one transfer of x aims at
TABLE_LEAST = 256  # elements per partition of a table tile that many heads share
TABLE_MOST = 1024  # the same for few heads; PSUM holds the tile as float32, twice
GPSIMD_ADDS = 6  # one group in this many is also added on GpSimd, which balances its load with Vector's


@nki.jit
def rope(
    x: nl.ndarray, cos: nl.ndarray, sin: nl.ndarray, interleaved: bool, sequence_dim: int, out_dtype=None
) -> nl.ndarray:
    """Return ``x`` rotated, in its shape and in ``out_dtype`` (None: the dtype of ``x``)."""
    # `is` does not parse under NKI 0.6.
    out = nl.ndarray(x.shape, x.dtype if out_dtype == None else out_dtype, nl.shared_hbm)  # noqa: E711
    work = _Rope(_tokens_first(x, sequence_dim), _tokens_first(out, sequence_dim), interleaved, sequence_dim == 1)
    batch = x.shape[0]
    start, end = work.first_token, work.last_token
    while start < end:
        # Equal counts on every partition, as one access pattern needs them; the remainder makes a last, smaller block.
        rows = _parts(end - start, nl.tile_size.pmax)
        stop = start + (end - start) // rows * rows
        if cos.ndim == 2:
            work.block(_rows(cos, start, stop, rows), _rows(sin, start, stop, rows), 0, batch, start, stop)
        else:
            for b in range(batch):
                work.block(_rows(cos[b], start, stop, rows), _rows(sin[b], start, stop, rows), b, b + 1, start, stop)
        start = stop
    work.finish()
    return out


def _tokens_first(x: nl.ndarray, sequence_dim: int) -> nl.ndarray:
    """View ``x`` as [B, S, H, D]."""
    return x if sequence_dim == 1 else x.permute((0, 2, 1, 3))


def _rows(tensor: nl.ndarray, start: int, stop: int, rows: int) -> nl.ndarray:
    """View tokens ``start:stop`` of [S, ...] as [partitions, rows, ...]."""
    return tensor[start:stop].reshape_dim(0, ((stop - start) // rows, rows))


def _parts(count: int, most: int) -> int:
    """Return how many ranges of at most ``most`` cover ``count``."""
    return (count + most - 1) // most


def _pair(view: nl.ndarray, interleaved: bool) -> tuple:
    """Return views of the first and of the second elements of the pairs along the last axis."""
    size = view.shape[view.ndim - 1]
    if interleaved:
        first, second = view[..., 0:size:2], view[..., 1:size:2]
    else:
        first, second = view[..., 0 : size // 2], view[..., size // 2 : size]
    return first, second


class _Rope(nl.NKIObject):
    """One core's share of a call, and the sums that it has yet to issue.

    A group's products are issued before the sums of the previous group: engines run in order, and a sum issued right after its
    products would hold up its engine until the other one has finished.
    """

    def __init__(self, source: nl.ndarray, target: nl.ndarray, interleaved: bool, by_token: bool):
        """Take [B, S, H, D] views; ``by_token``: the heads of a token are adjacent in memory, not the tokens of a head."""
        self.source = source
        self.target = target
        self.interleaved = interleaved
        self.by_token = by_token
        tokens, heads = source.shape[1], source.shape[2]
        cores, core = nl.num_programs(0), nl.program_id(0)
        by_heads = tokens < cores * nl.tile_size.pmax and heads > 1
        self.first_token = 0 if by_heads else core * tokens // cores
        self.last_token = tokens if by_heads else (core + 1) * tokens // cores
        self.first_head = core * heads // cores if by_heads else 0
        self.heads = (core + 1) * heads // cores - self.first_head if by_heads else heads
        self.sums = []
        self.groups = 0

    def block(self, cos: nl.ndarray, sin: nl.ndarray, low: int, high: int, start: int, stop: int) -> None:
        """Rotate tokens ``start:stop`` of batches ``low:high``; tables are [partitions, rows, W]."""
        rows, size = cos.shape[1], self.source.shape[3]
        wanted = max(TABLE_LEAST, TILE // self.heads) if self.by_token else TABLE_MOST
        parts = _parts(rows, max(1, min(TABLE_MOST, wanted) // size))
        for i in range(parts):
            row, end = i * rows // parts, (i + 1) * rows // parts
            cosine, sine = self.tables(cos[:, row:end, :], sin[:, row:end, :])
            for b in range(low, high):
                source = _rows(self.source[b], start, stop, rows)[:, row:end, :, :]
                target = _rows(self.target[b], start, stop, rows)[:, row:end, :, :]
                self.tiles(target, source, cosine, sine)

    def tables(self, cos: nl.ndarray, sin: nl.ndarray) -> tuple:
        """Return cos in SBUF and, in PSUM, the factor of each element in the *other* element of its pair."""
        partitions, rows, width = cos.shape
        size = self.source.shape[3]
        cosine = nl.ndarray((partitions, rows, width), cos.dtype, nl.sbuf)
        sine = nl.ndarray((partitions, rows, width), sin.dtype, nl.sbuf)
        nisa.dma_copy(cosine, cos)
        nisa.dma_copy(sine, sin)
        swapped = nl.ndarray((partitions, rows, size), nl.float32, nl.psum)
        to_second, to_first = _pair(swapped, self.interleaved)
        full, of_first, of_second = cosine, sine, sine
        if width == size:
            of_first, of_second = _pair(sine, self.interleaved)
        else:
            full = nl.ndarray((partitions, rows, size), cos.dtype, nl.sbuf)
            first, second = _pair(full, self.interleaved)
            nisa.activation(first, nl.copy, cosine)
            nisa.activation(second, nl.copy, cosine)
        nisa.activation(to_second, nl.copy, of_second)
        nisa.activation(to_first, nl.copy, of_first, scale=-1.0)
        return full, swapped

    def tiles(self, target: nl.ndarray, source: nl.ndarray, cosine: nl.ndarray, sine: nl.ndarray) -> None:
        """Rotate [partitions, rows, heads, D] tile by tile; tiles run along what is contiguous in memory."""
        rows, size, heads = source.shape[1], source.shape[3], self.heads
        row_parts = _parts(rows, max(1, TILE // (size * heads))) if self.by_token else 1
        head_parts = _parts(heads, max(1, TILE // (size * _parts(rows, row_parts))))
        for i in range(row_parts):
            row, row_end = i * rows // row_parts, (i + 1) * rows // row_parts
            for j in range(head_parts):
                head = self.first_head + j * heads // head_parts
                head_end = self.first_head + (j + 1) * heads // head_parts
                x, y = source[:, row:row_end, head:head_end, :], target[:, row:row_end, head:head_end, :]
                self.tile(y, x, cosine[:, row:row_end, :], sine[:, row:row_end, :])

    def tile(self, target: nl.ndarray, source: nl.ndarray, cosine: nl.ndarray, sine: nl.ndarray) -> None:
        """Load and rotate one tile; the sums of its last group store it. Tiles on chip are laid out as in memory."""
        rows, heads, size = source.shape[1], source.shape[2], source.shape[3]
        order = (0, 1, 2, 3) if self.by_token else (0, 2, 1, 3)
        read, write = source.permute(order), target.permute(order)
        x_tile = nl.ndarray(read.shape, read.dtype, nl.sbuf)
        y_tile = nl.ndarray(write.shape, write.dtype, nl.sbuf)
        nisa.dma_copy(x_tile, read)
        x, y = x_tile.permute(order), y_tile.permute(order)
        most = max(1, GROUP // size)
        row_parts = rows if heads > most else _parts(rows, most // heads)
        head_parts = _parts(heads, most)
        for i in range(row_parts):
            row, row_end = i * rows // row_parts, (i + 1) * rows // row_parts
            for j in range(head_parts):
                head, head_end = j * heads // head_parts, (j + 1) * heads // head_parts
                c = cosine[:, row:row_end, :].expand_dim(2).broadcast(2, head_end - head)
                s = sine[:, row:row_end, :].expand_dim(2).broadcast(2, head_end - head)
                self.products(y[:, row:row_end, head:head_end, :], x[:, row:row_end, head:head_end, :], c, s)
        # The last group's sums, still to come, complete the tile.
        self.sums.append((write, y_tile))

    def products(self, y: nl.ndarray, x: nl.ndarray, cosine: nl.ndarray, sine: nl.ndarray) -> None:
        """Issue the products of one group, then the sums of the previous one."""
        self.groups = self.groups + 1
        on_gpsimd = self.groups % GPSIMD_ADDS == 0
        direct = nl.ndarray(x.shape, nl.float32, nl.sbuf)
        crossed = nl.ndarray(x.shape, nl.float32, nl.sbuf if on_gpsimd else nl.psum)
        nisa.tensor_tensor(crossed, x, sine, nl.multiply, engine=nisa.engine.vector)
        nisa.tensor_tensor(direct, x, cosine, nl.multiply, engine=nisa.engine.gpsimd)
        self.finish()
        self.sums.append((y, direct, crossed, nisa.engine.gpsimd if on_gpsimd else nisa.engine.vector))

    def finish(self) -> None:
        """Issue the pending sums, and the stores of tiles that they complete."""
        for i in range(len(self.sums)):
            if len(self.sums[i]) == 2:
                target, done = self.sums[i]
                nisa.dma_copy(target, done)
            else:
                y, direct, crossed, engine = self.sums[i]
                first, second = _pair(y, self.interleaved)
                direct_first, direct_second = _pair(direct, self.interleaved)
                crossed_first, crossed_second = _pair(crossed, self.interleaved)
                nisa.tensor_tensor(first, direct_first, crossed_second, nl.add, engine=engine)
                nisa.tensor_tensor(second, direct_second, crossed_first, nl.add, engine=engine)
        self.sums = []
