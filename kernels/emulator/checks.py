"""Checks that several instructions share. Each refuses with :class:`EmulationError`."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import dtypes
from .enums import engine as engine_enum
from .errors import HardwareLimit, fail
from .machine import Machine, load
from .ops import AluOp
from .specs import FREE_DIMS_MAX, PARTITIONS
from .storage import MemoryRegion
from .tensor import NkiTensor
from .timeline import Engine

PSUM = MemoryRegion.psum
SBUF = MemoryRegion.sbuf


def need_tensor(view: Any, ins: str, role: str) -> NkiTensor:
    """Refuse what is not an ``NkiTensor``."""
    if not isinstance(view, NkiTensor):
        fail(HardwareLimit.OPERAND, ins, f"{role} must be a tensor, got {type(view).__name__}")
    return view


def on_chip(view: Any, ins: str, role: str, only: MemoryRegion | None = None) -> NkiTensor:
    """Check an SBUF/PSUM operand: memory, partition count, start and step, free dimensions."""
    tensor = need_tensor(view, ins, role)
    storage = tensor.storage
    if not storage.on_chip or (only is not None and storage.buffer is not only):
        allowed = "SBUF or PSUM" if only is None else only.name.upper()
        fail(HardwareLimit.BUFFER, ins, f"{role} is in {storage.buffer.name}; it must be in {allowed}")
    if tensor.is_whole and storage.address is None and tensor.ndim <= FREE_DIMS_MAX + 1:
        return tensor
    partitions = tensor.shape[0]
    if partitions > PARTITIONS:
        fail(HardwareLimit.PARTITION_COUNT, ins, f"{role} has {partitions} partitions; the limit is {PARTITIONS}")
    consecutive_partitions(tensor, ins, role)
    check_start(tensor, ins, role, partitions)
    if tensor.ndim > 2:
        free = tensor.runs()
        if len(free) > FREE_DIMS_MAX:
            text = f"{role} {list(tensor.shape)} needs {len(free)} free dimensions; the limit is {FREE_DIMS_MAX}"
            fail(HardwareLimit.FREE_DIMS, ins, text)
    return tensor


def consecutive_partitions(tensor: NkiTensor, ins: str, role: str) -> None:
    """Refuse an on-chip access that does not step through partitions one by one."""
    if tensor.shape[0] > 1 and tensor.strides[0] != tensor.row_size:
        step = tensor.strides[0] / tensor.row_size
        fail(
            HardwareLimit.PARTITION_STEP, ins, f"{role} steps through partitions by {step:g}; they must be consecutive"
        )


def check_start(tensor: NkiTensor, ins: str, role: str, partitions: int) -> None:
    """Check the partition-start rule: >64 at 0; 33-64 at 0/64; <=32 at 0/32/64/96."""
    start = tensor.start_partition
    step = 128 if partitions > 64 else 64 if partitions > 32 else 32
    if start % step or start + partitions > PARTITIONS:
        allowed = {128: "0", 64: "0 or 64", 32: "0, 32, 64 or 96"}[step]
        text = f"{role} has {partitions} partitions from partition {start}; it must start at {allowed}"
        fail(HardwareLimit.PARTITION_START, ins, text)


def same_elements(ins: str, a: NkiTensor, a_role: str, b: NkiTensor, b_role: str) -> None:
    """Refuse operands whose partition or per-partition element counts differ."""
    if a.shape == b.shape:
        return
    if a.shape[0] != b.shape[0]:
        text = f"{a_role} has {a.shape[0]} partitions, {b_role} has {b.shape[0]}"
        fail(HardwareLimit.PARTITION_COUNT, ins, text)
    if a.free_elements != b.free_elements:
        text = (
            f"{a_role} {list(a.shape)} has {a.free_elements} elements per partition, {b_role} {list(b.shape)} has "
            f"{b.free_elements}; nothing is broadcast"
        )
        fail(HardwareLimit.SHAPE, ins, text)


def not_both_psum(ins: str, a: NkiTensor, a_role: str, b: NkiTensor, b_role: str) -> None:
    """Refuse two inputs in PSUM."""
    if a.buffer is PSUM and b.buffer is PSUM:
        fail(HardwareLimit.BOTH_PSUM, ins, f"{a_role} and {b_role} are both in PSUM; one must be in SBUF")


def same_start(ins: str, a: NkiTensor, a_role: str, b: NkiTensor, b_role: str) -> None:
    """Refuse two SBUF inputs that start at different partitions."""
    if a.buffer is SBUF and b.buffer is SBUF and a.start_partition != b.start_partition:
        text = (
            f"{a_role} starts at partition {a.start_partition}, {b_role} at {b.start_partition}; SBUF inputs must agree"
        )
        fail(HardwareLimit.OPERAND_PARTITION, ins, text)


def pick_engine(
    ins: str, chosen: Any, default: Engine, allowed: tuple[Engine, ...], views: tuple[NkiTensor, ...]
) -> Engine:
    """Return the engine to use; refuses one that cannot run the instruction or reach its operands."""
    if chosen is None or chosen is engine_enum.unknown:
        engine = default
    elif isinstance(chosen, engine_enum):
        names = {e.value: e for e in Engine}
        if chosen.name not in names or names[chosen.name] not in allowed:
            options = ", ".join(e.value for e in allowed)
            fail(HardwareLimit.ENGINE, ins, f"engine {chosen.name} cannot run it; {options} can")
        engine = names[chosen.name]
    else:
        fail(HardwareLimit.ENGINE, ins, f"engine={chosen!r} is no nisa.engine")
    if engine is Engine.GPSIMD and any(v.buffer is PSUM for v in views):
        fail(HardwareLimit.GPSIMD_PSUM, ins, "GpSimd cannot reach PSUM, where an operand lies")
    return engine


def scalar_operand(
    ins: str, value: Any, data: NkiTensor, role: str, types: frozenset[Any] | None = frozenset({dtypes.float32})
) -> NkiTensor | None:
    """Check a constant or (P, 1) tile operand (``types`` None: any but tfloat32); returns the tile, if it is one."""
    if isinstance(value, NkiTensor):
        tile = on_chip(value, ins, role)
        if tile.shape[0] != data.shape[0] or tile.free_elements != 1:
            fail(HardwareLimit.OPERAND, ins, f"{role} has shape {list(tile.shape)}; it must be ({data.shape[0]}, 1)")
        if (types is None and tile.dtype == dtypes.tfloat32) or (types is not None and tile.dtype not in types):
            wanted = "any type but tfloat32" if types is None else " or ".join(sorted(types))
            fail(HardwareLimit.OPERAND, ins, f"{role} tile is {tile.dtype}; it must be {wanted}")
        return tile
    if not isinstance(value, int | float | np.integer | np.floating):
        fail(HardwareLimit.OPERAND, ins, f"{role}={value!r} must be a constant or a (P, 1) tile")
    return None


def scalar_values(value: Any) -> Any:
    """Return an operand as float32: a number, or a (P, 1) array."""
    return load(value) if isinstance(value, NkiTensor) else np.float32(value)


def integer_types(ins: str, *views: NkiTensor) -> None:
    """Refuse operands of bitwise operators that are not integers."""
    for view in views:
        if view.dtype.kind not in "iu":
            fail(HardwareLimit.DTYPE, ins, f"bitwise operators need integer tiles; {view!r} is {view.dtype}")


def need_generation(machine: Machine, ins: str, generation: int) -> None:
    """Refuse an instruction that an older NeuronCore lacks."""
    if machine.generation < generation:
        text = f"needs NeuronCore-v{generation} or newer; {machine.device.name} is v{machine.generation}"
        fail(HardwareLimit.ARCH, ins, text)


def apply(op: AluOp, left: Any, right: Any, reverse: bool) -> Any:
    """Apply a binary or unary ALU operator in float32; unary ones ignore ``right``."""
    with np.errstate(all="ignore"):
        if op.binary is None:
            assert op.unary is not None
            return op.unary(left)
        return op.binary(right, left) if reverse else op.binary(left, right)
