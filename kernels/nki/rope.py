"""Rotary position embedding: ``out = x * cos + rotate(x) * sin``, ``rotate`` turning each pair (a, b) into (-b, a).

Shapes: ``x`` [B, S, H, D] (``sequence_dim`` 1) or [B, H, S, D] (2); ``cos`` and ``sin`` [S, W] or [B, S, W] with W = D
(one value an element) or D/2 (one a pair), shared by all heads. Pairs are neighbours (``interleaved``) or half a head
apart. Any B, S and H; D even, at most 512. Floats of 2 or 4 bytes, of tables and ``x`` each its own; float32 inside.

Tiling: tokens lie on partitions, several consecutive ones on each where there are more than 128, so that a DMA moves
long runs; heads and channels lie on the free axis. A table tile is loaded once and serves every head of its tokens.
GpSimd multiplies by cos and Vector by sin. Vector reads its table from PSUM, which halves the cost of an instruction of
two inputs, and leaves its product there, which does the same for the addition. Scalar writes that table, with the pairs
swapped and the sign folded in. On two cores each takes half of the tokens, or half of the heads when tokens are few.
"""

import nki
import nki.isa as nisa
import nki.language as nl

GROUP = 512  # most elements per partition of one instruction: a PSUM bank of float32
TILE = 1536  # elements per partition that one transfer of x aims at
TABLE_LEAST, TABLE_MOST = 256, 1024  # elements per partition of a table tile; it is held in PSUM as float32, twice
GPSIMD_ADDS = 6  # one group in this many is also added on GpSimd: evens its load with Vector's


@nki.jit
def rope(x, cos, sin, interleaved, sequence_dim, out_dtype=None):
    """Return ``x`` rotated, in its shape and in ``out_dtype`` (None: the dtype of ``x``)."""
    # `is` does not parse under NKI 0.6.
    out = nl.ndarray(x.shape, x.dtype if out_dtype == None else out_dtype, nl.shared_hbm)  # noqa: E711
    source, target = _tokens_first(x, sequence_dim), _tokens_first(out, sequence_dim)
    batch = x.shape[0]
    pipeline = _Pipeline()
    first, last, first_head, last_head = _share(source.shape[1], source.shape[2])
    while first < last:
        # Equal counts on every partition; what is left over makes a last, smaller block.
        rows = (last - first + nl.tile_size.pmax - 1) // nl.tile_size.pmax
        partitions = (last - first) // rows
        stop = first + partitions * rows
        if cos.ndim == 2:
            block = _rows(cos, first, stop, rows), _rows(sin, first, stop, rows)
            _block(
                source,
                target,
                block,
                0,
                batch,
                first,
                stop,
                first_head,
                last_head,
                interleaved,
                sequence_dim == 1,
                pipeline,
            )
        else:
            for b in range(batch):
                block = _rows(cos[b], first, stop, rows), _rows(sin[b], first, stop, rows)
                _block(
                    source,
                    target,
                    block,
                    b,
                    b + 1,
                    first,
                    stop,
                    first_head,
                    last_head,
                    interleaved,
                    sequence_dim == 1,
                    pipeline,
                )
        first = stop
    pipeline.flush()
    return out


def _tokens_first(x, sequence_dim):
    """View ``x`` as [B, S, H, D]."""
    return x if sequence_dim == 1 else x.permute((0, 2, 1, 3))


