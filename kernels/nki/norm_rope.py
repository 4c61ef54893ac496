"""RMSNorm over the head and rotary position embedding of raw q and k, on the way into SBUF.

Attention takes q^T and k^T, channels on partitions. In that layout all heads share the rotary tables, and the norm's
weight, a number per channel, folds into them: with r = 1 / rms(x), P the swap of paired channels,

    y^T = (r x)^T * (g cos)^T + P (r x)^T * (+-P g sin)^T

Tokens are normalised 128 at a time in their own layout, rounded to the tensor's dtype (no change for float32) as models
do between norm and embedding, and transposed twice by the Tensor engine, once in place and once with the halves
swapped. Interleaved channel pairs become halves by the stride of these transposes; scores do not depend on the order of
the channels. Everything between is float32. A *unit* is up to 256 tokens of one head's q or k; its stages are spread
over the steps of the attention of the head before.
"""

import nki.isa as nisa
import nki.language as nl
from fluxrewrite.kernels.nki import flash

STAGES = 8
CHUNK = 256


class Stream(nl.NKIObject):
    """One stream: raw q, k, v [B, S, H, D], norm weights [D] with their eps, first position in the joined sequence."""

    q = None
    k = None
    v = None
    gamma_q = None
    gamma_k = None
    eps_q = 0.0
    eps_k = 0.0
    bias_q = None
    bias_k = None
    start = 0
    size = 0


class RopeTables(nl.NKIObject):
    """Rotary tables multiplied by the norm weights, [D, S] float32 over the joined sequence."""

    cos_q = None
    sin_q = None
    cos_k = None
    sin_k = None
    identity = None


class Unit(nl.NKIObject):
    """Tokens `start` to `start + size` of `source` [S_i, D], to columns `column` and on of the head's q^T or k^T."""

    head = None
    is_query = False
    by_vector = False
    source = None
    start = 0
    size = 0
    column = 0
    cos = None
    sin = None
    eps = None
    raw = None
    squares = None
    stats = None
    inverse = None
    normal = None
    straight = None
    swapped = None
    direct = None
    crossed = None


def halves(view: nl.NkiTensor, interleaved: bool) -> nl.NkiTensor:
    """Return view [n, D] as [n, 2, D / 2], first members of all channel pairs before the second ones."""
    half = view.shape[1] // 2
    if interleaved:
        return view.reshape_dim(1, (half, 2)).permute((0, 2, 1))
    return view.reshape_dim(1, (2, half))


def identity(dtype: object) -> nl.NkiTensor:
    """Return the identity matrix in SBUF."""
    matrix = nl.ndarray((flash.ROWS, flash.ROWS), dtype, buffer=nl.sbuf)
    nisa.memset(dst=matrix, value=1.0, engine=nisa.engine.gpsimd)
    nisa.affine_select(
        dst=matrix,
        pattern=[[-1, flash.ROWS]],
        channel_multiplier=1,
        on_true_tile=matrix,
        on_false_value=0.0,
        cmp_op=nl.equal,
    )
    return matrix


def _gamma_columns(gamma: nl.NkiTensor, interleaved: bool) -> tuple:
    """Return a norm weight as two [D, 1] columns: in the order of the halves, and swapped with the sign of sin."""
    size = gamma.shape[0]
    half = size // 2
    parts = halves(gamma.expand_dim(0), interleaved)
    plain = nl.ndarray((size, 1), nl.float32, buffer=nl.sbuf)
    other = nl.ndarray((size, 1), nl.float32, buffer=nl.sbuf)
    for i in range(2):
        column = parts[:, i, :].permute((1, 0))
        nisa.dma_copy(dst=plain[i * half : (i + 1) * half, :], src=column)
        nisa.dma_copy(dst=other[(1 - i) * half : (2 - i) * half, :], src=column)
    nisa.tensor_scalar(dst=other[:half, :], data=other[:half, :], op0=nl.multiply, operand0=-1.0)
    return plain, other


def _constant(value: float) -> nl.NkiTensor:
    column = nl.ndarray((flash.ROWS, 1), nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=column, value=value, engine=nisa.engine.gpsimd)
    return column


def _transposed(table: nl.NkiTensor, start: int, rows: int, interleaved: bool) -> nl.NkiTensor:
    """Return rows of a rotary table as float32 [D, rows] in PSUM, channels in the order of the halves."""
    size = table.shape[1]
    tile = nl.ndarray((rows, size), nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=table[start : start + rows, :])
    transposed = nl.ndarray((size, rows), nl.float32, buffer=nl.psum)
    nisa.nc_transpose(dst=transposed, data=halves(tile, interleaved), engine=nisa.engine.tensor)
    return transposed


