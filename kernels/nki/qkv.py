"""Query, key and value projections of one activation: ``x @ weight.T + bias`` three times, reading ``x`` once.

Shapes: ``x`` [T, H]; weights [I, H] as ``torch.nn.Linear`` stores them, or [H, I] with ``transposed_weights``; each of
the three has its own I and its own optional bias [I]. Outputs: three [T, I]. Any T, H and I. ``x``, weights and outputs
share one type, float32 or a float of two bytes; sums are float32.

Tiling: the contraction needs H on partitions. A block of tokens is turned once into [128, H / 128, tokens] and stays in
SBUF while the weights stream past it in panels of columns [128, H / 128, columns]. For each panel, products over all
of H add up in PSUM, a bank for 128 tokens and at most 512 columns. Banks are filled side by side in groups, so that the
first slices of H that arrive give the Tensor engine work for as long as the next take to load. Two-byte types are
turned by DMA, which is otherwise idle; others, and NeuronCore-v2, by the Tensor engine. On two cores each computes half
of the columns of every projection, so that each weight is read once.
"""

import nki
import nki.isa as nisa
import nki.language as nl

COLUMNS = 512  # most columns of a PSUM bank
GROUP = 4  # PSUM banks filled side by side: half of them
PANEL = 512  # most columns of a panel of weights
PANEL_TRANSPOSED = 1024  # the same for [H, I], where they are what makes runs in memory long
TOKENS = 1280  # most tokens in a block
BLOCK_BYTES = 64 * 1024  # SBUF bytes per partition for a block of tokens
PANEL_BYTES = 48 * 1024  # and for a panel of weights, of which two are live
TRANSFER = 6144  # elements per partition of one transfer of weights
FIRST_TRANSFER = 3072  # the same while the Tensor engine waits for the first


