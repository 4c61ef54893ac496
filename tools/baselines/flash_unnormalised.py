"""The attention loop that the first experiments with FLUX.2-klein used, as a baseline to measure against.

Blocks of 128 queries and 128 keys; a loop over heads, query blocks and key blocks. The scores of a block are computed
transposed (keys on partitions), so that exp of them is what the next product takes as it is; the products with V and the
sums of the weights add up in PSUM over all key blocks, and one division ends a query block. No maximum is subtracted:
scores above 88 overflow.

q, k, v [B, H, S, D], D up to 128, S a multiple of 128; result likewise.
"""

import nki
import nki.isa as nisa
import nki.language as nl

BLOCK = 128


@nki.jit
def flash_unnormalised(q: nl.NkiTensor, k: nl.NkiTensor, v: nl.NkiTensor, scale: float) -> nl.NkiTensor:
    """Return attention without the running maximum; two cores share the heads."""
    batches, heads, length, size = q.shape
    out = nl.ndarray(q.shape, q.dtype, buffer=nl.shared_hbm)
    ones = nl.ndarray((BLOCK, 1), q.dtype, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    cores, core = nl.num_programs(axes=0), nl.program_id(axis=0)
    for job in range(core, batches * heads, cores):
        batch, head = job // heads, job % heads
        key_t = _transposed(k[batch, head, :, :])
        query_t = _transposed(q[batch, head, :, :])
        value = nl.ndarray((BLOCK, length // BLOCK, size), v.dtype, buffer=nl.sbuf)
        source = v[batch, head, :, :].reshape_dim(0, (length // BLOCK, BLOCK)).permute((1, 0, 2))
        nisa.dma_copy(dst=value, src=source)
        for i in range(length // BLOCK):
            rows = query_t[:, i * BLOCK : (i + 1) * BLOCK]
            place = out[batch, head, i * BLOCK : (i + 1) * BLOCK, :]
            _query_block(rows, key_t, value, ones, scale, place)
    return out


def _transposed(source: nl.NkiTensor) -> nl.NkiTensor:
    """Return [S, D] from HBM as [D, S] in SBUF."""
    length, size = source.shape
    result = nl.ndarray((size, length), source.dtype, buffer=nl.sbuf)
    for i in range(length // BLOCK):
        rows = slice(i * BLOCK, (i + 1) * BLOCK)
        nisa.dma_transpose(dst=result[:, rows], src=source[rows, :], axes=(1, 0))
    return result


def _query_block(
    query_t: nl.NkiTensor,
    key_t: nl.NkiTensor,
    value: nl.NkiTensor,
    ones: nl.NkiTensor,
    scale: float,
    place: nl.NkiTensor,
) -> None:
    """Attention of 128 queries over all keys."""
    size = value.shape[2]
    total = nl.ndarray((BLOCK, size), nl.float32, buffer=nl.psum)
    sums = nl.ndarray((BLOCK, 1), nl.float32, buffer=nl.psum)
    for j in range(value.shape[1]):
        scores = nl.ndarray((BLOCK, BLOCK), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=scores, stationary=key_t[:, j * BLOCK : (j + 1) * BLOCK], moving=query_t, accumulate=False)
        weights = nl.ndarray((BLOCK, BLOCK), value.dtype, buffer=nl.sbuf)
        nisa.activation(dst=weights, op=nl.exp, data=scores, scale=scale)
        nisa.nc_matmul(dst=total, stationary=weights, moving=value[:, j, :], accumulate=j > 0)
        nisa.nc_matmul(dst=sums, stationary=weights, moving=ones, accumulate=j > 0)
    inverse = nl.ndarray((BLOCK, 1), nl.float32, buffer=nl.sbuf)
    nisa.reciprocal(dst=inverse, data=sums)
    done = nl.ndarray((BLOCK, size), value.dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=done, data=total, op0=nl.multiply, operand0=inverse)
    nisa.dma_copy(dst=place, src=done)