def make_tables(streams: list, cos: nl.NkiTensor, sin: nl.NkiTensor, interleaved: bool) -> RopeTables:
    """Return the tables of all streams, made once a launch."""
    total, size = cos.shape
    tables = RopeTables()
    tables.cos_q = nl.ndarray((size, total), nl.float32, buffer=nl.sbuf)
    tables.sin_q = nl.ndarray((size, total), nl.float32, buffer=nl.sbuf)
    tables.cos_k = nl.ndarray((size, total), nl.float32, buffer=nl.sbuf)
    tables.sin_k = nl.ndarray((size, total), nl.float32, buffer=nl.sbuf)
    tables.identity = identity(streams[0].q.dtype)
    for stream in streams:
        stream.bias_q = _constant(stream.eps_q)
        stream.bias_k = _constant(stream.eps_k)
        gamma_q, other_q = _gamma_columns(stream.gamma_q, interleaved)
        gamma_k, other_k = _gamma_columns(stream.gamma_k, interleaved)
        parts = flash.pieces(stream.size, flash.ROWS)
        for piece in parts:
            at, rows = piece
            first = stream.start + at
            last = first + rows
            transposed = _transposed(cos, first, rows, interleaved)
            nisa.activation(dst=tables.cos_q[:, first:last], op=nl.copy, data=transposed, scale=gamma_q)
            nisa.tensor_scalar(dst=tables.cos_k[:, first:last], data=transposed, op0=nl.multiply, operand0=gamma_k)
            transposed = _transposed(sin, first, rows, interleaved)
            nisa.activation(dst=tables.sin_q[:, first:last], op=nl.copy, data=transposed, scale=other_q)
            nisa.tensor_scalar(dst=tables.sin_k[:, first:last], data=transposed, op0=nl.multiply, operand0=other_k)
    return tables


def units_of(streams: list, tables: RopeTables, head: nl.NKIObject, by_vector: bool) -> list:
    """Return the units of one head; `by_vector`: the Vector engine has time for the squares of the keys."""
    units = []
    for stream in streams:
        keys, queries = stream.k[head.batch, :, head.index, :], stream.q[head.batch, :, head.index, :]
        for piece in flash.pieces(stream.size, CHUNK):
            start, size = piece
            key = Unit(head=head, source=keys, start=start, size=size, column=stream.start + start)
            key.cos, key.sin, key.eps = tables.cos_k, tables.sin_k, stream.bias_k
            key.by_vector = by_vector
            query = Unit(head=head, source=queries, start=start, size=size, column=stream.start + start)
            query.cos, query.sin, query.eps = tables.cos_q, tables.sin_q, stream.bias_q
            query.is_query = True
            units.extend((key, query))
    return units


def run_stage(stage: int, unit: Unit, matrix: nl.NkiTensor, interleaved: bool) -> None:
    """Run one stage of a unit; each stage waits for the one before, so they are spread over steps."""
    if stage == 0:
        _load(unit)
    elif stage == 1:
        _square(unit)
    elif stage == 2:
        _sum_stats(unit)
    elif stage == 3:
        _invert(unit)
    elif stage == 4:
        _normalise(unit)
    elif stage == 5:
        _transpose(unit, matrix, interleaved)
    elif stage == 6:
        _rotate(unit)
    else:
        _add(unit)


def _load(unit: Unit) -> None:
    count = flash.ceil_div(unit.size, flash.ROWS)
    whole = unit.size // flash.ROWS
    unit.raw = nl.ndarray((min(unit.size, flash.ROWS), count, unit.source.shape[1]), unit.source.dtype, buffer=nl.sbuf)
    if whole:
        rows = unit.source[unit.start : unit.start + whole * flash.ROWS, :]
        nisa.dma_copy(dst=unit.raw[:, :whole, :], src=rows.reshape_dim(0, (whole, flash.ROWS)).permute((1, 0, 2)))
    if whole < count:
        rest = unit.size % flash.ROWS
        first = unit.start + whole * flash.ROWS
        nisa.dma_copy(dst=unit.raw[:rest, whole, :], src=unit.source[first : first + rest, :])


def _square(unit: Unit) -> None:
    """Sum the squares of each token on the Scalar engine, or take their statistics on the Vector engine."""
    depth, count, size = unit.raw.shape
    unit.squares = nl.ndarray((depth, count), nl.float32, buffer=nl.sbuf)
    unit.stats = nl.ndarray((depth, count, 6), nl.float32, buffer=nl.sbuf)
    if unit.size % flash.ROWS:
        # Instructions below cover all rows of the last tile: those beyond its tokens need a value, which nothing reads.
        nisa.memset(dst=unit.squares, value=1.0, engine=nisa.engine.gpsimd)
        nisa.memset(dst=unit.stats, value=1.0, engine=nisa.engine.gpsimd)
    parts = flash.pieces(unit.size, flash.ROWS)
    for piece in parts:
        start, rows = piece
        at = start // flash.ROWS
        data = unit.raw[:rows, at, :]
        if unit.by_vector:
            nisa.bn_stats(dst=unit.stats[:rows, at, :], data=data)
        else:
            rounded = nl.ndarray((rows, size), unit.raw.dtype, buffer=nl.sbuf)
            nisa.activation_reduce(
                dst=rounded, op=nl.square, data=data, reduce_op=nl.add, reduce_res=unit.squares[:rows, at : at + 1]
            )


