"""Element-wise arithmetic of two tiles, or of a tile and (P, 1) scalars; reductions along the free axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import costs
from .checks import (
    apply,
    integer_types,
    not_both_psum,
    on_chip,
    pick_engine,
    same_elements,
    same_start,
    scalar_operand,
    scalar_values,
)
from .enums import engine as engines
from .errors import HardwareLimit, fail
from .machine import Machine, current, load, raw, store
from .ops import BY_NAME, AluOp, need_arithmetic, need_op
from .storage import MemoryRegion
from .tensor import NkiTensor
from .timeline import Engine

_ADD, _SUB, _MUL = BY_NAME["add"], BY_NAME["subtract"], BY_NAME["multiply"]
_MAX, _POWER, _RSQRT = BY_NAME["maximum"], BY_NAME["power"], BY_NAME["rsqrt"]
_INT32 = frozenset({"int32", "uint32"})


def _elementwise(ins: str, dst: NkiTensor, **operands: NkiTensor) -> None:
    """Check an instruction on two operands, which are passed under the names that messages use."""
    (a_role, a), (b_role, b) = operands.items()
    on_chip(dst, ins, "dst")
    on_chip(a, ins, a_role)
    on_chip(b, ins, b_role)
    same_elements(ins, a, a_role, b, b_role)
    same_elements(ins, dst, "dst", a, a_role)
    not_both_psum(ins, a, a_role, b, b_role)
    same_start(ins, a, a_role, b, b_role)


def tensor_tensor(
    dst: NkiTensor,
    data1: NkiTensor,
    data2: NkiTensor,
    op: AluOp,
    engine: engines = engines.unknown,
    name: str | None = None,
) -> None:
    """``dst = data1 op data2`` element by element; nothing is broadcast; not both inputs in PSUM.

    Default engine: Vector; GpSimd for ``power`` and, with exact integers, when all tiles are int32/uint32 outside PSUM.
    Raises ``shape``, ``partition_*``, ``operand_partition``, ``both_psum``, ``operator``, ``dtype``, ``engine``,
    ``gpsimd_psum``, ``uninitialised``.
    """
    ins, machine = "tensor_tensor", current()
    _elementwise(ins, dst, data1=data1, data2=data2)
    views = (dst, data1, data2)
    found = need_op(op, ins)
    if found.bits:
        integer_types(ins, *views)
        if found.binary is None:
            fail(HardwareLimit.OPERATOR, ins, f"op={found!r} takes one operand")
    else:
        need_arithmetic(found, ins, machine.generation)
    integers = not found.bits and all(v.dtype in _INT32 for v in views)
    exact = integers and not any(v.buffer is MemoryRegion.psum for v in views)
    default = Engine.GPSIMD if found is _POWER or exact else Engine.VECTOR
    allowed: tuple[Engine, ...] = (Engine.VECTOR, Engine.GPSIMD)
    if found is _POWER:
        allowed = (Engine.GPSIMD,)
    unit = pick_engine(ins, engine, default, allowed, views)
    light = found in (_ADD, _SUB, _MUL)
    cycles = costs.two_inputs(machine.generation, unit is Engine.VECTOR, data1, data2, dst, light=light)
    machine.compute(ins, unit, cycles, (data1, data2), (dst,))
    if machine.numerics:
        exact = found.bits or (integers and unit is Engine.GPSIMD)
        store(dst, _combine(found, data1, data2, dst) if exact else apply(found, load(data1), load(data2), False))


def _combine(op: AluOp, data1: NkiTensor, data2: NkiTensor, dst: NkiTensor) -> np.ndarray:
    """Return ``data1 op data2`` on the stored integers, without a detour through float32."""
    assert op.binary is not None
    with np.errstate(all="ignore"):
        return np.asarray(op.binary(raw(data1), raw(data2))).astype(dst.dtype.np)


def _ts_engine(
    machine: Machine, ins: str, engine: Any, ops: list[AluOp], operands: list[Any], views: tuple[NkiTensor, ...]
) -> Engine:
    rsqrt = _RSQRT in ops
    allowed: tuple[Engine, ...] = (Engine.VECTOR, Engine.SCALAR, Engine.GPSIMD)
    if rsqrt:
        allowed = (Engine.GPSIMD,)
    elif any(op.bits for op in ops):
        allowed = (Engine.VECTOR,)
    unit = pick_engine(ins, engine, Engine.GPSIMD if rsqrt else Engine.VECTOR, allowed, views)
    if unit is Engine.SCALAR:
        if machine.generation < 3:
            fail(HardwareLimit.ARCH, ins, "the Scalar engine runs tensor_scalar from NeuronCore-v3 on; use activation")
        if ops not in ([_MUL, _ADD], [_MUL], [_ADD]):
            fail(HardwareLimit.ENGINE, ins, f"the Scalar engine runs multiply+add, multiply or add; not {ops}")
    return unit


def _check_ops(
    machine: Machine, ins: str, data: NkiTensor, dst: NkiTensor, pairs: list[tuple[Any, Any, int]]
) -> tuple[list[AluOp], list[NkiTensor]]:
    """Check ``(op, operand, index)`` pairs; return the operators and the operand tiles."""
    ops: list[AluOp] = []
    tiles: list[NkiTensor] = []
    for op, value, i in pairs:
        found = need_op(op, ins, f"op{i}")
        if found.bits:
            integer_types(ins, data, dst)
        else:
            need_arithmetic(found, ins, machine.generation, f"op{i}", unary=True)
        if found.binary is None:
            if value is not None and (isinstance(value, NkiTensor) or value != 0):
                fail(HardwareLimit.OPERAND, ins, f"operand{i} of the unary {found!r} must be None or 0")
        else:
            types = frozenset({data.dtype}) if found.bits else frozenset({"float32"})
            tile = scalar_operand(ins, value, data, f"operand{i}", types)
            tiles += [] if tile is None else [tile]
        ops.append(found)
    if len(ops) == 2 and ops[0].bits != ops[1].bits:
        fail(HardwareLimit.OPERATOR, ins, f"op0={ops[0]!r} and op1={ops[1]!r} must both be bitwise or both arithmetic")
    return ops, tiles


def _bit_chain(data: NkiTensor, ops: list[AluOp], operands: list[Any], reverses: list[bool]) -> np.ndarray:
    value = raw(data)
    for op, operand, reverse in zip(ops, operands, reverses, strict=True):
        if op.binary is None:
            assert op.unary is not None
            value = op.unary(value)
            continue
        other = raw(operand) if isinstance(operand, NkiTensor) else value.dtype.type(operand)
        value = op.binary(other, value) if reverse else op.binary(value, other)
    return value


def _float_chain(data: NkiTensor, ops: list[AluOp], operands: list[Any], reverses: list[bool]) -> np.ndarray:
    value = load(data)
    for op, operand, reverse in zip(ops, operands, reverses, strict=True):
        value = apply(op, value, None if op.binary is None else scalar_values(operand), reverse)
    return value


def tensor_scalar(
    dst: NkiTensor,
    data: NkiTensor,
    op0: AluOp,
    operand0: Any,
    reverse0: bool = False,
    op1: AluOp | None = None,
    operand1: Any = None,
    reverse1: bool = False,
    engine: engines = engines.unknown,
    name: str | None = None,
) -> None:
    """``dst = (data op0 operand0) op1 operand1``; operands are constants or (P, 1) float32 tiles. Default: Vector.

    Scalar: multiply+add, multiply or add, v3+. ``rsqrt``: GpSimd only. Raises ``shape``, ``partition_*``, ``operand``,
    ``operator``, ``dtype``, ``engine``, ``gpsimd_psum``, ``arch``, ``uninitialised``.
    """
    ins, machine = "tensor_scalar", current()
    on_chip(dst, ins, "dst")
    on_chip(data, ins, "data")
    same_elements(ins, dst, "dst", data, "data")
    pairs = [(op0, operand0, 0)]
    if op1 is not None:
        pairs.append((op1, operand1, 1))
    elif operand1 is not None:
        fail(HardwareLimit.OPERAND, ins, "operand1 without op1")
    ops, tiles = _check_ops(machine, ins, data, dst, pairs)
    operands, reverses = [p[1] for p in pairs], [reverse0, reverse1][: len(ops)]
    unit = _ts_engine(machine, ins, engine, ops, operands, views=(dst, data, *tiles))
    cycles = costs.one_input(machine.generation, unit is Engine.VECTOR, data, dst)
    if _RSQRT in ops:
        cycles *= costs.GPSIMD_RSQRT
    machine.compute(ins, unit, cycles, (data, *tiles), (dst,))
    if machine.numerics:
        chain = _bit_chain if ops[0].bits else _float_chain
        store(dst, chain(data, ops, operands, reverses))


def scalar_tensor_tensor(
    dst: NkiTensor,
    data: NkiTensor,
    op0: AluOp,
    operand0: Any,
    op1: AluOp,
    operand1: NkiTensor,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> None:
    """``dst = (data op0 operand0) op1 operand1`` on Vector: operand0 constant or (P, 1) tile, operand1 like data.

    Raises ``shape``, ``partition_*``, ``operand_partition``, ``both_psum``, ``operator``, ``operand``,
    ``uninitialised``.
    """
    ins, machine = "scalar_tensor_tensor", current()
    _elementwise(ins, dst, data=data, operand1=operand1)
    first = need_arithmetic(op0, ins, machine.generation, "op0")
    second = need_arithmetic(op1, ins, machine.generation, "op1")
    tile = scalar_operand(ins, operand0, data, "operand0", None)
    reads = (data, operand1) if tile is None else (data, operand1, tile)
    special = (first, second) == (_SUB, _MUL)
    machine.compute(ins, Engine.VECTOR, costs.scalar_tensor_tensor(data, operand1, dst, special), reads, (dst,))
    if machine.numerics:
        value = apply(first, load(data), scalar_values(operand0), reverse0)
        store(dst, apply(second, value, load(operand1), reverse1))


def _reduced_axes(ins: str, data: NkiTensor, axis: Any) -> tuple[int, ...]:
    axes = tuple(sorted((axis,) if isinstance(axis, int) else axis))
    wanted = tuple(range(data.ndim - len(axes), data.ndim))
    axes = tuple(sorted(a + data.ndim if a < 0 else a for a in axes))
    if not axes or axes != wanted or 0 in axes:
        text = f"axis={axis} of {list(data.shape)}; only the last free dimensions, ending at {data.ndim - 1}, can be"
        fail(HardwareLimit.REDUCE_AXIS, ins, f"{text} reduced, never dimension 0")
    return axes


def reduce_free(op: AluOp, values: np.ndarray) -> np.ndarray:
    """Reduce ``(P, ..., N)`` along the last axis with a legal reduction operator, in the values' type."""
    assert op.reduction is not None
    with np.errstate(all="ignore"):
        reduced: np.ndarray = op.reduction.reduce(values, axis=-1)
    return reduced