@nki.jit
def qkv(x, weight_q, weight_k, weight_v, bias_q=None, bias_k=None, bias_v=None, transposed_weights=False):
    """Return query, key and value projections of ``x``."""
    tokens, hidden = x.shape
    axis = 1 if transposed_weights else 0
    q = nl.ndarray((tokens, weight_q.shape[axis]), x.dtype, nl.shared_hbm)
    k = nl.ndarray((tokens, weight_k.shape[axis]), x.dtype, nl.shared_hbm)
    v = nl.ndarray((tokens, weight_v.shape[axis]), x.dtype, nl.shared_hbm)
    size = 4 if x.dtype == nl.float32 else 2
    slices = _parts(hidden, nl.tile_size.pmax)
    panel = PANEL_TRANSPOSED if transposed_weights else PANEL
    widest = max(1, min(panel, PANEL_BYTES // (slices * size)))
    panels = []
    for weight, bias, out in ((weight_q, bias_q, q), (weight_k, bias_k, k), (weight_v, bias_v, v)):
        _add_panels(panels, weight, bias, out, widest)
    turn = _Turn(x.dtype, size)
    tiles = _parts(tokens, nl.tile_size.pmax)
    most = max(1, min(TOKENS, BLOCK_BYTES // (slices * size)))
    if most < nl.tile_size.pmax:
        blocks = _parts(tokens, most)
        for i in range(blocks):
            _block(x, i * tokens // blocks, (i + 1) * tokens // blocks, panels, turn, transposed_weights)
    else:
        blocks = _parts(tiles, most // nl.tile_size.pmax)
        for i in range(blocks):
            first = i * tiles // blocks * nl.tile_size.pmax
            last = min(tokens, (i + 1) * tiles // blocks * nl.tile_size.pmax)
            _block(x, first, last, panels, turn, transposed_weights)
    return q, k, v


def _parts(count, most):
    """Return how many ranges of at most ``most`` cover ``count``."""
    return (count + most - 1) // most


def _add_panels(panels, weight, bias, out, widest):
    """Append this core's panels of one projection: (weight, bias, out, first column, last column)."""
    cores, core = nl.num_programs(0), nl.program_id(0)
    low, high = core * out.shape[1] // cores, (core + 1) * out.shape[1] // cores
    count = _parts(high - low, widest)
    for i in range(count):
        panels.append((weight, bias, out, low + i * (high - low) // count, low + (i + 1) * (high - low) // count))


class _Turn(nl.NKIObject):
    """Loads rows of [n, H] as [128, H / 128, n]."""

    def __init__(self, dtype, size):
        self.dtype = dtype
        self.by_dma = size == 2 and nisa.get_nc_version() != nisa.nc_version.gen2

    def load(self, dst, src, first, last):
        """Load slices ``first:last`` of all rows of ``src`` [n, H] into ``dst`` [128, slices, n]."""
        if self.by_dma:
            _turn_by_dma(dst, src, first, last)
        else:
            for row in range(0, src.shape[0], COLUMNS):
                end = min(row + COLUMNS, src.shape[0])
                self._by_tensor_engine(dst[:, :, row:end], src[row:end], first, last)

    def _by_tensor_engine(self, dst, src, first, last):
        pmax, rows, hidden = nl.tile_size.pmax, src.shape[0], src.shape[1]
        low, high = first * pmax, min(last * pmax, hidden)
        staged = []
        for row in range(0, rows, pmax):
            stage = nl.ndarray((min(pmax, rows - row), high - low), self.dtype, nl.sbuf)
            nisa.dma_copy(stage, src[row : row + stage.shape[0], low:high])
            staged.append(stage)
        for s in range(first, last):
            depth = min(pmax, hidden - s * pmax)
            turned = nl.ndarray((depth, rows), self.dtype, nl.psum)
            for i in range(len(staged)):
                stage = staged[i]
                at = s * pmax - low
                nisa.nc_transpose(turned[:, i * pmax : i * pmax + stage.shape[0]], stage[:, at : at + depth])
            if s % 2 == 0:
                nisa.tensor_copy(dst[0:depth, s, :], turned, engine=nisa.engine.vector)
            else:
                nisa.activation(dst[0:depth, s, :], nl.copy, turned)


def _turn_by_dma(dst, src, first, last):
    pmax, hidden = nl.tile_size.pmax, src.shape[1]
    whole = min(last, hidden // pmax)
    if whole > first:
        part = src[:, first * pmax : whole * pmax].reshape_dim(1, (whole - first, pmax))
        nisa.dma_transpose(dst[:, first:whole, :], part)
    if last > whole:
        rest = hidden - whole * pmax
        nisa.dma_transpose(dst[0:rest, whole, :], src[:, whole * pmax : hidden])


def _load_panel(dst, panel, first, last, turn, transposed):
    """Load slices ``first:last`` of H of a panel's weights."""
    weight, _, _, low, high = panel
    if transposed:
        pmax, hidden = nl.tile_size.pmax, weight.shape[0]
        whole = min(last, hidden // pmax)
        if whole > first:
            part = weight[first * pmax : whole * pmax, low:high].reshape_dim(0, (whole - first, pmax))
            nisa.dma_copy(dst[:, first:whole, :], part.permute((1, 0, 2)))
        if last > whole:
            rest = hidden - whole * pmax
            nisa.dma_copy(dst[0:rest, whole, :], weight[whole * pmax : hidden, low:high])
    else:
        turn.load(dst, weight[low:high], first, last)


def _load_bias(panel):
    """Return a panel's bias on every partition, spread by a product with ones; None without one."""
    _, bias, _, low, high = panel
    spread = None
    if bias != None:  # noqa: E711
        row = nl.ndarray((1, high - low), bias.dtype, nl.sbuf)
        nisa.dma_copy(row, bias[low:high])
        ones = nl.ndarray((1, nl.tile_size.pmax), bias.dtype, nl.sbuf)
        nisa.memset(ones, 1.0)
        spread = nl.ndarray((nl.tile_size.pmax, high - low), nl.float32, nl.sbuf)
        for first in range(0, high - low, COLUMNS):
            last = min(first + COLUMNS, high - low)
            product = nl.ndarray((nl.tile_size.pmax, last - first), nl.float32, nl.psum)
            nisa.nc_matmul(product, ones, row[:, first:last], accumulate=False)
            nisa.activation(spread[:, first:last], nl.copy, product)
    return spread


def _allocate(panel, hidden, dtype):
    """Return room for a panel's weights."""
    return nl.ndarray((nl.tile_size.pmax, _parts(hidden, nl.tile_size.pmax), panel[4] - panel[3]), dtype, nl.sbuf)


def _block(x, first, last, panels, turn, transposed):
    """Project tokens ``first:last``."""
    pmax, hidden, tokens = nl.tile_size.pmax, x.shape[1], last - first
    slices, tiles = _parts(hidden, pmax), _parts(tokens, pmax)
    source = x[first:last]
    x_turned = nl.ndarray((pmax, slices, tokens), x.dtype, nl.sbuf)
    for p in range(len(panels)):
        if p == 0:
            following = _allocate(panels[0], hidden, x.dtype)
        weights, columns = following, panels[p][4] - panels[p][3]
        groups = _parts(tiles, max(1, GROUP // _parts(columns, COLUMNS)))
        bias = _load_bias(panels[p])
        for g in range(groups):
            low, high = g * tiles // groups * pmax, min(tokens, (g + 1) * tiles // groups * pmax)
            if p == 0:
                step = max(1, FIRST_TRANSFER // columns)
                for s in range(0, slices, step):
                    end = min(s + step, slices)
                    if g == 0:
                        _load_panel(weights, panels[0], s, end, turn, transposed)
                    turn.load(x_turned[:, :, low:high], source[low:high], s, end)
            if g == groups - 1 and p + 1 < len(panels):
                # Ahead of this group's products and stores, so that the load does not queue up behind them.
                following = _allocate(panels[p + 1], hidden, x.dtype)
                step = max(1, TRANSFER // following.shape[2])
                for s in range(0, slices, step):
                    _load_panel(following, panels[p + 1], s, min(s + step, slices), turn, transposed)
            out = panels[p][2][first + low : first + high, panels[p][3] : panels[p][4]]
            _multiply(out, x_turned[:, :, low:high], weights, bias, hidden)


def _multiply(out, x_turned, weights, bias, hidden):
    """Compute one group: ``out`` [tokens, columns] in HBM."""
    pmax, tokens, columns = nl.tile_size.pmax, out.shape[0], out.shape[1]
    parts = _parts(columns, COLUMNS)
    banks = []
    for t in range(0, tokens, pmax):
        for c in range(parts):
            low, high = c * columns // parts, (c + 1) * columns // parts
            bank = nl.ndarray((min(pmax, tokens - t), high - low), nl.float32, nl.psum)
            banks.append((t, low, bank))
    for s in range(_parts(hidden, pmax)):
        depth = min(pmax, hidden - s * pmax)
        for t, c, bank in banks:
            left = x_turned[0:depth, s, t : t + bank.shape[0]]
            nisa.nc_matmul(bank, left, weights[0:depth, s, c : c + bank.shape[1]], accumulate=s > 0)
    for t, c, bank in banks:
        rows, end = bank.shape[0], c + bank.shape[1]
        if c == 0:
            done = nl.ndarray((rows, columns), out.dtype, nl.sbuf)
        if bias == None:  # noqa: E711
            nisa.activation(done[:, c:end], nl.copy, bank)
        else:
            nisa.tensor_tensor(done[:, c:end], bank, bias[0:rows, c:end], nl.add)
        if end == columns:
            nisa.dma_copy(out[t : t + rows, :], done)