def _sum_stats(unit: Unit) -> None:
    """Turn (count, mean, variance * count) of the even and the odd channels into the sum of the squares."""
    depth, count, size = unit.raw.shape
    if unit.by_vector:
        gpsimd = nisa.engine.gpsimd
        part = nl.ndarray((depth, count, 2), nl.float32, buffer=nl.sbuf)
        mean, spread = unit.stats[:, :, 1:6:3], unit.stats[:, :, 2:6:3]
        nisa.tensor_tensor(dst=part, data1=mean, data2=mean, op=nl.multiply, engine=gpsimd)
        nisa.tensor_scalar(dst=part, data=part, op0=nl.multiply, operand0=size / 2.0, engine=gpsimd)
        nisa.tensor_tensor(dst=part, data1=part, data2=spread, op=nl.add, engine=gpsimd)
        nisa.tensor_tensor(dst=unit.squares, data1=part[:, :, 0], data2=part[:, :, 1], op=nl.add, engine=gpsimd)


def _invert(unit: Unit) -> None:
    depth, count, size = unit.raw.shape
    unit.inverse = nl.ndarray((depth, count), nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=unit.inverse, op=nl.rsqrt, data=unit.squares, bias=unit.eps[:depth, :], scale=1.0 / size)
    unit.squares = None
    unit.stats = None


def _normalise(unit: Unit) -> None:
    depth, count, size = unit.raw.shape
    unit.normal = nl.ndarray((depth, count, size), unit.raw.dtype, buffer=nl.sbuf)
    parts = flash.pieces(unit.size, flash.ROWS)
    for piece in parts:
        start, rows = piece
        at = start // flash.ROWS
        nisa.tensor_scalar(
            dst=unit.normal[:rows, at, :],
            data=unit.raw[:rows, at, :],
            op0=nl.multiply,
            operand0=unit.inverse[:rows, at : at + 1],
            engine=nisa.engine.gpsimd,
        )
    unit.raw = None
    unit.inverse = None


def _transpose(unit: Unit, matrix: nl.NkiTensor, interleaved: bool) -> None:
    """Transpose as is and with the halves swapped; each part of the latter uses one half of the array."""
    size = unit.normal.shape[2]
    half = size // 2
    unit.straight = nl.ndarray((size, unit.size), unit.normal.dtype, buffer=nl.psum)
    unit.swapped = nl.ndarray((size, unit.size), unit.normal.dtype, buffer=nl.psum)
    parts = flash.pieces(unit.size, flash.ROWS)
    for piece in parts:
        start, rows = piece
        data = halves(unit.normal[:rows, start // flash.ROWS, :], interleaved)
        nisa.nc_transpose(dst=unit.straight[:, start : start + rows], data=data, engine=nisa.engine.tensor)
        for i in range(2):
            first = (1 - i) * half
            nisa.nc_matmul(
                dst=unit.swapped[first : first + half, start : start + rows],
                stationary=data[:, i, :],
                moving=matrix[:rows, :rows],
                is_transpose=True,
                tile_position=(0, first),
                tile_size=(flash.ROWS, max(half, 32)),
            )
    unit.normal = None


def _rotate(unit: Unit) -> None:
    size = unit.straight.shape[0]
    first = unit.column
    last = first + unit.size
    unit.direct = nl.ndarray((size, unit.size), nl.float32, buffer=nl.sbuf)
    unit.crossed = nl.ndarray((size, unit.size), nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=unit.direct, data1=unit.straight, data2=unit.cos[:, first:last], op=nl.multiply)
    unit.straight = None
    nisa.tensor_tensor(dst=unit.crossed, data1=unit.swapped, data2=unit.sin[:, first:last], op=nl.multiply)
    unit.swapped = None


def _add(unit: Unit) -> None:
    target = unit.head.query_t if unit.is_query else unit.head.key_t
    nisa.tensor_tensor(
        dst=target[:, unit.column : unit.column + unit.size],
        data1=unit.direct,
        data2=unit.crossed,
        op=nl.add,
        engine=nisa.engine.gpsimd,
    )
    unit.direct = None
    unit.crossed = None