def tensor_reduce(
    dst: NkiTensor,
    op: AluOp,
    data: NkiTensor,
    axis: Any,
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> None:
    """Reduce the trailing free axes of ``data`` on Vector; ``negate`` multiplies the result by -1 for free.

    Raises ``reduce_axis``, ``operator``, ``shape``, ``dtype``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "tensor_reduce", current()
    on_chip(dst, ins, "dst")
    on_chip(data, ins, "data")
    found = need_op(op, ins)
    if found.reduction is None:
        fail(HardwareLimit.OPERATOR, ins, f"op={found!r} is no reduction")
    if found.bits:
        integer_types(ins, data, dst)
        if negate:
            fail(HardwareLimit.OPERATOR, ins, "negate goes with arithmetic operators only")
    axes = _reduced_axes(ins, data, axis)
    kept = data.shape[: data.ndim - len(axes)]
    if dst.shape[0] != data.shape[0] or dst.size != int(np.prod(kept)):
        fail(
            HardwareLimit.SHAPE,
            ins,
            f"dst is {list(dst.shape)}; reducing {axes} of {list(data.shape)} gives {list(kept)}",
        )
    machine.compute(ins, Engine.VECTOR, costs.tensor_reduce(data, dst, found in (_ADD, _MAX)), (data,), (dst,))
    if machine.numerics:
        values = data.array() if found.bits else load(data)
        result = reduce_free(found, values.reshape(*kept, -1))
        store(dst, -result if negate else result.astype(values.dtype))


def reciprocal(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> None:
    """``dst = 1 / data`` on Vector, in float32 (8 cycles an element).

    Raises ``shape``, ``partition_*``, ``buffer``, ``uninitialised``.
    """
    ins, machine = "reciprocal", current()
    on_chip(dst, ins, "dst")
    on_chip(data, ins, "data")
    same_elements(ins, dst, "dst", data, "data")
    machine.compute(ins, Engine.VECTOR, costs.plain(costs.RECIPROCAL * data.free_elements), (data,), (dst,))
    if machine.numerics:
        with np.errstate(all="ignore"):
            store(dst, np.reciprocal(load(data)))


def tensor_tensor_scan(
    dst: NkiTensor,
    data0: NkiTensor,
    data1: NkiTensor,
    initial: Any,
    op0: AluOp,
    op1: AluOp,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> None:
    """``r[i] = (data0[i] op0 r[i-1]) op1 data1[i]``, ``r[-1] = initial`` (constant or (P, 1) tile), on Vector.

    Raises ``shape``, ``partition_*``, ``operand_partition``, ``both_psum``, ``operator``, ``operand``,
    ``uninitialised``.
    """
    ins, machine = "tensor_tensor_scan", current()
    _elementwise(ins, dst, data0=data0, data1=data1)
    first = need_arithmetic(op0, ins, machine.generation, "op0")
    second = need_arithmetic(op1, ins, machine.generation, "op1")
    tile = scalar_operand(ins, initial, data0, "initial", None)
    reads = (data0, data1) if tile is None else (data0, data1, tile)
    machine.compute(ins, Engine.VECTOR, costs.plain(2 * data0.free_elements), reads, (dst,))
    if not machine.numerics:
        return
    left, right = load(data0), load(data1)
    state = scalar_values(initial)
    state = state[:, 0] if isinstance(state, np.ndarray) and state.ndim else state
    result = np.empty_like(left)
    for i in range(left.shape[1]):
        state = apply(second, apply(first, left[:, i], state, reverse0), right[:, i], reverse1)
        result[:, i] = state
    store(dst, result)
