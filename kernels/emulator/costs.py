"""Cycles per instruction.

Source, unless a function says otherwise: per-instruction cost tables of the NKI API documentation at SDK 2.26 (NKI
"Beta 1"), the last that were published. N is elements per partition, P partitions. Vector-engine performance modes of
NeuronCore-v3 and later: ``nki/guides/architecture/trainium2_arch.rst`` (SDK 2.32). The tables price a stand-alone
instruction at full rate; semaphore waits between engines are not in them and are not modelled.
"""

from __future__ import annotations

from .dtypes import BF16_FP16, WIDE
from .specs import STATIONARY_FREE_MAX
from .storage import MemoryRegion
from .tensor import NkiTensor

MIN_INTERVAL = 64  # minimum initiation interval of an instruction, cycles
ACCUMULATOR_READ = 64  # reading out the accumulator registers
GPSIMD_SETUP = 150  # iota, affine_select
FP32_PASSES = 4  # TensorE passes for float32 operands
GPSIMD_RSQRT = 4  # rsqrt on GpSimd against ScalarE (nki.api.shared.rst, SDK 2.32)
RECIPROCAL = 8  # VectorE reciprocal (nki.api.shared.rst, SDK 2.32)
EXPONENTIAL_RATE = 4  # VectorE exponential against ScalarE exp on trn3 (trainium3_arch.rst, SDK 2.32)


def plain(n: float) -> float:
    """Return ``max(64, N)``: one streamed input."""
    return max(MIN_INTERVAL, n)


def matmul(stationary: int, moving: int, passes: int = 1) -> float:
    """Return ``max(min(64, N_stationary), N_moving)`` times the passes (4 for fp32)."""
    return max(min(MIN_INTERVAL, stationary), moving) * passes


def passes(*dtypes: str, onezero: bool = False) -> int:
    """Return the TensorE passes for operand types; a ones/zeros hint halves those of float32."""
    if not any(d in WIDE for d in dtypes):
        return 1
    return FP32_PASSES // 2 if onezero else FP32_PASSES


def tensor_transpose(partitions: int, free: int, wide: int = 1) -> float:
    """Return ``max(P, min(64, F))``; float32 data take four passes as in any matmul."""
    return max(partitions, min(MIN_INTERVAL, free)) * wide


def _fast(views: tuple[NkiTensor, ...]) -> bool:
    return all(v.dtype in BF16_FP16 for v in views)


def _in_sbuf(views: tuple[NkiTensor, ...]) -> bool:
    return all(v.buffer is MemoryRegion.sbuf for v in views)


def _inner_contiguous(view: NkiTensor) -> bool:
    return view.shape[-1] == 1 or view.strides[-1] == 1


def one_input(generation: int, vector: bool, data: NkiTensor, dst: NkiTensor) -> float:
    """Return the cost of tensor_copy and tensor_scalar: N; on VectorE-v3+ N/4 or N/2 for 2-byte floats."""
    n = data.free_elements
    views = (data, dst)
    if not vector or generation < 3 or not _fast(views):
        return plain(n)
    contiguous = all(_inner_contiguous(v) for v in views)
    if _in_sbuf(views):
        return plain(n / 4 if contiguous else n / 2)
    mixed = sum(v.buffer is MemoryRegion.psum for v in views) == 1
    return plain(n / 2 if contiguous and mixed else n)


def two_inputs(generation: int, vector: bool, a: NkiTensor, b: NkiTensor, dst: NkiTensor, light: bool) -> float:
    """Return the cost of tensor_tensor: 2N, or N with an input in PSUM or for bf16 add/subtract/multiply in SBUF.

    VectorE-v3+ has a performance mode of twice the v2 rate when the inputs are in SBUF and all is bf16/fp16.
    """
    n = a.free_elements
    if not _in_sbuf((a, b)):
        return plain(n)
    small = all(v.dtype == "bfloat16" and v.is_contiguous() and v.buffer is MemoryRegion.sbuf for v in (a, b, dst))
    cycles = float(n if small and light else 2 * n)
    if vector and generation >= 3 and _fast((a, b, dst)):
        cycles = min(cycles, n)
    return plain(cycles)


def scalar_tensor_tensor(data: NkiTensor, other: NkiTensor, dst: NkiTensor, subtract_multiply: bool) -> float:
    """Return 2N, or N for the bf16 subtract + multiply special case with even N."""
    n = data.free_elements
    special = subtract_multiply and n % 2 == 0 and all(v.dtype == "bfloat16" for v in (data, other, dst))
    return plain(n if special else 2 * n)


def tensor_reduce(data: NkiTensor, dst: NkiTensor, light: bool) -> float:
    """Return N, or N/2 for bf16 in and out with add or maximum."""
    n = data.free_elements
    return plain(n / 2 if light and data.dtype == dst.dtype == "bfloat16" else n)


def memset(dst: NkiTensor, zero: bool) -> float:
    """Return N, or N/2 for zeros of 2-byte types."""
    n = dst.free_elements
    return plain(n / 2 if zero and dst.dtype.itemsize == 2 else n)


def bn_aggr(n: int) -> float:
    """Return ``13 * N / 3``."""
    return plain(13 * n / 3)


def partition_reduce(partitions: int, n: int) -> float:
    """Return GpSimd cycles of tensor_partition_reduce: set-up plus N per 32-partition step (assumption: no table)."""
    return GPSIMD_SETUP + n * -(-partitions // 32)


ARRAY_ROWS = STATIONARY_FREE_MAX
