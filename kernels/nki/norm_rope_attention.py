"""RMSNorm of q and k, rotary embedding, joint concatenation and bidirectional attention in one call.

Shapes: one or two streams, each raw q, k, v [B, S_i, H, D] with norm weights [D] for q and k; cos, sin [S, D] over the
joined sequence, S = S_0 + S_1, stream 0 first; result [B, S, H, D], or [B, S, H * D] when `flat`. D 64 or 128; float32,
bfloat16, float16 (cos, sin and norm weights any float type). Tables (16 bytes a token and partition), q^T, k^T and V of
two heads stay in SBUF: S up to about 6,000 at two bytes an element, 4,000 at four.

Nothing but inputs and output touches HBM: see `prologue` for norm and rotary embedding. Attention is that of `flash`,
with a running maximum, for any input; or, if the caller promises that no score can exceed `bounded.LIMIT`, that of
`bounded`. The promise follows from the weights alone: |q| <= sqrt(D) * max|gamma_q|, and rotation keeps the norm, so
scale * D * max|gamma_q| * max|gamma_k| over all streams <= 80 suffices. Two cores share heads, or queries when the
number of heads is odd.
"""

import nki
import nki.isa as nisa
import nki.language as nl
from fluxrewrite.kernels.nki import bounded, flash, prologue


class Head(nl.NKIObject):
    """One head: q^T and k^T [D, S], V beside a column of ones [128, tiles, D + 1]."""

    batch = 0
    index = 0
    key_t = None
    query_t = None
    value = None


class Plan(nl.NKIObject):
    """What the launch has in common beside `flash.Plan`."""

    dtype = nl.float32
    weight_dtype = nl.float32
    scale = 1.0
    look = 5


def _key_tiles(streams, joined):
    """Return (first column, keys) of the tiles of V: 128 keys of the joined sequence, or of one stream."""
    if joined:
        return flash.pieces(streams[-1].start + streams[-1].size, flash.ROWS)
    tiles = []
    for stream in streams:
        parts = flash.pieces(stream.size, flash.ROWS)
        for start, rows in parts:
            tiles.append((stream.start + start, rows))
    return tiles


def _load_value(streams, head, tiles):
    """Load V of a head, tile by tile, each part from the stream it lies in."""
    size = streams[0].v.shape[3]
    head.value = nl.ndarray((min(flash.ROWS, max(t[1] for t in tiles)), len(tiles), size + 1), streams[0].v.dtype, buffer=nl.sbuf)
    nisa.memset(dst=head.value[:, :, size : size + 1], value=1.0, engine=nisa.engine.gpsimd)
    for at in range(len(tiles)):
        start, rows = tiles[at]
        for stream in streams:
            first = max(start, stream.start)
            last = min(start + rows, stream.start + stream.size)
            if first < last:
                source = stream.v[head.batch, first - stream.start : last - stream.start, head.index, :]
                nisa.dma_copy(dst=head.value[first - start : last - start, at, :size], src=source)


def _streams(q0, k0, v0, gamma_q0, gamma_k0, eps_q0, eps_k0):
    first = prologue.Stream(q=q0, k=k0, v=v0, gamma_q=gamma_q0, gamma_k=gamma_k0, eps_q=eps_q0, eps_k=eps_k0)
    first.size = q0.shape[1]
    return first


