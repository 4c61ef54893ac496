"""Index patterns and selection: iota, affine_select, range_select, select_reduce, partition reduction, shuffles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import accumulator, costs, dtypes
from .checks import (
    SBUF,
    apply,
    check_start,
    integer_types,
    need_generation,
    not_both_psum,
    on_chip,
    pick_engine,
    same_elements,
    scalar_operand,
    scalar_values,
)
from .enums import engine as engines
from .enums import reduce_cmd as commands
from .errors import HardwareLimit, fail
from .machine import current, load, raw, store
from .ops import BY_NAME, AluOp, need_op
from .specs import FREE_DIMS_MAX
from .tensor import NkiTensor
from .timeline import Engine

FP32_MIN = float(np.finfo(np.float32).min)
_COMPARE = tuple(BY_NAME[n] for n in ("equal", "less", "less_equal", "greater", "greater_equal"))
_ALL_COMPARE = (*_COMPARE, BY_NAME["not_equal"])
_EXACT_INDEX = 2**24
_PARTITION_OPS = tuple(BY_NAME[n] for n in ("add", "average", "maximum", "bitwise_or", "bitwise_and"))
_SELECT_COMMANDS = (commands.reset_reduce, commands.reduce)


def _check_pattern(ins: str, dst: NkiTensor, pattern: Any) -> None:
    if not pattern or len(pattern) > FREE_DIMS_MAX or any(len(p) != 2 for p in pattern):
        fail(HardwareLimit.PATTERN, ins, f"pattern {pattern}; it must hold one to four [step, num] pairs")
    count = int(np.prod([int(p[1]) for p in pattern]))
    if count != dst.free_elements:
        fail(
            HardwareLimit.PATTERN, ins, f"pattern {pattern} has {count} elements, dst {dst.free_elements} per partition"
        )


def _affine(partitions: int, pattern: Sequence[Sequence[int]], offset: int, multiplier: int) -> np.ndarray:
    row = np.zeros(1, np.int64)
    for step, num in pattern:
        row = (row[:, None] + np.arange(num, dtype=np.int64) * step).reshape(-1)
    values = offset + np.arange(partitions, dtype=np.int64)[:, None] * multiplier + row
    return values.astype(np.int32)


def iota(dst: NkiTensor, pattern: Any, offset: int = 0, channel_multiplier: int = 0, name: str | None = None) -> None:
    """Write ``offset + partition * channel_multiplier + sum(index * step)`` to an SBUF tile, on GpSimd.

    ``pattern``: one to four ``[step, num]``, outermost first. Raises ``pattern``, ``buffer``, ``partition_*``.
    """
    ins, machine = "iota", current()
    on_chip(dst, ins, "dst", SBUF)
    _check_pattern(ins, dst, pattern)
    machine.compute(ins, Engine.GPSIMD, costs.GPSIMD_SETUP + dst.free_elements, (), (dst,))
    if machine.numerics:
        values = _affine(dst.shape[0], pattern, offset, channel_multiplier)
        store(dst, values if dst.dtype == dtypes.int32 else values.astype(np.float32))


def affine_select(
    dst: NkiTensor,
    pattern: Any,
    channel_multiplier: int,
    on_true_tile: NkiTensor,
    on_false_value: float,
    cmp_op: AluOp = BY_NAME["equal"],
    offset: int = 0,
    name: str | None = None,
) -> None:
    """Keep ``on_true_tile`` where ``cmp_op(affine index, 0)``, else ``on_false_value``; SBUF only, on GpSimd.

    Raises ``pattern``, ``buffer``, ``operator``, ``operand``, ``shape``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "affine_select", current()
    on_chip(dst, ins, "dst", SBUF)
    on_chip(on_true_tile, ins, "on_true_tile", SBUF)
    same_elements(ins, dst, "dst", on_true_tile, "on_true_tile")
    _check_pattern(ins, dst, pattern)
    if isinstance(on_false_value, NkiTensor):
        fail(HardwareLimit.OPERAND, ins, "on_false_value must be a constant")
    scalar_operand(ins, on_false_value, dst, "on_false_value")
    if need_op(cmp_op, ins, "cmp_op") not in _ALL_COMPARE:
        fail(HardwareLimit.OPERATOR, ins, f"cmp_op={cmp_op!r} is no comparison")
    cycles = costs.GPSIMD_SETUP + dst.free_elements
    machine.compute(ins, Engine.GPSIMD, cycles, (on_true_tile,), (dst,))
    if machine.numerics:
        index = _affine(dst.shape[0], pattern, offset, channel_multiplier)
        keep = apply(cmp_op, index, np.int32(0), False) != 0
        store(dst, np.where(keep, load(on_true_tile), np.float32(on_false_value)))


