"""``nki.language`` as ``nl``: tensors, buffers, dtypes, loops, program ids and operator tokens (NKI 0.6 names)."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from . import dtypes, specs
from .dtypes import (
    DType,
    bfloat16,
    bool_,
    float4_e2m1fn_x4,
    float8_e4m3,
    float8_e4m3fn,
    float8_e4m3fn_x4,
    float8_e5m2,
    float8_e5m2_x4,
    float8_e8m0fnu,
    float16,
    float32,
    int8,
    int16,
    int32,
    tfloat32,
    uint8,
    uint16,
    uint32,
)
from .errors import HardwareLimit, fail
from .isa_move import dma_copy, memset
from .machine import current, running
from .ops import BY_NAME
from .storage import WRITTEN, MemoryRegion, Storage
from .tensor import NkiTensor

sbuf = MemoryRegion.sbuf
psum = MemoryRegion.psum
private_hbm = MemoryRegion.private_hbm
shared_hbm = MemoryRegion.shared_hbm
hbm = private_hbm

add, subtract, multiply = BY_NAME["add"], BY_NAME["subtract"], BY_NAME["multiply"]
maximum, minimum = BY_NAME["maximum"], BY_NAME["minimum"]
equal, not_equal = BY_NAME["equal"], BY_NAME["not_equal"]
greater, greater_equal = BY_NAME["greater"], BY_NAME["greater_equal"]
less, less_equal = BY_NAME["less"], BY_NAME["less_equal"]
logical_and, logical_or, logical_xor = BY_NAME["logical_and"], BY_NAME["logical_or"], BY_NAME["logical_xor"]
bitwise_and, bitwise_or, bitwise_xor = BY_NAME["bitwise_and"], BY_NAME["bitwise_or"], BY_NAME["bitwise_xor"]
invert, left_shift, right_shift = BY_NAME["invert"], BY_NAME["left_shift"], BY_NAME["right_shift"]
power, abs_max, abs_min = BY_NAME["power"], BY_NAME["abs_max"], BY_NAME["abs_min"]
abs = BY_NAME["abs"]
square, relu, rsqrt, reciprocal = BY_NAME["square"], BY_NAME["relu"], BY_NAME["rsqrt"], BY_NAME["reciprocal"]
copy, sigmoid, tanh, exp, log = BY_NAME["copy"], BY_NAME["sigmoid"], BY_NAME["tanh"], BY_NAME["exp"], BY_NAME["log"]
gelu, gelu_dx, gelu_apprx_tanh = BY_NAME["gelu"], BY_NAME["gelu_dx"], BY_NAME["gelu_apprx_tanh"]
gelu_apprx_sigmoid, gelu_apprx_sigmoid_dx = BY_NAME["gelu_apprx_sigmoid"], BY_NAME["gelu_apprx_sigmoid_dx"]
silu, silu_dx, softplus, mish = BY_NAME["silu"], BY_NAME["silu_dx"], BY_NAME["softplus"], BY_NAME["mish"]
erf, erf_dx, sin, arctan = BY_NAME["erf"], BY_NAME["erf_dx"], BY_NAME["sin"], BY_NAME["arctan"]
sqrt, sign, average, bypass = BY_NAME["sqrt"], BY_NAME["sign"], BY_NAME["average"], BY_NAME["bypass"]

__all__ = [
    "DType",
    "MemoryRegion",
    "NKIObject",
    "NkiTensor",
    "abs",
    "abs_max",
    "abs_min",
    "add",
    "affine_range",
    "arctan",
    "average",
    "bfloat16",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "bool_",
    "bypass",
    "copy",
    "ds",
    "empty_like",
    "equal",
    "erf",
    "erf_dx",
    "exp",
    "float4_e2m1fn_x4",
    "float8_e4m3",
    "float8_e4m3fn",
    "float8_e4m3fn_x4",
    "float8_e5m2",
    "float8_e5m2_x4",
    "float8_e8m0fnu",
    "float16",
    "float32",
    "full",
    "gelu",
    "gelu_apprx_sigmoid",
    "gelu_apprx_sigmoid_dx",
    "gelu_apprx_tanh",
    "gelu_dx",
    "greater",
    "greater_equal",
    "hbm",
    "int8",
    "int16",
    "int32",
    "invert",
    "is_hbm",
    "is_on_chip",
    "is_psum",
    "is_sbuf",
    "left_shift",
    "less",
    "less_equal",
    "load",
    "log",
    "logical_and",
    "logical_or",
    "logical_xor",
    "maximum",
    "minimum",
    "mish",
    "multiply",
    "ndarray",
    "not_equal",
    "num_programs",
    "ones",
    "power",
    "private_hbm",
    "program_id",
    "program_ndim",
    "psum",
    "reciprocal",
    "relu",
    "right_shift",
    "rsqrt",
    "sbuf",
    "sequential_range",
    "shared_hbm",
    "shared_identity_matrix",
    "sigmoid",
    "sign",
    "silu",
    "silu_dx",
    "sin",
    "softplus",
    "sqrt",
    "square",
    "static_range",
    "store",
    "subtract",
    "tanh",
    "tfloat32",
    "tile_size",
    "uint8",
    "uint16",
    "uint32",
    "zeros",
    "zeros_like",
]


class NKIObject:
    """Base class of kernels' configuration objects, which NKI treats like data classes.

    Class attributes are fields, annotated or not (``@dataclass`` on a subclass sees them too); the constructor takes
    them by position or keyword, then calls ``__post_init__`` if there is one.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = inspect.get_annotations(cls)
        plain = {k: Any for k, v in vars(cls).items() if k not in own and not k.startswith("__") and _is_field(v)}
        cls.__annotations__ = {**own, **plain}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fields = [n for c in reversed(type(self).__mro__) for n in inspect.get_annotations(c)]
        unknown = set(kwargs) - set(fields)
        if unknown or len(args) > len(fields):
            raise TypeError(f"{type(self).__name__} takes the fields {fields}, got {args} and {sorted(kwargs)}")
        given = {**dict(zip(fields, args, strict=False)), **kwargs}
        for name in fields:
            setattr(self, name, given.get(name, getattr(type(self), name, None)))
        post = getattr(self, "__post_init__", None)
        if post is not None:
            post()


