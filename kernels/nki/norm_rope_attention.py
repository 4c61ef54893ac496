"""RMSNorm of q and k, rotary embedding, joint concatenation and bidirectional attention in one call.

Shapes: one or two streams, each raw q, k, v [B, S_i, H, D] with norm weights [D] for q and k; cos, sin [S, D] over the
joined sequence, S = S_0 + S_1, stream 0 first; result [B, S, H, D], or [B, S, H * D] when `flat`. D 64 or 128; float32,
bfloat16, float16 (tables and norm weights of any float type). Rotary tables (16 bytes a token and partition), q^T, k^T
and V of two heads stay in SBUF: S up to about 6,000 at two bytes an element, 4,000 at four.

Only inputs and output touch HBM: see `norm_rope` for norm and rotary embedding. Attention is that of `flash`, with a
running maximum, for any input; or, if the caller promises that no score can exceed `bounded_softmax.LIMIT`, that of
`bounded_softmax`, which needs no maximum. The promise follows from the weights alone: |q| <= sqrt(D) * max|gamma_q|,
and rotation keeps the norm, so scale * D * max|gamma_q| * max|gamma_k| over all streams <= 64 suffices. Two cores share
heads, or queries when the number of heads is odd.
"""

import nki
import nki.isa as nisa
import nki.language as nl
from fluxrewrite.kernels.nki import bounded_softmax, flash, norm_rope


class NormRopeHead(nl.NKIObject):
    """One head: q^T and k^T [D, S], V with a column of ones [128, tiles, D + 1]."""

    batch = 0
    index = 0
    key_t = None
    query_t = None
    value = None


class BoundedPlan(nl.NKIObject):
    """What all slabs of a launch share, as `flash.TilePlan` does for tiles."""

    dtype = nl.float32
    weight_dtype = nl.float32
    scale = 1.0
    look = 5
    lag = 2


class NormRopeLaunch(nl.NKIObject):
    """The heads of this core, their units and tiles in order; `ticks` of the prologue's pipeline are done."""

    streams = None
    tables = None
    interleaved = True
    is_bounded = False
    key_tiles = None
    plan = None
    heads = None
    units = None
    tiles = None
    ticks = 0


@nki.jit
def norm_rope_attention(
    q0: nl.NkiTensor,
    k0: nl.NkiTensor,
    v0: nl.NkiTensor,
    gamma_q0: nl.NkiTensor,
    gamma_k0: nl.NkiTensor,
    cos: nl.NkiTensor,
    sin: nl.NkiTensor,
    q1: nl.NkiTensor = None,
    k1: nl.NkiTensor = None,
    v1: nl.NkiTensor = None,
    gamma_q1: nl.NkiTensor = None,
    gamma_k1: nl.NkiTensor = None,
    scale: float = 1.0,
    eps_q0: float = 1e-6,
    eps_k0: float = 1e-6,
    eps_q1: float = 1e-6,
    eps_k1: float = 1e-6,
    two_streams: bool = True,
    interleaved: bool = True,
    is_bounded: bool = False,
    flat: bool = False,
) -> nl.NkiTensor:
    """Return attention over the joined sequence; without `two_streams` those of stream 1 are None."""
    streams = [_stream(q0, k0, v0, gamma_q0, gamma_k0, eps_q0, eps_k0, 0)]
    if two_streams:
        streams.append(_stream(q1, k1, v1, gamma_q1, gamma_k1, eps_q1, eps_k1, q0.shape[1]))
    batches, _, heads, size = q0.shape
    total = cos.shape[0]
    shape = (batches, total, heads * size) if flat else (batches, total, heads, size)
    out = nl.ndarray(shape, q0.dtype, buffer=nl.shared_hbm)
    tables = norm_rope.make_tables(streams, cos, sin, interleaved)
    run = NormRopeLaunch(streams=streams, tables=tables, interleaved=interleaved, is_bounded=is_bounded)
    _plan(run, q0.dtype, scale)
    _share(run, out, batches, heads, flat)
    _drive(run)
    return out


def _stream(
    q: nl.NkiTensor,
    k: nl.NkiTensor,
    v: nl.NkiTensor,
    gamma_q: nl.NkiTensor,
    gamma_k: nl.NkiTensor,
    eps_q: float,
    eps_k: float,
    start: int,
) -> norm_rope.Stream:
    stream = norm_rope.Stream(q=q, k=k, v=v, gamma_q=gamma_q, gamma_k=gamma_k, eps_q=eps_q, eps_k=eps_k)
    stream.start = start
    stream.size = q.shape[1]
    return stream


def _plan(run: NormRopeLaunch, dtype: object, scale: float) -> None:
    run.heads = []
    run.units = []
    run.tiles = []
    if run.is_bounded:
        run.plan = BoundedPlan(dtype=dtype, scale=scale)
        # Weights reach e^64: float16 ends at e^11, bfloat16 where float32 does.
        run.plan.weight_dtype = nl.bfloat16 if dtype == nl.float16 else dtype
        run.key_tiles = _key_tiles(run.streams)
    else:
        run.plan = flash.TilePlan(dtype=dtype, scale=scale)
        flash.tune(run.plan)
        run.plan.look = min(run.plan.look, 5)  # the prologue takes a PSUM bank
        last = run.streams[len(run.streams) - 1]
        run.key_tiles = flash.pieces(last.start + last.size, flash.ROWS)


