"""Online softmax attention on tiles, shared by the attention kernels: 128 queries x up to 512 keys at a time.

A *row* is one query tile of one head, a *block* the keys of one row that share a running maximum (up to 1536), a *tile*
up to 512 of these: one PSUM bank of scores. All tiles of a launch form one software pipeline: while a tile's
exponentials are taken, the scores and maxima of tiles `look` places ahead are computed, its predecessor's weights are
moved to SBUF transposed, and those of `lag` tiles ago are multiplied by V. A column of ones appended to V gives the sum
of the weights as rounded, so that the rounded weights of a row add up to 1.

Safe for any finite input: every exponent is `scale * (score - running maximum)`, so none is positive; results of
earlier blocks are scaled down when the maximum grows. Scores accumulate in float32 before anything is rounded.
"""

import nki.isa as nisa
import nki.language as nl

ROWS = 128
TILE = 512
# Raw scores at or below -FLOOR count as masked; masking values are clamped to MASKED, so that nothing becomes inf.
MASKED = -1.0e30
FLOOR = 1.0e29
TINY = 1.0e-30


class TilePlan(nl.NKIObject):
    """What all tiles of a launch share.

    `scale` > 0 multiplies scores; `masked`: an additive mask, which may take all keys from a row; `causal`: rows see
    the keys up to their own position. The weights of the first `by_dma` tiles of a longer block are transposed by DMA,
    the others by the Tensor engine; `by_scalar` of every `by_scalar_of` of those are copied out of PSUM by the Scalar
    engine, the others by the Vector engine.
    """

    dtype = nl.float32
    scale = 1.0
    masked = False
    causal = False
    look = 4
    lag = 3
    block = 1536
    by_dma = 0
    by_scalar = 0
    by_scalar_of = 1
    identity = None
    triangle = None


class QueryTile(nl.NKIObject):
    """A query tile of one head: queries `start` to `start + rows`, columns `first` and on of `query_t` [D, ...].

    `head` has `key_t` [D, L] and `value` [128, ceil(L / 128), Dv + 1]; `top` is the negated running maximum, `acc`
    [rows, Dv + 1] the sum over finished blocks, `mask` and `out` views of HBM.
    """

    head = None
    source = None
    query_t = None
    first = 0
    rows = 0
    start = 0
    top = None
    acc = None
    mask = None
    out = None


class KeyBlock(nl.NKIObject):
    """Keys of a row under one running maximum; the first `by_dma` have their weights transposed by DMA.

    `before`: negated maximum of the earlier blocks, `bias` = -scale * maximum, `out` [rows, Dv + 1] weights times V.
    """

    row = None
    is_first = False
    is_last = False
    by_dma = 0
    before = None
    bias = None
    weights = None
    weights_t = None
    out = None


class KeyTile(nl.NKIObject):
    """Keys `start` to `start + width`, `offset` of them into the block, and what is in flight for them."""

    block = None
    start = 0
    offset = 0
    width = 0
    opens = False
    closes = False
    by_dma = False
    copy_by_scalar = False
    mask = None
    scores = None
    weights = None
    transposed = None
    weights_t = None


def tune(plan: TilePlan) -> None:
    """Set what depends on the element size, to the values with the shortest modelled timeline of a trn2 core.

    Two bytes: six of eight PSUM banks hold scores, one transposed weights, one results, and two thirds of a long
    row's weights are transposed by DMA. float32 weights take twice the PSUM, and DMA transposes two-byte elements.
    """
    if plan.dtype != nl.float32:
        plan.look = 6
        plan.lag = 7
        plan.by_dma = 2
        plan.by_scalar = 1
        plan.by_scalar_of = 2


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return (a + b - 1) // b


def pieces(total: int, size: int) -> list:
    """Return (start, length) of the parts of `total` elements, `size` each but for the last."""
    parts = []
    for start in range(0, total, size):
        parts.append((start, min(size, total - start)))
    return parts


