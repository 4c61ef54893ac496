"""Query, key and value projections of one activation: ``x @ weight.T + bias`` three times or four, reading ``x`` once.

Shapes: ``x`` [T, H]; weights [N, H] as ``torch.nn.Linear`` stores them, or [H, N] with ``transposed_weights``; each has
its own N and its own optional bias [N]. Of each, I rows are used: all, or those that ``start`` and ``rows`` name, so that
a packed weight is passed whole and as often as needed. Outputs: [T, I] each. Any T, H and I. ``x``, weights and outputs
share one type, float32 or a float of two bytes; a bias may have another. Sums are float32.

Tiling: the contraction needs H on partitions. A block of tokens is transposed once into [128, H / 128, tokens] and
stays in SBUF while the weights stream past it in panels of columns [128, H / 128, columns], one ahead of the one in
use. Products over all of H add up in PSUM, a bank for 128 tokens and at most 512 columns. Banks are filled together in
groups, so that the first slices of H to arrive keep the Tensor engine busy while the next ones load. Two-byte types are
transposed by DMA, which has time to spare; others, and all on NeuronCore-v2, by the Tensor engine. On two cores each
computes half of the columns of every projection, so that each weight is read once.
"""

import nki
import nki.isa as nisa
import nki.language as nl

COLUMNS = 512  # most columns of a PSUM bank
GROUP = 4  # PSUM banks filled together: half of them
PANEL = 512  # most columns of a panel of weights
PANEL_TRANSPOSED = 1024  # the same for [H, I], where a run in memory is as long as a panel is wide
TOKENS = 1280  # most tokens in a block
BLOCK_BYTES = 64 * 1024  # SBUF bytes per partition for a block of tokens
PANEL_BYTES = 48 * 1024  # and for a panel of weights, of which two are live
TRANSFER = 6144  # elements per partition of one transfer of weights
FIRST_TRANSFER = 3072  # the same while the Tensor engine waits for the first
SLICES = 16  # most slices of 128 of H in one transfer: runs of 4 KiB, beyond which DMA gets no faster


@nki.jit
def qkv(
    x: nl.ndarray,
    weight_q: nl.ndarray,
    weight_k: nl.ndarray,
    weight_v: nl.ndarray,
    bias_q=None,
    bias_k=None,
    bias_v=None,
    transposed_weights: bool = False,
    weight_rest=None,
    bias_rest=None,
    start_q: int = 0,
    rows_q: int = 0,
    start_k: int = 0,
    rows_k: int = 0,
    start_v: int = 0,
    rows_v: int = 0,
    start_rest: int = 0,
    rows_rest: int = 0,
) -> tuple:
    """Return query, key and value projections of ``x``, and that by ``weight_rest`` if there is one; 0 rows are all."""
    work = _Projections(x, transposed_weights)
    q = work.add(weight_q, bias_q, start_q, rows_q)
    k = work.add(weight_k, bias_k, start_k, rows_k)
    v = work.add(weight_v, bias_v, start_v, rows_v)
    result = (q, k, v)
    if weight_rest != None:  # noqa: E711  (`is` does not parse under NKI 0.6)
        rest = work.add(weight_rest, bias_rest, start_rest, rows_rest)
        result = (q, k, v, rest)
    work.run()
    return result


@nki.jit
def pair(
    x: nl.ndarray,
    weight_a: nl.ndarray,
    weight_b: nl.ndarray,
    bias_a=None,
    bias_b=None,
    start_a: int = 0,
    rows_a: int = 0,
    start_b: int = 0,
    rows_b: int = 0,
) -> tuple:
    """Return two projections of ``x`` by rows of weights [N, H], as key and value of a cross-attention; 0 rows are all."""
    work = _Projections(x, False)
    a = work.add(weight_a, bias_a, start_a, rows_a)
    b = work.add(weight_b, bias_b, start_b, rows_b)
    work.run()
    return (a, b)


@nki.jit
def linear(x: nl.ndarray, weight: nl.ndarray, bias=None, start: int = 0, rows: int = 0) -> nl.ndarray:
    """Return the projection of ``x`` by rows of one weight [N, H]; 0 rows are all."""
    work = _Projections(x, False)
    out = work.add(weight, bias, start, rows)
    work.run()
    return out


def _parts(count: int, most: int) -> int:
    """Return how many ranges of at most ``most`` cover ``count``."""
    return (count + most - 1) // most