def _key_tiles(streams: list) -> list:
    """Return (first column, keys) of tiles that lie in one stream each."""
    tiles = []
    for stream in streams:
        for piece in flash.pieces(stream.size, flash.ROWS):
            tiles.append((stream.start + piece[0], piece[1]))
    return tiles


def _share(run: NormRopeLaunch, out: nl.NkiTensor, batches: int, heads: int, flat: bool) -> None:
    """Lay out this core's part of the work."""
    cores, core = nl.num_programs(axes=0), nl.program_id(axis=0)
    queries = flash.pieces(out.shape[1], bounded_softmax.GROUP if run.is_bounded else flash.ROWS)
    jobs = []
    for batch in range(batches):
        for index in range(heads):
            jobs.append(NormRopeHead(batch=batch, index=index))
    if len(jobs) % cores == 0:
        jobs = flash.share(jobs, core, cores)
    else:
        queries = flash.share(queries, core, cores)
    if len(queries) > 0:
        for head in jobs:
            _add_head(run, head, queries, out, flat)


def _add_head(run: NormRopeLaunch, head: NormRopeHead, queries: list, out: nl.NkiTensor, flat: bool) -> None:
    """Append the units and tiles of one head."""
    size = run.streams[0].q.shape[3]
    run.heads.append(head)
    run.units.extend(norm_rope.units_of(run.streams, run.tables, head, run.is_bounded))
    place = out if flat else out.flatten_dims(2, 3)
    place = place[head.batch, :, head.index * size : (head.index + 1) * size]
    for piece in queries:
        start, rows = piece
        view = place[start : start + rows, :]
        if run.is_bounded:
            group = bounded_softmax.QueryGroup(head=head, start=start, size=rows, view=view)
            run.tiles.extend(bounded_softmax.slabs_of(group, run.key_tiles))
        else:
            row = flash.QueryTile(head=head, start=start, first=start, rows=rows, out=view)
            run.tiles.extend(flash.tiles_of(run.plan, row, out.shape[1]))


def _drive(run: NormRopeLaunch) -> None:
    """Drive attention step by step, and the prologue of the next head just fast enough to be ready in time."""
    count = len(run.tiles)
    if not run.is_bounded:
        flash.schedule(run.plan, run.tiles)
    units, tiles = len(run.units) // max(len(run.heads), 1), count // max(len(run.heads), 1)
    for step in range(1 - run.plan.look, count + run.plan.lag + 2):
        ahead = step + run.plan.look - 1
        if ahead < count:
            begun = (ahead // tiles + 1) * units + (ahead % tiles + 1) * units // tiles
            _prepare(run, min(begun, len(run.units)) + norm_rope.STAGES, units)
            if run.is_bounded:
                bounded_softmax.score(run.plan, run.tiles[ahead])
            else:
                row = run.tiles[ahead].block.row
                row.query_t = row.head.query_t
                flash.score(run.plan, run.tiles[ahead])
        if run.is_bounded:
            bounded_softmax.advance(run.plan, run.tiles, step)
        else:
            flash.advance(run.plan, run.tiles, step)


def _prepare(run: NormRopeLaunch, until: int, per_head: int) -> None:
    """Run the prologue's pipeline up to tick `until`; at each tick, every stage works on the next unit."""
    while run.ticks < until:
        tick = run.ticks
        run.ticks = tick + 1
        if tick % per_head == 0 and tick < len(run.units):
            head = run.heads[tick // per_head]
            head.key_t = nl.ndarray(run.tables.cos_q.shape, run.plan.dtype, buffer=nl.sbuf)
            head.query_t = nl.ndarray(run.tables.cos_q.shape, run.plan.dtype, buffer=nl.sbuf)
        if tick % per_head == per_head - 1 and tick < len(run.units):
            _load_value(run, run.heads[tick // per_head])
            run.heads[tick // per_head] = None
        for back in range(norm_rope.STAGES):
            stage = norm_rope.STAGES - 1 - back
            if 0 <= tick - stage < len(run.units):
                norm_rope.run_stage(stage, run.units[tick - stage], run.tables.identity, run.interleaved)
        if 0 <= tick - norm_rope.STAGES + 1 < len(run.units):
            run.units[tick - norm_rope.STAGES + 1] = None


def _load_value(run: NormRopeLaunch, head: NormRopeHead) -> None:
    """Load V of a head, tile by tile, each part from the stream it lies in."""
    size = run.streams[0].v.shape[3]
    depth = 0
    for piece in run.key_tiles:
        depth = max(depth, piece[1])
    head.value = nl.ndarray((depth, len(run.key_tiles), size + 1), run.plan.dtype, buffer=nl.sbuf)
    nisa.memset(dst=head.value[:, :, size : size + 1], value=1.0, engine=nisa.engine.gpsimd)
    for at in range(len(run.key_tiles)):
        start, rows = run.key_tiles[at]
        for stream in run.streams:
            first = max(start, stream.start)
            last = min(start + rows, stream.start + stream.size)
            if first < last:
                source = stream.v[head.batch, first - stream.start : last - stream.start, head.index, :]
                nisa.dma_copy(dst=head.value[first - start : last - start, at, :size], src=source)