def _check_range(
    ins: str,
    on_true_tile: NkiTensor,
    comparisons: tuple[AluOp, AluOp],
    bounds: tuple[NkiTensor, NkiTensor],
    range_start: int,
    *,
    on_false_value: float,
    reduce_op: AluOp,
) -> None:
    for i, op in enumerate(comparisons):
        if need_op(op, ins, f"comp_op{i}") not in _COMPARE:
            fail(HardwareLimit.OPERATOR, ins, f"comp_op{i}={op!r}; it must be equal, less(_equal) or greater(_equal)")
    if on_true_tile.dtype.kind != "f":
        fail(HardwareLimit.DTYPE, ins, f"on_true_tile is {on_true_tile.dtype}; it must be a float type")
    if np.float32(on_false_value) != np.float32(FP32_MIN):
        fail(HardwareLimit.VALUE, ins, f"on_false_value={on_false_value}; the hardware takes only {FP32_MIN}")
    if not 0 <= range_start <= _EXACT_INDEX - on_true_tile.free_elements:
        fail(HardwareLimit.VALUE, ins, f"range_start={range_start}: indices are compared in float32, exact below 2**24")
    if reduce_op is not BY_NAME["maximum"]:
        fail(HardwareLimit.REDUCE, ins, f"reduce_op={reduce_op!r}; only maximum is supported")
    if any(scalar_operand(ins, b, on_true_tile, f"bound{i}") is None for i, b in enumerate(bounds)):
        fail(HardwareLimit.OPERAND, ins, "bound0 and bound1 must be (P, 1) float32 tiles")


def range_select(
    dst: NkiTensor,
    on_true_tile: NkiTensor,
    comp_op0: AluOp,
    comp_op1: AluOp,
    bound0: NkiTensor,
    bound1: NkiTensor,
    reduce_cmd: commands = commands.reset_reduce,
    reduce_res: NkiTensor | None = None,
    reduce_op: AluOp = BY_NAME["maximum"],
    range_start: int = 0,
    on_false_value: float = FP32_MIN,
    name: str | None = None,
) -> None:
    """Keep ``on_true_tile`` where the free index + ``range_start`` satisfies both bounds, else FP32_MIN (v3+, Vector).

    Bounds are (P, 1) float32 tiles; the row maximum goes to ``reduce_res``. Raises ``arch``, ``operator``, ``operand``,
    ``value``, ``dtype``, ``reduce``, ``shape``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "range_select", current()
    need_generation(machine, ins, 3)
    on_chip(dst, ins, "dst")
    on_chip(on_true_tile, ins, "on_true_tile")
    same_elements(ins, dst, "dst", on_true_tile, "on_true_tile")
    comparisons, bounds = (comp_op0, comp_op1), (bound0, bound1)
    _check_range(
        ins, on_true_tile, comparisons, bounds, range_start, on_false_value=on_false_value, reduce_op=reduce_op
    )
    accumulator.check(ins, on_true_tile, reduce_cmd, _SELECT_COMMANDS, reduce_res)
    accumulator.needs_registers(machine, ins, reduce_cmd, reduce_res)
    writes = (dst,) if reduce_res is None else (dst, reduce_res)
    cycles = costs.plain(dst.free_elements)
    machine.compute(ins, Engine.VECTOR, cycles, (on_true_tile, bound0, bound1), writes)
    values = None
    if machine.numerics:
        index = np.float32(range_start) + np.arange(on_true_tile.free_elements, dtype=np.float32)[None, :]
        keep = (apply(comp_op0, index, load(bound0), False) != 0) & (apply(comp_op1, index, load(bound1), False) != 0)
        values = np.where(keep, load(on_true_tile), np.float32(FP32_MIN))
        store(dst, values)
    accumulator.update(machine, reduce_op, reduce_cmd, values, on_true_tile, reduce_res=reduce_res)


def _check_select_types(ins: str, predicate: NkiTensor, on_true: NkiTensor, reduce_res: NkiTensor | None) -> None:
    if predicate.dtype not in ("int8", "uint8", "int16", "uint16"):
        fail(HardwareLimit.DTYPE, ins, f"predicate is {predicate.dtype}; it must be an 8 or 16-bit integer")
    if on_true.dtype in ("tfloat32", "int32", "uint32"):
        fail(HardwareLimit.DTYPE, ins, f"on_true is {on_true.dtype}, which select_reduce does not take")
    if reduce_res is not None and reduce_res.dtype.kind != "f":
        fail(HardwareLimit.DTYPE, ins, f"reduce_res is {reduce_res.dtype}; it must be a float type")


def select_reduce(
    dst: NkiTensor,
    predicate: NkiTensor,
    on_true: NkiTensor,
    on_false: Any,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: commands = commands.idle,
    reduce_op: AluOp = BY_NAME["maximum"],
    reverse_pred: bool = False,
    name: str | None = None,
) -> None:
    """``dst = on_true where predicate else on_false`` with an optional row maximum, on Vector.

    Raises ``shape``, ``dtype``, ``both_psum``, ``operand``, ``reduce``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "select_reduce", current()
    for role, view in (("dst", dst), ("predicate", predicate), ("on_true", on_true)):
        on_chip(view, ins, role)
        if view.shape != dst.shape:
            fail(
                HardwareLimit.SHAPE, ins, f"{role} is {list(view.shape)}, dst {list(dst.shape)}; they must be identical"
            )
    _check_select_types(ins, predicate, on_true, reduce_res)
    not_both_psum(ins, on_true, "on_true", predicate, "predicate")
    if reduce_op is not BY_NAME["maximum"]:
        fail(HardwareLimit.REDUCE, ins, f"reduce_op={reduce_op!r}; only maximum is supported")
    accumulator.check(ins, on_true, reduce_cmd, (commands.idle, *_SELECT_COMMANDS), reduce_res)
    accumulator.needs_registers(machine, ins, reduce_cmd, reduce_res)
    tile = scalar_operand(ins, on_false, on_true, "on_false", None)
    reads = [predicate, on_true, *([] if tile is None else [tile])]
    writes = (dst,) if reduce_res is None else (dst, reduce_res)
    machine.compute(ins, Engine.VECTOR, costs.plain(dst.free_elements), reads, writes)
    values = None
    if machine.numerics:
        keep = (raw(predicate) != 0) != reverse_pred
        values = np.where(keep, load(on_true), scalar_values(on_false))
        store(dst, values)
    accumulator.update(machine, reduce_op, reduce_cmd, values, on_true, reduce_res=reduce_res)