@nki.jit
def norm_rope_attention(
    q0,
    k0,
    v0,
    gamma_q0,
    gamma_k0,
    q1,
    k1,
    v1,
    gamma_q1,
    gamma_k1,
    cos,
    sin,
    scale,
    eps_q0=1e-6,
    eps_k0=1e-6,
    eps_q1=1e-6,
    eps_k1=1e-6,
    two_streams=True,
    interleaved=True,
    is_bounded=False,
    flat=False,
):
    """Attention over the joined sequence; without `two_streams` the arguments of stream 1 are not looked at."""
    streams = [_streams(q0, k0, v0, gamma_q0, gamma_k0, eps_q0, eps_k0)]
    if two_streams:
        other = _streams(q1, k1, v1, gamma_q1, gamma_k1, eps_q1, eps_k1)
        other.start = streams[0].size
        streams.append(other)
    batches, _, heads, size = q0.shape
    total = cos.shape[0]
    shape = (batches, total, heads * size) if flat else (batches, total, heads, size)
    out = nl.ndarray(shape, q0.dtype, buffer=nl.shared_hbm)
    tables = prologue.make_tables(streams, cos, sin, interleaved)
    cores, core = nl.num_programs(axes=0), nl.program_id(axis=0)
    jobs = [(b, h) for b in range(batches) for h in range(heads)]
    by_heads = len(jobs) % cores == 0
    if by_heads:
        jobs = jobs[core * len(jobs) // cores : (core + 1) * len(jobs) // cores]
    group = bounded.GROUP if is_bounded else flash.ROWS
    queries = flash.pieces(total, group)
    if not by_heads:
        queries = queries[core * len(queries) // cores : (core + 1) * len(queries) // cores]
    run = Launch(streams=streams, tables=tables, interleaved=interleaved, is_bounded=is_bounded)
    run.key_tiles = _key_tiles(streams, not is_bounded)
    _plan(run, q0.dtype, scale)
    for batch, index in jobs:
        _add_head(run, Head(batch=batch, index=index), queries, out, flat)
    _run(run)
    return out


class Launch(nl.NKIObject):
    """The heads of this core, their units and tiles in order."""

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


def _plan(run, dtype, scale):
    if run.is_bounded:
        run.plan = Plan(dtype=dtype, scale=scale)
        # float16 ends at e^11.
        run.plan.weight_dtype = nl.bfloat16 if dtype == nl.float16 else dtype
    else:
        run.plan = flash.Plan(dtype=dtype, scale=scale)
        flash.tune(run.plan)
        run.plan.look = min(run.plan.look, 5)  # the prologue takes a bank
    run.heads = []
    run.units = []
    run.tiles = []


def _add_head(run, head, queries, out, flat):
    """Append the units and tiles of one head."""
    size = run.streams[0].q.shape[3]
    total = run.tables.cos_q.shape[1]
    run.heads.append(head)
    run.units.extend(prologue.units_of(run.streams, run.tables, head, head.batch, head.index, run.is_bounded))
    if flat:
        place = out[head.batch, :, head.index * size : (head.index + 1) * size]
    else:
        place = out[head.batch, :, head.index, :]
    for start, rows in queries:
        if run.is_bounded:
            group = bounded.Group(head=head, start=start, size=rows, view=place[start : start + rows, :])
            run.tiles.extend(bounded.slabs_of(group, run.key_tiles))
        else:
            row = flash.Row(head=head, start=start, first=start, rows=rows, out=place[start : start + rows, :])
            run.tiles.extend(flash.tiles_of(run.plan, row, total))


def _prepare(run, until):
    """Run the prologue's pipeline up to tick `until`: at each, every stage works on the unit whose turn it is."""
    per_head = len(run.units) // len(run.heads)
    size, total = run.tables.cos_q.shape
    while run.ticks < until:
        tick = run.ticks
        run.ticks = tick + 1
        if tick % per_head == 0 and tick < len(run.units):
            head = run.heads[tick // per_head]
            dtype = run.streams[0].q.dtype
            head.key_t = nl.ndarray((size, total), dtype, buffer=nl.sbuf)
            head.query_t = nl.ndarray((size, total), dtype, buffer=nl.sbuf)
            _load_value(run.streams, head, run.key_tiles)
            run.heads[tick // per_head] = None
        for back in range(prologue.STAGES):
            stage = prologue.STAGES - 1 - back
            if 0 <= tick - stage < len(run.units):
                prologue.run_stage(stage, run.units[tick - stage], run.tables.identity, run.interleaved)
                if stage == prologue.STAGES - 1:
                    run.units[tick - stage] = None


def _run(run):
    """Drive attention one step at a time, and the prologue of the next head at the pace that has it ready."""
    count = len(run.tiles)
    if not run.is_bounded:
        flash.schedule(run.plan, run.tiles)
    per_head = len(run.units) // max(len(run.heads), 1)
    per_head_tiles = count // max(len(run.heads), 1)
    for step in range(1 - run.plan.look, count + 10):
        ahead = step + run.plan.look - 1
        if ahead < count:
            at, within = ahead // per_head_tiles, ahead % per_head_tiles
            pace = (within + 1) * per_head // per_head_tiles
            _prepare(run, min((at + 1) * per_head + pace, len(run.units)) + prologue.STAGES)
            tile = run.tiles[ahead]
            if run.is_bounded:
                bounded.score(run.plan, tile)
            else:
                tile.block.row.query_t = tile.block.row.head.query_t
                flash.score(run.plan, tile)
        if run.is_bounded:
            bounded.advance(run.plan, run.tiles, step)
        else:
            flash.advance(run.plan, run.tiles, step)