class _Projections(nl.NKIObject):
    """One core's share of a call: panels (weight, bias, output, first column, last column)."""

    def __init__(self, x: nl.ndarray, transposed: bool):
        self.x = x
        self.transposed = transposed
        self.hidden = x.shape[1]
        self.slices = _parts(x.shape[1], nl.tile_size.pmax)
        slice_bytes = self.slices * (4 if x.dtype == nl.float32 else 2)
        self.by_dma = x.dtype != nl.float32 and nisa.get_nc_version() != nisa.nc_version.gen2
        self.widest = max(1, min(PANEL_TRANSPOSED if transposed else PANEL, PANEL_BYTES // slice_bytes))
        self.most_tokens = max(1, min(TOKENS, BLOCK_BYTES // slice_bytes))
        self.panels = []

    def add(self, weight: nl.ndarray, bias, start: int, rows: int) -> nl.ndarray:
        """Add the panels of one projection; return where it goes."""
        cores, core = nl.num_programs(0), nl.program_id(0)
        if rows > 0:
            weight = weight[:, start : start + rows] if self.transposed else weight[start : start + rows]
            if bias != None:  # noqa: E711
                bias = bias[start : start + rows]
        width = weight.shape[1] if self.transposed else weight.shape[0]
        out = nl.ndarray((self.x.shape[0], width), self.x.dtype, nl.shared_hbm)
        low, high = core * width // cores, (core + 1) * width // cores
        count = _parts(high - low, self.widest)
        for i in range(count):
            first, last = low + i * (high - low) // count, low + (i + 1) * (high - low) // count
            self.panels.append((weight, bias, out, first, last))
        return out

    def run(self) -> None:
        """Project all tokens."""
        tokens, pmax = self.x.shape[0], nl.tile_size.pmax
        # Blocks of whole tiles of 128 tokens, unless H is so large that not even one tile fits.
        unit = pmax if self.most_tokens >= pmax else 1
        units = _parts(tokens, unit)
        blocks = _parts(units, self.most_tokens // unit)
        for i in range(blocks):
            self.block(i * units // blocks * unit, min(tokens, (i + 1) * units // blocks * unit))

    def block(self, start: int, end: int) -> None:
        """Project tokens ``start:end``."""
        pmax, tokens = nl.tile_size.pmax, end - start
        tiles = _parts(tokens, pmax)
        x_t = nl.ndarray((pmax, self.slices, tokens), self.x.dtype, nl.sbuf)
        following = self.space(0)
        for p in range(len(self.panels)):
            weights, columns = following, following.shape[2]
            groups = _parts(tiles, max(1, GROUP // _parts(columns, COLUMNS)))
            bias = self.bias(p)
            for g in range(groups):
                low, high = g * tiles // groups * pmax, min(tokens, (g + 1) * tiles // groups * pmax)
                x_group = x_t[:, :, low:high]
                if p == 0:
                    # Weights and activation together, slice by slice: products start when the first slices are there.
                    step = min(SLICES, max(1, FIRST_TRANSFER // columns))
                    for s in range(0, self.slices, step):
                        if g == 0:
                            self.load_weights(weights, 0, s, min(s + step, self.slices))
                        self.load_transposed(x_group, self.x[start + low : start + high], s, min(s + step, self.slices))
                if g == groups - 1 and p + 1 < len(self.panels):
                    # Before this group's products and stores: behind them in the queue, the load would start too late.
                    following = self.space(p + 1)
                    step = min(SLICES, max(1, TRANSFER // following.shape[2]))
                    for s in range(0, self.slices, step):
                        self.load_weights(following, p + 1, s, min(s + step, self.slices))
                out = self.panels[p][2][start + low : start + high, self.panels[p][3] : self.panels[p][4]]
                _multiply(out, x_group, weights, bias, self.hidden)

    def space(self, p: int):
        """Return SBUF space for the weights of panel ``p``, if there is one."""
        space = None
        if p < len(self.panels):
            columns = self.panels[p][4] - self.panels[p][3]
            space = nl.ndarray((nl.tile_size.pmax, self.slices, columns), self.x.dtype, nl.sbuf)
        return space

    def bias(self, p: int):
        """Return the bias of panel ``p`` on every partition, spread by a product with ones; None without one."""
        bias, low, high = self.panels[p][1], self.panels[p][3], self.panels[p][4]
        spread = None
        if bias != None:  # noqa: E711
            pmax, columns = nl.tile_size.pmax, high - low
            row, ones = nl.ndarray((1, columns), bias.dtype, nl.sbuf), nl.ndarray((1, pmax), bias.dtype, nl.sbuf)
            nisa.dma_copy(row, bias[low:high])
            nisa.memset(ones, 1.0)
            spread = nl.ndarray((pmax, columns), nl.float32, nl.sbuf)
            for first in range(0, columns, COLUMNS):
                last = min(first + COLUMNS, columns)
                product = nl.ndarray((pmax, last - first), nl.float32, nl.psum)
                nisa.nc_matmul(product, ones, row[:, first:last], accumulate=False)
                nisa.activation(spread[:, first:last], nl.copy, product)
        return spread

    def load_weights(self, dst: nl.ndarray, p: int, first: int, last: int) -> None:
        """Load slices ``first:last`` of H of panel ``p`` into ``dst`` [128, slices, columns]."""
        weight, low, high = self.panels[p][0], self.panels[p][3], self.panels[p][4]
        pmax = nl.tile_size.pmax
        if self.transposed:
            full = min(last, self.hidden // pmax)
            if full > first:
                part = weight[first * pmax : full * pmax, low:high].reshape_dim(0, (full - first, pmax))
                nisa.dma_copy(dst[:, first:full, :], part.permute((1, 0, 2)))
            if last > full:
                rest = self.hidden - full * pmax
                nisa.dma_copy(dst[0:rest, full, :], weight[full * pmax : self.hidden, low:high])
        else:
            self.load_transposed(dst, weight[low:high], first, last)

    def load_transposed(self, dst: nl.ndarray, src: nl.ndarray, first: int, last: int) -> None:
        """Load slices ``first:last`` of all rows of ``src`` [n, H] transposed into ``dst`` [128, slices, n]."""
        if self.by_dma:
            _transpose_by_dma(dst, src, first, last)
        else:
            for row in range(0, src.shape[0], COLUMNS):
                end = min(row + COLUMNS, src.shape[0])
                _transpose_by_tensor_engine(dst[:, :, row:end], src[row:end], first, last)


def _transpose_by_dma(dst: nl.ndarray, src: nl.ndarray, first: int, last: int) -> None:
    pmax, hidden = nl.tile_size.pmax, src.shape[1]
    full = min(last, hidden // pmax)
    if full > first:
        part = src[:, first * pmax : full * pmax].reshape_dim(1, (full - first, pmax))
        nisa.dma_transpose(dst[:, first:full, :], part)
    if last > full:
        nisa.dma_transpose(dst[0 : hidden - full * pmax, full, :], src[:, full * pmax : hidden])


def _transpose_by_tensor_engine(dst: nl.ndarray, src: nl.ndarray, first: int, last: int) -> None:
    pmax, rows, hidden = nl.tile_size.pmax, src.shape[0], src.shape[1]
    low, high = first * pmax, min(last * pmax, hidden)
    staged = []
    for row in range(0, rows, pmax):
        stage = nl.ndarray((min(pmax, rows - row), high - low), src.dtype, nl.sbuf)
        nisa.dma_copy(stage, src[row : row + stage.shape[0], low:high])
        staged.append(stage)
    for s in range(first, last):
        depth, at = min(pmax, hidden - s * pmax), s * pmax - low
        stage_t = nl.ndarray((depth, rows), src.dtype, nl.psum)
        for i in range(len(staged)):
            stage = staged[i]
            nisa.nc_transpose(stage_t[:, i * pmax : i * pmax + stage.shape[0]], stage[:, at : at + depth])
        # Alternate between the two engines that reach PSUM, so that neither is the bottleneck.
        if s % 2 == 0:
            nisa.tensor_copy(dst[0:depth, s, :], stage_t, engine=nisa.engine.vector)
        else:
            nisa.activation(dst[0:depth, s, :], nl.copy, stage_t)


def _multiply(out: nl.ndarray, x_t: nl.ndarray, weights: nl.ndarray, bias, hidden: int) -> None:
    """Compute one group: ``out`` [tokens, columns] in HBM."""
    pmax, tokens, columns = nl.tile_size.pmax, out.shape[0], out.shape[1]
    tiles, parts = _parts(tokens, pmax), _parts(columns, COLUMNS)
    banks = []
    for i in range(tiles * parts):
        rows, part = min(pmax, tokens - i // parts * pmax), i % parts
        wide = (part + 1) * columns // parts - part * columns // parts
        banks.append(nl.ndarray((rows, wide), nl.float32, nl.psum))
    for s in range(_parts(hidden, pmax)):
        depth = min(pmax, hidden - s * pmax)
        for i in range(tiles * parts):
            t, c = i // parts * pmax, i % parts * columns // parts
            left = x_t[0:depth, s, t : t + banks[i].shape[0]]
            right = weights[0:depth, s, c : c + banks[i].shape[1]]
            nisa.nc_matmul(banks[i], left, right, accumulate=s > 0)
    for tile in range(tiles):
        first, last = tile * pmax, min(tokens, (tile + 1) * pmax)
        done = nl.ndarray((last - first, columns), out.dtype, nl.sbuf)
        for part in range(parts):
            bank, low, high = banks[tile * parts + part], part * columns // parts, (part + 1) * columns // parts
            if bias == None:  # noqa: E711
                nisa.activation(done[:, low:high], nl.copy, bank)
            else:
                nisa.tensor_tensor(done[:, low:high], bank, bias[0 : last - first, low:high], nl.add)
        nisa.dma_copy(out[first:last, :], done)
