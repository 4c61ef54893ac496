"""Flash attention: softmax(scale * q k^T + mask) v, bidirectional or causal, for any sequence lengths.

Shapes: q [B, S, H, D] ("bshd") or [B, H, S, D] ("bhsd"); k, v likewise with L and Hkv, H a multiple of Hkv; mask [S, L]
or [B, 1 or H, S, L], each axis also 1; result in `out_layout`, dtype of q. float32, bfloat16, float16; D <= 128. K^T
and V of two heads stay in SBUF: L up to about 24,000 at two bytes an element, 12,000 at four.

Tiling and numbers: see `flash`. Masked keys: additive values of -1e29 * scale and below, -inf among them, take a
key out, and rows that lose all keys give 0; causal queries i see the keys 0..i. Two cores share heads, or query tiles
when the number of KV heads is odd.
"""

import nki
import nki.isa as nisa
import nki.language as nl
from fluxrewrite.kernels.nki import flash

GROUP = 512  # queries loaded at a time


class Head(nl.NKIObject):
    """K^T [D, L] and V beside a column of ones [128, ceil(L / 128), Dv + 1] of one KV head, in SBUF."""

    loaded = False
    key_t = None
    value = None


def _sequence(tensor, layout, batch, head):
    """Return the [S, D] view of one head."""
    if layout == "bshd":
        return tensor[batch, :, head, :]
    return tensor[batch, head, :, :]


def _load_transposed(source):
    """Return source [n, D] from HBM as [D, n] in SBUF."""
    n, d = source.shape
    result = nl.ndarray((d, n), source.dtype, buffer=nl.sbuf)
    if source.dtype == nl.float32:
        # DMA transposes two-byte elements; wider ones go through the Tensor engine.
        parts = flash.pieces(n, flash.ROWS)
        for start, rows in parts:
            tile = nl.ndarray((rows, d), source.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile, src=source[start : start + rows, :])
            turned = nl.ndarray((d, rows), source.dtype, buffer=nl.psum)
            nisa.nc_transpose(dst=turned, data=tile, engine=nisa.engine.tensor)
            nisa.tensor_copy(dst=result[:, start : start + rows], src=turned, engine=nisa.engine.vector)
    else:
        parts = flash.pieces(n, GROUP)
        for start, rows in parts:
            nisa.dma_transpose(dst=result[:, start : start + rows], src=source[start : start + rows, :], axes=(1, 0))
    return result


def _load_value(source):
    """Return source [L, Dv] as [128, chunks, Dv + 1], keys on partitions, ones in the last column."""
    length, d = source.shape
    chunks = flash.ceil_div(length, flash.ROWS)
    whole = length // flash.ROWS
    value = nl.ndarray((min(length, flash.ROWS), chunks, d + 1), source.dtype, buffer=nl.sbuf)
    nisa.memset(dst=value[:, :, d : d + 1], value=1.0, engine=nisa.engine.gpsimd)
    parts = flash.pieces(whole, GROUP // flash.ROWS)
    for at, count in parts:
        rows = source[at * flash.ROWS : (at + count) * flash.ROWS, :]
        rows = rows.reshape_dim(0, (count, flash.ROWS)).permute((1, 0, 2))
        nisa.dma_copy(dst=value[:, at : at + count, :d], src=rows)
    if whole < chunks:
        rest = length - whole * flash.ROWS
        nisa.dma_copy(dst=value[:rest, whole, :d], src=source[whole * flash.ROWS :, :])
    return value


def _mask_rows(mask, batch, head, start, rows, keys):
    """Return the [rows, keys] view of an additive mask, broadcast axes repeated."""
    if len(mask.shape) == 4:
        mask = mask[batch if mask.shape[0] > 1 else 0, head if mask.shape[1] > 1 else 0, :, :]
    mask = mask[start : start + rows, :] if mask.shape[0] > 1 else mask.broadcast(0, rows)
    return mask[:, :keys] if mask.shape[1] > 1 else mask.broadcast(1, keys)


@nki.jit
def attention(q, k, v, mask, scale, is_causal=False, layout="bhsd", out_layout="bhsd"):
    """Attention of every query head on one or two cores; `mask` may be None, `scale` is above 0."""
    seq, head = (1, 2) if layout == "bshd" else (2, 1)
    batches, length, heads, kv_heads = q.shape[0], q.shape[seq], q.shape[head], k.shape[head]
    keys, dv = k.shape[seq], v.shape[3]
    masked = mask != None  # noqa: E711 - the front end of NKI 0.6 does not parse `is`
    shape = (batches, length, heads, dv) if out_layout == "bshd" else (batches, heads, length, dv)
    out = nl.ndarray(shape, q.dtype, buffer=nl.shared_hbm)
    plan = flash.Plan(dtype=q.dtype, scale=scale, masked=masked, causal=is_causal)
    flash.tune(plan)
    flash.constants(plan)
    cores, core = nl.num_programs(axes=0), nl.program_id(axis=0)
    jobs = [(b, h) for b in range(batches) for h in range(kv_heads)]
    queries = flash.pieces(length, flash.ROWS)
    if len(jobs) % cores == 0:
        jobs = jobs[core * len(jobs) // cores : (core + 1) * len(jobs) // cores]
    else:
        queries = queries[core * len(queries) // cores : (core + 1) * len(queries) // cores]
    tiles = []
    for batch, kv in jobs:
        shared = Head()
        for h in range(kv * heads // kv_heads, (kv + 1) * heads // kv_heads):
            for start, rows in queries:
                row = flash.Row(head=shared, rows=rows, start=start)
                row.out = _sequence(out, out_layout, batch, h)[start : start + rows, :]
                seen = min(keys, start + rows) if is_causal else keys
                if masked:
                    row.mask = _mask_rows(mask, batch, h, start, rows, seen)
                row.source = (batch, kv, h)
                tiles.extend(flash.tiles_of(plan, row, seen))
    flash.schedule(plan, tiles)
    _run(plan, tiles, q, k, v, layout)
    return out


def _open(tile, q, k, v, layout, loaded):
    """Load what a tile is the first to need."""
    row = tile.block.row
    batch, kv, h = row.source
    group = row.start // GROUP
    if loaded["at"] != (batch, h, group):
        source = _sequence(q, layout, batch, h)
        first = group * GROUP
        loaded["tile"] = _load_transposed(source[first : min(first + GROUP, source.shape[0]), :])
        loaded["at"] = (batch, h, group)
    if not row.head.loaded:
        row.head.loaded = True
        row.head.key_t = _load_transposed(_sequence(k, layout, batch, kv))
        row.head.value = _load_value(_sequence(v, layout, batch, kv))
    row.query_t = loaded["tile"]
    row.first = row.start - group * GROUP


def _run(plan, tiles, q, k, v, layout):
    loaded = {"at": None, "tile": None}
    count = len(tiles)
    for step in range(1 - plan.look, count + plan.lag + 2):
        ahead = step + plan.look - 1
        if ahead < count:
            if tiles[ahead].opens and tiles[ahead].block.is_first:
                _open(tiles[ahead], q, k, v, layout, loaded)
            flash.score(plan, tiles[ahead])
        flash.advance(plan, tiles, step)
