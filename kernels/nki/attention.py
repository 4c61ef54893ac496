"""Flash attention: softmax(scale * q k^T + mask) v, bidirectional or causal, for any sequence lengths.

Shapes: q [B, S, H, D] ("bshd") or [B, H, S, D] ("bhsd"); k, v likewise with L and Hkv, H a multiple of Hkv; v may have
a head size of its own; mask [S, L] or [B, 1 or H, S, L] added to the scaled scores, each axis also 1; result in
`out_layout`, dtype of q. float32, bfloat16, float16; head sizes up to 128; scale above 0. K^T and V of two heads stay
in SBUF: L up to about 20,000 at two bytes an element, 10,000 at four.

Tiling and numbers: see `flash`. Masked keys: additive values of -1e29 * scale and below, -inf among them, remove a
key, and rows that lose all their keys give 0. Causal queries i see the keys 0..i. Two cores share KV heads, or query
tiles when the number of KV heads is odd.
"""

import nki
import nki.isa as nisa
import nki.language as nl
from fluxrewrite.kernels.nki import flash

PREFETCH = 6  # tiles between the load of a mask and its use
CHUNK = 512  # rows loaded at a time: the first scores start before all of K has arrived


class Head(nl.NKIObject):
    """K^T [D, L] and V with a column of ones [128, ceil(L / 128), Dv + 1] of one KV head, in SBUF."""

    loaded = False
    key_t = None
    value = None


class Launch(nl.NKIObject):
    """The arguments, and the queries in SBUF: chunk `chunk` of head (`batch`, `head`)."""

    q = None
    k = None
    v = None
    layout = "bhsd"
    plan = None
    batch = -1
    head = -1
    chunk = -1
    query_t = None