def _share(tokens, heads):
    """Return this core's range of tokens and of heads."""
    cores, core = nl.num_programs(0), nl.program_id(0)
    low, high = core, core + 1
    by_heads = tokens < cores * nl.tile_size.pmax and heads > 1
    spans = (0, tokens, low * heads // cores, high * heads // cores)
    return spans if by_heads else (low * tokens // cores, high * tokens // cores, 0, heads)


def _rows(tensor, first, stop, rows):
    """View tokens ``first:stop`` of [S, ...] as [partitions, rows, ...]."""
    return tensor[first:stop].reshape_dim(0, ((stop - first) // rows, rows))


def _pieces(count, most):
    """Return how many ranges of at most ``most`` cover ``count``, of even sizes."""
    return (count + most - 1) // most


def _block(source, target, tables, low, high, first, stop, first_head, last_head, interleaved, by_token, pipeline):
    """Rotate tokens ``first:stop`` of batches ``low:high``; tables are [partitions, rows, W].

    ``by_token``: the heads of a token lie side by side in memory, rather than the tokens of a head. Tiles of x run along
    what does.
    """
    rows, size, heads = tables[0].shape[1], source.shape[3], last_head - first_head
    table = min(TABLE_MOST, max(TABLE_LEAST, TILE // heads)) if by_token else TABLE_MOST
    row_parts = _pieces(rows, max(1, table // size))
    for i in range(row_parts):
        here = slice(i * rows // row_parts, (i + 1) * rows // row_parts)
        cosine, sine = _load_tables(tables[0][:, here, :], tables[1][:, here, :], size, interleaved)
        count = here.stop - here.start
        steps = _pieces(count, max(1, TILE // (size * heads))) if by_token else 1
        parts = _pieces(heads, max(1, TILE // (size * _pieces(count, steps))))
        for b in range(low, high):
            read = _rows(source[b], first, stop, rows)[:, here, :, :]
            write = _rows(target[b], first, stop, rows)[:, here, :, :]
            for j in range(steps):
                row = slice(j * count // steps, (j + 1) * count // steps)
                for k in range(parts):
                    head = slice(first_head + k * heads // parts, first_head + (k + 1) * heads // parts)
                    c, s = cosine[:, row, :], sine[:, row, :]
                    _tile(write[:, row, head, :], read[:, row, head, :], c, s, interleaved, by_token, pipeline)


def _pair(view, interleaved):
    """Return views of the first and of the second elements of the pairs along the last axis."""
    half = view.shape[-1] // 2
    return (view[..., 0::2], view[..., 1::2]) if interleaved else (view[..., 0:half], view[..., half:])


def _load_tables(cos, sin, size, interleaved):
    """Return cos in SBUF and, in PSUM, the factor of each element in the *other* element of its pair."""
    partitions, rows, width = cos.shape
    cosine = nl.ndarray((partitions, rows, width), cos.dtype, nl.sbuf)
    sine = nl.ndarray((partitions, rows, width), sin.dtype, nl.sbuf)
    nisa.dma_copy(cosine, cos)
    nisa.dma_copy(sine, sin)
    swapped = nl.ndarray((partitions, rows, size), nl.float32, nl.psum)
    to_second, to_first = _pair(swapped, interleaved)
    of_first, of_second = _pair(sine, interleaved) if width == size else (sine, sine)
    nisa.activation(to_second, nl.copy, of_second)
    nisa.activation(to_first, nl.copy, of_first, scale=-1.0)
    full = cosine
    if width != size:
        full = nl.ndarray((partitions, rows, size), cos.dtype, nl.sbuf)
        first, second = _pair(full, interleaved)
        nisa.activation(first, nl.copy, cosine)
        nisa.activation(second, nl.copy, cosine)
    return full, swapped


def _tile(target, source, cosine, sine, interleaved, by_token, pipeline):
    """Load, rotate and store [partitions, rows, heads, D]; tiles on chip are laid out as in memory."""
    rows, heads, size = source.shape[1:]
    order = (0, 1, 2, 3) if by_token else (0, 2, 1, 3)
    source, target = source.permute(order), target.permute(order)
    x_tile = nl.ndarray(source.shape, source.dtype, nl.sbuf)
    y_tile = nl.ndarray(target.shape, target.dtype, nl.sbuf)
    nisa.dma_copy(x_tile, source)
    x, y = x_tile.permute(order), y_tile.permute(order)
    most = max(1, GROUP // size)
    row_parts = rows if heads > most else _pieces(rows, most // heads)
    head_parts = _pieces(heads, most)
    for i in range(row_parts):
        row = slice(i * rows // row_parts, (i + 1) * rows // row_parts)
        for j in range(head_parts):
            head = slice(j * heads // head_parts, (j + 1) * heads // head_parts)
            c, s = _spread(cosine[:, row, :], head), _spread(sine[:, row, :], head)
            pipeline.rotate(y[:, row, head, :], x[:, row, head, :], c, s, interleaved)
    pipeline.store(target, y_tile)


def _spread(table, heads):
    """View [partitions, rows, D] as [partitions, rows, heads, D]."""
    return table.expand_dim(2).broadcast(2, heads.stop - heads.start)


class _Pipeline(nl.NKIObject):
    """Issues the products of a group before the sums of the one before it, so that no engine waits for the other."""

    def __init__(self):
        self.sums = []
        self.stores = []
        self.groups = 0

    def rotate(self, y, x, cosine, sine, interleaved):
        """Compute one group, all but its sums."""
        self.groups = self.groups + 1
        on_gpsimd = self.groups % GPSIMD_ADDS == 0
        kept = nl.ndarray(x.shape, nl.float32, nl.sbuf)
        turned = nl.ndarray(x.shape, nl.float32, nl.sbuf if on_gpsimd else nl.psum)
        nisa.tensor_tensor(turned, x, sine, nl.multiply, engine=nisa.engine.vector)
        nisa.tensor_tensor(kept, x, cosine, nl.multiply, engine=nisa.engine.gpsimd)
        self.flush()
        self.sums.append((y, kept, turned, interleaved, nisa.engine.gpsimd if on_gpsimd else nisa.engine.vector))

    def store(self, target, y):
        """Store a tile once its last sum is there."""
        self.stores.append((target, y))

    def flush(self):
        """Compute the sums that wait, and store the tiles they complete."""
        for y, kept, turned, interleaved, engine in self.sums:
            first, second = _pair(y, interleaved)
            kept_first, kept_second = _pair(kept, interleaved)
            from_first, from_second = _pair(turned, interleaved)
            nisa.tensor_tensor(first, kept_first, from_second, nl.add, engine=engine)
            nisa.tensor_tensor(second, kept_second, from_first, nl.add, engine=engine)
        for target, done in self.stores:
            nisa.dma_copy(target, done)
        self.sums = []
        self.stores = []