def _is_field(value: Any) -> bool:
    return not callable(value) and not hasattr(value, "__get__") and getattr(value, "__hash__", None) is not None


class _TileSize:
    """Sizes of the running device (``nl.tile_size``); outside of a run, of trn2."""

    pmax = specs.PARTITIONS
    psum_bank_fmax = specs.PSUM_BANK_BYTES // 4
    psum_fmax = psum_bank_fmax
    psum_bank_fmax_bytes = specs.PSUM_BANK_BYTES
    psum_num_banks = specs.PSUM_BANKS
    gemm_stationary_fmax = specs.STATIONARY_FREE_MAX
    gemm_moving_fmax = specs.MOVING_FREE_MAX
    bn_stats_fmax = specs.BN_STATS_MAX
    psum_min_align = 4
    sbuf_min_align = 1

    @property
    def sbuf_fmax_bytes(self) -> int:
        """SBUF bytes per partition: the physical size; NKI reserves an unpublished part of it."""
        machine = running()
        device = specs.DEVICES["trn2"] if machine is None else machine.device
        return device.sbuf_partition_bytes

    @property
    def sbuf_fmax(self) -> int:
        """SBUF float32 elements per partition."""
        return self.sbuf_fmax_bytes // 4

    @property
    def sbuf_size_bytes(self) -> int:
        """SBUF bytes in all partitions."""
        return self.sbuf_fmax_bytes * specs.PARTITIONS

    @property
    def total_available_sbuf_size(self) -> int:
        """Deprecated name of :attr:`sbuf_fmax_bytes`."""
        return self.sbuf_fmax_bytes


tile_size = _TileSize()


def ndarray(
    shape: Any, dtype: Any, buffer: Any = sbuf, name: str = "", address: tuple[int, int] | None = None
) -> NkiTensor:
    """Allocate an unwritten tensor; ``address`` is ``(partition, byte)`` for a placement by hand.

    Raises ``dtype``, ``buffer``, ``on_chip_rank``, ``partition_count``, ``sbuf_capacity``, ``psum_capacity``, ``lnc``.
    """
    found = dtypes.of(dtype)
    if found is None:
        fail(HardwareLimit.DTYPE, "ndarray", f"{dtype!r} is no NKI dtype")
    if not isinstance(buffer, MemoryRegion):
        fail(HardwareLimit.BUFFER, "ndarray", f"buffer={buffer!r} is no nl buffer")
    return current().allocate(shape, found, buffer, name, address)


