"""NKI kernels of the contract tests."""

import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def scaled(x, factor: float = 2.0, out_dtype=None):
    """x [P, N] times a number, P even, up to 128; each core does its rows."""
    out = nl.ndarray(x.shape, x.dtype if out_dtype == None else out_dtype, buffer=nl.shared_hbm)  # noqa: E711
    rows = x.shape[0] // nl.num_programs(axes=0)
    start = rows * nl.program_id(axis=0)
    tile = nl.ndarray((rows, x.shape[1]), x.dtype, buffer=nl.sbuf)
    result = nl.ndarray((rows, x.shape[1]), out.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x[start : start + rows, :])
    nisa.tensor_scalar(dst=result, data=tile, op0=nl.multiply, operand0=factor)
    nisa.dma_copy(dst=out[start : start + rows, :], src=result)
    return out