def share(items: list, core: int, cores: int) -> list:
    """Return the part of a list that one of several cores works on."""
    return items[core * len(items) // cores : (core + 1) * len(items) // cores]


def even(total: int, most: int) -> int:
    """Return the smallest multiple of 128 that splits `total` into as few parts as `most` does."""
    return ceil_div(ceil_div(total, ceil_div(total, most)), ROWS) * ROWS


def tiles_of(plan: TilePlan, row: QueryTile, keys: int) -> list:
    """Return the tiles of a row that sees `keys` keys, in order."""
    tiles = []
    blocks = pieces(keys, even(keys, plan.block))
    for piece in blocks:
        at, size = piece
        block = KeyBlock(row=row, is_first=at == 0, is_last=at + size == keys)
        step = even(size, TILE)
        parts = pieces(size, step)
        if len(parts) > plan.by_dma:
            block.by_dma = plan.by_dma * step
        for piece in parts:
            start, width = piece
            tile = KeyTile(block=block, start=at + start, width=width, offset=start)
            tile.opens = start == 0
            tile.closes = start + width == size
            tile.by_dma = start < block.by_dma
            tiles.append(tile)
    return tiles


def schedule(plan: TilePlan, tiles: list) -> None:
    """Spread the tiles that the Scalar engine copies evenly over the launch."""
    kept = 0
    share = plan.by_scalar
    for tile in tiles:
        if not tile.by_dma:
            kept += 1
            tile.copy_by_scalar = kept * share // plan.by_scalar_of > (kept - 1) * share // plan.by_scalar_of


def constants(plan: TilePlan) -> None:
    """Make the matrices that causal masking multiplies: an identity, and MASKED right of the diagonal."""
    if plan.causal:
        plan.identity = nl.ndarray((ROWS, ROWS), nl.bfloat16, buffer=nl.sbuf)
        plan.triangle = nl.ndarray((ROWS, ROWS), nl.bfloat16, buffer=nl.sbuf)
        nisa.memset(dst=plan.identity, value=1.0)
        nisa.memset(dst=plan.triangle, value=0.0)
        nisa.affine_select(
            dst=plan.identity,
            pattern=[[-1, ROWS]],
            channel_multiplier=1,
            on_true_tile=plan.identity,
            on_false_value=0.0,
            cmp_op=nl.equal,
        )
        nisa.affine_select(
            dst=plan.triangle,
            pattern=[[-1, ROWS]],
            channel_multiplier=1,
            on_true_tile=plan.triangle,
            on_false_value=MASKED,
            cmp_op=nl.greater_equal,
        )


def score(plan: TilePlan, tile: KeyTile) -> None:
    """Scores of a tile, masked, and the running maximum with them; the last tile of a block fixes the block's bias."""
    block = tile.block
    row = block.row
    scores = nl.ndarray((row.rows, tile.width), nl.float32, buffer=nl.psum)
    query_t = row.query_t[:, row.first : row.first + row.rows]
    key_t = row.head.key_t[:, tile.start : tile.start + tile.width]
    nisa.nc_matmul(dst=scores, stationary=query_t, moving=key_t, accumulate=False)
    diagonal = row.start - tile.start
    if plan.causal and 0 <= diagonal < tile.width:
        # Adding the mask on the Tensor engine costs less than any instruction that reads the scores once more.
        width = min(row.rows, tile.width - diagonal)
        nisa.nc_matmul(
            dst=scores[:, diagonal : diagonal + width],
            stationary=plan.identity[: row.rows, : row.rows],
            moving=plan.triangle[: row.rows, :width],
            accumulate=True,
        )
    if plan.masked:
        total = nl.ndarray((row.rows, tile.width), nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=total, data1=scores, data2=tile.mask, op=nl.add)
        tile.mask = None
        scores = total
    tile.scores = scores
    _update_maximum(plan, tile)
    if tile.closes:
        block.bias = nl.ndarray((row.rows, 1), nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=block.bias, data=row.top, op0=nl.multiply, operand0=plan.scale, engine=nisa.engine.gpsimd
        )


def fetch_mask(plan: TilePlan, tile: KeyTile) -> None:
    """Load the tile's mask as mask / scale; the exponential's scale makes scale * scores + mask of the sum."""
    row = tile.block.row
    tile.mask = nl.ndarray((row.rows, tile.width), nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile.mask, src=row.mask[:, tile.start : tile.start + tile.width])
    nisa.tensor_scalar(
        dst=tile.mask,
        data=tile.mask,
        op0=nl.multiply,
        operand0=1.0 / plan.scale,
        op1=nl.maximum,
        operand1=MASKED,
        engine=nisa.engine.gpsimd,
    )


def _update_maximum(plan: TilePlan, tile: KeyTile) -> None:
    """Fold the tile's maxima into the row's running maximum, kept negated, as the exponential's bias takes it."""
    block = tile.block
    row = block.row
    peak = nl.ndarray((row.rows, 1), nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=peak, op=nl.maximum, data=tile.scores, axis=1, negate=True)
    if tile.opens:
        block.before = row.top
    top = nl.ndarray((row.rows, 1), nl.float32, buffer=nl.sbuf)
    if block.is_first and tile.opens:
        if plan.masked:
            # A maximum that cannot fall to MASKED makes the weights of a row without keys 0.
            nisa.tensor_scalar(dst=top, data=peak, op0=nl.minimum, operand0=FLOOR, engine=nisa.engine.gpsimd)
        else:
            top = peak
    else:
        nisa.tensor_tensor(dst=top, data1=row.top, data2=peak, op=nl.minimum, engine=nisa.engine.gpsimd)
    row.top = top


def weigh(plan: TilePlan, tile: KeyTile) -> None:
    """Take the tile's exponentials."""
    block = tile.block
    rows = block.row.rows
    if tile.by_dma:
        if tile.opens:
            block.weights = nl.ndarray((rows, block.by_dma), plan.dtype, buffer=nl.sbuf)
        tile.weights = block.weights[:, tile.offset : tile.offset + tile.width]
    else:
        tile.weights = nl.ndarray((rows, tile.width), plan.dtype, buffer=nl.sbuf)
    nisa.activation(dst=tile.weights, op=nl.exp, data=tile.scores, bias=block.bias, scale=plan.scale)
    tile.scores = None


def transpose(plan: TilePlan, tile: KeyTile) -> None:
    """Transpose the tile's weights into PSUM; for tiles transposed by DMA, those of the whole block at once into SBUF."""
    block = tile.block
    rows = block.row.rows
    groups = ceil_div(tile.width, ROWS)
    if not tile.by_dma:
        tile.transposed = nl.ndarray((min(tile.width, ROWS), groups, rows), plan.dtype, buffer=nl.psum)
        parts = pieces(tile.width, ROWS)
        for piece in parts:
            start, width = piece
            part = tile.weights[:, start : start + width]
            nisa.nc_transpose(dst=tile.transposed[:width, start // ROWS, :], data=part, engine=nisa.engine.tensor)
    elif tile.offset + tile.width == block.by_dma:
        chunks = block.by_dma // ROWS
        block.weights_t = nl.ndarray((ROWS, chunks, rows), plan.dtype, buffer=nl.sbuf)
        nisa.dma_transpose(dst=block.weights_t, src=block.weights.reshape_dim(1, (chunks, ROWS)), axes=(2, 1, 0))


def evacuate(plan: TilePlan, tile: KeyTile) -> None:
    """Copy transposed weights from PSUM to SBUF: the Tensor engine reads operands from SBUF only."""
    if not tile.by_dma:
        depth, groups, rows = tile.transposed.shape
        tile.weights_t = nl.ndarray((depth, groups, rows), plan.dtype, buffer=nl.sbuf)
        rest = tile.width % ROWS
        full = groups - 1 if rest and groups > 1 else groups
        _copy(tile.weights_t[:, :full, :], tile.transposed[:, :full, :], tile.copy_by_scalar)
        if full < groups:
            _copy(tile.weights_t[:rest, full, :], tile.transposed[:rest, full, :], tile.copy_by_scalar)
        tile.transposed = None
    tile.weights = None


def _copy(dst: nl.NkiTensor, src: nl.NkiTensor, by_scalar: bool) -> None:
    if by_scalar:
        nisa.activation(dst=dst, op=nl.copy, data=src)
    else:
        nisa.tensor_copy(dst=dst, src=src, engine=nisa.engine.vector)


def gather(plan: TilePlan, tile: KeyTile) -> None:
    """Multiply the tile's weights by V; the last tile of a block merges it, the last of a row writes the result."""
    block = tile.block
    row = block.row
    value = row.head.value
    if tile.opens:
        block.out = nl.ndarray((row.rows, value.shape[2]), nl.float32, buffer=nl.psum)
    weights_t = block.weights_t if tile.by_dma else tile.weights_t
    first = tile.offset // ROWS if tile.by_dma else 0
    parts = pieces(tile.width, ROWS)
    for piece in parts:
        start, width = piece
        nisa.nc_matmul(
            dst=block.out,
            stationary=weights_t[:width, first + start // ROWS, :],
            moving=value[:width, (tile.start + start) // ROWS, :],
            accumulate=not (tile.opens and start == 0),
        )
    tile.weights_t = None


def collect(plan: TilePlan, tile: KeyTile) -> None:
    """Add a finished block to its row. GpSimd cannot reach PSUM, so it does the part that is in SBUF."""
    block = tile.block
    row = block.row
    if tile.closes:
        part = nl.ndarray(block.out.shape, nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=part, op=nl.copy, data=block.out)
        block.out = None
        if block.is_first:
            row.acc = part
        else:
            decay = nl.ndarray((row.rows, 1), nl.float32, buffer=nl.sbuf)
            # before and bias are negated maxima: the older sums shrink by exp(scale * (old - new)).
            nisa.activation(dst=decay, op=nl.exp, data=block.before, bias=block.bias, scale=-plan.scale)
            nisa.tensor_scalar(dst=row.acc, data=row.acc, op0=nl.multiply, operand0=decay, engine=nisa.engine.gpsimd)
            nisa.tensor_tensor(dst=row.acc, data1=row.acc, data2=part, op=nl.add, engine=nisa.engine.gpsimd)


def finish(plan: TilePlan, tile: KeyTile) -> None:
    """Divide a finished row by the sum of its weights, the last column, and store it."""
    row = tile.block.row
    if tile.closes and tile.block.is_last:
        size = row.acc.shape[1] - 1
        inverse = nl.ndarray((row.rows, 1), nl.float32, buffer=nl.sbuf)
        total = row.acc[:, size : size + 1]
        if plan.masked:
            nisa.tensor_scalar(dst=total, data=total, op0=nl.maximum, operand0=TINY, engine=nisa.engine.gpsimd)
        nisa.reciprocal(dst=inverse, data=total)
        done = nl.ndarray((row.rows, size), plan.dtype, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=done, data=row.acc[:, :size], op0=nl.multiply, operand0=inverse, engine=nisa.engine.gpsimd
        )
        nisa.dma_copy(dst=row.out, src=done)
        row.acc = None


def advance(plan: TilePlan, tiles: list, step: int) -> None:
    """Run the stages after `score` for one step of the pipeline, each on the tile whose turn it is.

    Every stage lags its inputs by a tile: engines work in order, and one that waits holds up all that follows.
    """
    count = len(tiles)
    if 0 <= step < count:
        weigh(plan, tiles[step])
    if 0 <= step - 1 < count:
        transpose(plan, tiles[step - 1])
    if 0 <= step - 1 < count:
        evacuate(plan, tiles[step - 1])
    if 0 <= step - plan.lag < count:
        gather(plan, tiles[step - plan.lag])
    if 0 <= step - plan.lag - 1 < count:
        collect(plan, tiles[step - plan.lag - 1])
    if 0 <= step - plan.lag - 2 < count:
        finish(plan, tiles[step - plan.lag - 2])
        tiles[step - plan.lag - 2] = None