def full(shape: Any, fill_value: float, dtype: Any, buffer: Any = sbuf, name: str = "") -> NkiTensor:
    """Allocate an on-chip tensor and ``memset`` it to ``fill_value``."""
    tensor = ndarray(shape, dtype, buffer, name)
    memset(tensor, fill_value)
    return tensor


def zeros(shape: Any, dtype: Any, buffer: Any = sbuf, name: str = "") -> NkiTensor:
    """Allocate an on-chip tensor of zeros."""
    return full(shape, 0, dtype, buffer, name)


def ones(shape: Any, dtype: Any, buffer: Any = sbuf, name: str = "") -> NkiTensor:
    """Allocate an on-chip tensor of ones."""
    return full(shape, 1, dtype, buffer, name)


def zeros_like(x: NkiTensor, dtype: Any = None, buffer: Any = None, name: str = "") -> NkiTensor:
    """Allocate zeros shaped like ``x``."""
    return zeros(x.shape, dtype or x.dtype, buffer or x.buffer, name)


def empty_like(x: NkiTensor, dtype: Any = None, buffer: Any = None, name: str = "") -> NkiTensor:
    """Allocate an unwritten tensor shaped like ``x``."""
    return ndarray(x.shape, dtype or x.dtype, buffer or x.buffer, name)


def shared_identity_matrix(n: int, dtype: Any = uint8, dst: NkiTensor | None = None) -> NkiTensor:
    """Return an ``(n, n)`` identity in SBUF, loaded by DMA from a constant in HBM."""
    machine, found = current(), dtypes.of(dtype)
    if found is None:
        fail(HardwareLimit.DTYPE, "shared_identity_matrix", f"{dtype!r} is no NKI dtype")
    storage = Storage((n, n), found, private_hbm, "identity", "")
    storage.adopt(np.eye(n, dtype=np.float32).astype(found.np) if machine.numerics else None, machine.options.precise)
    storage.uniform = WRITTEN
    out = ndarray((n, n), found, sbuf, "identity") if dst is None else dst
    dma_copy(out, NkiTensor.whole(storage))
    return out


def load(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Copy an HBM tensor into a new SBUF tile (wrapper over ``dma_copy``)."""
    out = ndarray(src.shape, dtype or src.dtype, sbuf)
    dma_copy(out, src)
    return out


def store(dst: NkiTensor, value: NkiTensor) -> None:
    """Copy an SBUF tile to HBM (wrapper over ``dma_copy``)."""
    dma_copy(dst, value)


def ds(start: int, size: int) -> slice:
    """Return the slice ``start:start+size``."""
    return slice(start, start + size)


def affine_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """Return a plain range (an alias since NKI 0.2)."""
    return range(start) if stop is None else range(start, stop, step)


sequential_range = affine_range
static_range = affine_range


def program_id(axis: int = 0) -> int:
    """Return this core's index in the launch grid."""
    if axis != 0:
        fail(HardwareLimit.LNC, "program_id", f"axis {axis}; launch grids have one axis")
    return current().program


def num_programs(axes: int = 0) -> int:
    """Return the number of cores in the launch grid."""
    if axes not in (0, None):
        fail(HardwareLimit.LNC, "num_programs", f"axes {axes}; launch grids have one axis")
    return current().programs


def program_ndim() -> int:
    """Return the number of grid axes: 0 when launched without a grid."""
    return 1 if current().programs > 1 else 0


def is_hbm(buffer: Any) -> bool:
    """Return whether ``buffer`` is HBM."""
    return buffer in (private_hbm, shared_hbm)


def is_on_chip(buffer: Any) -> bool:
    """Return whether ``buffer`` is SBUF or PSUM."""
    return buffer in (sbuf, psum)


def is_psum(buffer: Any) -> bool:
    """Return whether ``buffer`` is PSUM."""
    return buffer is psum


def is_sbuf(buffer: Any) -> bool:
    """Return whether ``buffer`` is SBUF."""
    return buffer is sbuf