@nki.jit
def attention(
    q: nl.NkiTensor,
    k: nl.NkiTensor,
    v: nl.NkiTensor,
    mask: nl.NkiTensor = None,
    scale: float = 1.0,
    is_causal: bool = False,
    layout: str = "bhsd",
    out_layout: str = "bhsd",
) -> nl.NkiTensor:
    """Return the attention of all query heads; `mask` may be None."""
    length, heads = _sizes(q, layout)
    dv = v.shape[3]
    shape = (q.shape[0], length, heads, dv) if out_layout == "bshd" else (q.shape[0], heads, length, dv)
    out = nl.ndarray(shape, q.dtype, buffer=nl.shared_hbm)
    masked = mask != None  # noqa: E711 - the front end of NKI 0.6 does not parse `is`
    plan = flash.TilePlan(dtype=q.dtype, scale=scale, masked=masked, causal=is_causal)
    flash.tune(plan)
    flash.constants(plan)
    run = Launch(q=q, k=k, v=v, layout=layout, plan=plan)
    cores, core = nl.num_programs(axes=0), nl.program_id(axis=0)
    kv_heads = _sizes(k, layout)[1]
    queries = flash.pieces(length, flash.ROWS)
    jobs = []
    for batch in range(q.shape[0]):
        for kv in range(kv_heads):
            jobs.append((batch, kv))
    if len(jobs) % cores == 0:
        jobs = flash.share(jobs, core, cores)
    else:
        queries = flash.share(queries, core, cores)
    tiles = []
    for job in jobs:
        shared = Head()
        for h in range(job[1] * heads // kv_heads, (job[1] + 1) * heads // kv_heads):
            place = _sequence(out, out_layout, job[0], h)
            tiles.extend(_tiles(run, shared, (job[0], job[1], h), queries, mask, place))
    _drive(run, tiles)
    return out


def _sizes(tensor: nl.NkiTensor, layout: str) -> tuple:
    """Return the sequence length and the number of heads."""
    if layout == "bshd":
        return tensor.shape[1], tensor.shape[2]
    return tensor.shape[2], tensor.shape[1]


def _sequence(tensor: nl.NkiTensor, layout: str, batch: int, head: int) -> nl.NkiTensor:
    """Return the [S, D] view of one head."""
    if layout == "bshd":
        return tensor[batch, :, head, :]
    return tensor[batch, head, :, :]


def _tiles(run: Launch, shared: Head, source: tuple, queries: list, mask: nl.NkiTensor, place: nl.NkiTensor) -> list:
    """Return the tiles of one query head; `source` is its (batch, KV head, head), `place` its result."""
    keys = _sizes(run.k, run.layout)[0]
    tiles = []
    for piece in queries:
        start, rows = piece
        row = flash.QueryTile(head=shared, rows=rows, start=start, source=source, out=place[start : start + rows, :])
        seen = min(keys, start + rows) if run.plan.causal else keys
        if run.plan.masked:
            row.mask = _mask_rows(mask, source, start, rows, seen)
        tiles.extend(flash.tiles_of(run.plan, row, seen))
    return tiles


def _mask_rows(mask: nl.NkiTensor, source: tuple, start: int, rows: int, keys: int) -> nl.NkiTensor:
    """Return the [rows, keys] view of an additive mask, broadcast axes repeated."""
    if len(mask.shape) == 4:
        batch = source[0] if mask.shape[0] > 1 else 0
        head = source[2] if mask.shape[1] > 1 else 0
        mask = mask[batch, head, :, :]
    mask = mask[start : start + rows, :] if mask.shape[0] > 1 else mask[0:1, :].broadcast(0, rows)
    return mask[:, :keys] if mask.shape[1] > 1 else mask.broadcast(1, keys)


def _drive(run: Launch, tiles: list) -> None:
    """Run the pipeline over all tiles."""
    plan = run.plan
    count = len(tiles)
    flash.schedule(plan, tiles)
    for step in range(1 - plan.look - PREFETCH, count + plan.lag + 2):
        ahead = step + plan.look - 1
        if plan.masked and ahead + PREFETCH < count:
            flash.fetch_mask(plan, tiles[ahead + PREFETCH])
        if 0 <= ahead < count:
            if tiles[ahead].opens and tiles[ahead].block.is_first:
                _open(run, tiles[ahead].block.row)
            flash.score(plan, tiles[ahead])
        flash.advance(plan, tiles, step)


def _open(run: Launch, row: flash.QueryTile) -> None:
    """Load what earlier rows have not: the row's chunk of queries, then its keys and values."""
    batch, kv, head = row.source
    chunk = row.start // CHUNK
    if run.batch != batch or run.head != head or run.chunk != chunk:
        source = _sequence(run.q, run.layout, batch, head)
        last = min((chunk + 1) * CHUNK, source.shape[0])
        run.query_t = _load_transposed(source[chunk * CHUNK : last, :])
        run.batch = batch
        run.head = head
        run.chunk = chunk
    row.query_t = run.query_t
    row.first = row.start - chunk * CHUNK
    if not row.head.loaded:
        row.head.loaded = True
        row.head.key_t = _load_transposed(_sequence(run.k, run.layout, batch, kv))
        row.head.value = _load_value(_sequence(run.v, run.layout, batch, kv))


def _load_transposed(source: nl.NkiTensor) -> nl.NkiTensor:
    """Return source [n, D] from HBM as [D, n] in SBUF."""
    n, d = source.shape
    result = nl.ndarray((d, n), source.dtype, buffer=nl.sbuf)
    if source.dtype == nl.float32:
        # DMA transposes two-byte elements; wider ones go through the Tensor engine.
        for piece in flash.pieces(n, flash.ROWS):
            start, rows = piece
            tile = nl.ndarray((rows, d), source.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile, src=source[start : start + rows, :])
            transposed = nl.ndarray((d, rows), source.dtype, buffer=nl.psum)
            nisa.nc_transpose(dst=transposed, data=tile, engine=nisa.engine.tensor)
            nisa.tensor_copy(dst=result[:, start : start + rows], src=transposed, engine=nisa.engine.vector)
    else:
        for piece in flash.pieces(n, CHUNK):
            start, rows = piece
            nisa.dma_transpose(dst=result[:, start : start + rows], src=source[start : start + rows, :], axes=(1, 0))
    return result


def _load_value(source: nl.NkiTensor) -> nl.NkiTensor:
    """Return source [L, Dv] as [128, chunks, Dv + 1], keys on partitions, ones in the last column."""
    length, d = source.shape
    full_chunks = length // flash.ROWS
    value = nl.ndarray(
        (min(length, flash.ROWS), flash.ceil_div(length, flash.ROWS), d + 1), source.dtype, buffer=nl.sbuf
    )
    nisa.memset(dst=value[:, :, d : d + 1], value=1.0, engine=nisa.engine.gpsimd)
    for piece in flash.pieces(full_chunks, CHUNK // flash.ROWS):
        at, count = piece
        rows = source[at * flash.ROWS : (at + count) * flash.ROWS, :]
        rows = rows.reshape_dim(0, (count, flash.ROWS)).permute((1, 0, 2))
        nisa.dma_copy(dst=value[:, at : at + count, :d], src=rows)
    if full_chunks * flash.ROWS < length:
        rest = length - full_chunks * flash.ROWS
        nisa.dma_copy(dst=value[:rest, full_chunks, :d], src=source[full_chunks * flash.ROWS :, :])
    return value