def tensor_partition_reduce(dst: NkiTensor, op: AluOp, data: NkiTensor, name: str | None = None) -> None:
    """Reduce across partitions into a (1, N) tile on GpSimd, so not in PSUM: add, average, maximum, bitwise or/and.

    Raises ``operator``, ``dtype``, ``shape``, ``gpsimd_psum``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "tensor_partition_reduce", current()
    on_chip(dst, ins, "dst")
    on_chip(data, ins, "data")
    pick_engine(ins, engines.gpsimd, Engine.GPSIMD, (Engine.GPSIMD,), (dst, data))
    found = need_op(op, ins)
    if found not in _PARTITION_OPS:
        fail(HardwareLimit.OPERATOR, ins, f"op={found!r}; it must be add, average, maximum, bitwise_or or bitwise_and")
    if found.bits:
        integer_types(ins, dst, data)
    if dst.shape[0] != 1 or dst.free_elements != data.free_elements:
        fail(
            HardwareLimit.SHAPE,
            ins,
            f"dst is {list(dst.shape)}; reducing {list(data.shape)} gives [1, {data.free_elements}]",
        )
    cycles = costs.partition_reduce(data.shape[0], data.free_elements)
    machine.compute(ins, Engine.GPSIMD, cycles, (data,), (dst,))
    if machine.numerics:
        reducer = np.add if found.reduction is None else found.reduction
        values = reducer.reduce(raw(data) if found.bits else load(data), axis=0)
        store(dst, values / np.float32(data.shape[0]) if found is BY_NAME["average"] else values)


def nc_stream_shuffle(dst: NkiTensor, src: NkiTensor, shuffle_mask: Sequence[int], name: str | None = None) -> None:
    """Move partitions within each group of 32: output ``i`` takes input ``shuffle_mask[i]`` (255: unchanged). Vector.

    Raises ``pattern``, ``dtype``, ``shape``, ``partition_*``, ``index``, ``uninitialised``.
    """
    ins, machine = "nc_stream_shuffle", current()
    for role, view in (("dst", dst), ("src", src)):
        on_chip(view, ins, role)
        active = -(-max(dst.shape[0], src.shape[0]) // 32) * 32
        check_start(view, ins, role, min(active, 128 - view.start_partition) if active == 32 else active)
    if dst.dtype != src.dtype:
        fail(HardwareLimit.DTYPE, ins, f"dst is {dst.dtype}, src {src.dtype}; they must be the same")
    if dst.free_elements != src.free_elements:
        fail(HardwareLimit.SHAPE, ins, f"dst has {dst.free_elements} elements per partition, src {src.free_elements}")
    if len(shuffle_mask) != 32 or any(m != 255 and not 0 <= m < 32 for m in shuffle_mask):
        fail(HardwareLimit.PATTERN, ins, "shuffle_mask must hold 32 entries of 0 to 31, or 255")
    moves = [(i, i // 32 * 32 + shuffle_mask[i % 32]) for i in range(dst.shape[0]) if shuffle_mask[i % 32] != 255]
    if any(source >= src.shape[0] for _, source in moves):
        fail(HardwareLimit.INDEX, ins, f"shuffle_mask reads beyond the {src.shape[0]} partitions of src")
    keeps = len(moves) < dst.shape[0]
    reads = (src, dst) if keeps else (src,)
    machine.compute(ins, Engine.VECTOR, costs.plain(src.free_elements), reads, (dst,))
    if machine.numerics and moves:
        values, source = raw(dst).copy(), raw(src)
        values[[i for i, _ in moves]] = source[[s for _, s in moves]]
        store(dst, values)
