"""Scalar engine: activation functions with scale, bias and running sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import costs, dtypes
from .checks import on_chip, same_elements, scalar_operand, scalar_values
from .enums import reduce_cmd as commands
from .errors import HardwareLimit, fail
from .machine import Machine, current, load, store
from .ops import BY_NAME, AluOp, need_op
from .specs import PARTITIONS
from .tensor import NkiTensor
from .timeline import Engine

_FLOAT32 = frozenset({dtypes.float32})


def _check_operands(machine: Machine, ins: str, data: NkiTensor, bias: Any, scale: Any) -> list[NkiTensor]:
    tiles = [scalar_operand(ins, scale, data, "scale", _FLOAT32)]
    if bias is not None:
        tile = scalar_operand(ins, bias, data, "bias", None)
        if tile is None and machine.generation < 3 and float(bias) != 0.0:
            fail(HardwareLimit.ARCH, ins, f"bias={bias}: NeuronCore-v2 takes only a (P, 1) tile as bias")
        tiles.append(tile)
    return [t for t in tiles if t is not None]


def _check_reduce(ins: str, data: NkiTensor, reduce_op: Any, reduce_res: Any, command: Any) -> None:
    if not isinstance(command, commands) or command is commands.load_reduce:
        fail(HardwareLimit.REDUCE, ins, f"reduce_cmd={command!r}; activation takes idle, reset, reduce or reset_reduce")
    if command in (commands.reduce, commands.reset_reduce) and reduce_op is not BY_NAME["add"]:
        fail(HardwareLimit.REDUCE, ins, f"reduce_op={reduce_op!r}; the Scalar engine only adds")
    if reduce_res is not None:
        on_chip(reduce_res, ins, "reduce_res")
        if reduce_res.shape[0] != data.shape[0] or reduce_res.free_elements != 1:
            fail(HardwareLimit.SHAPE, ins, f"reduce_res is {list(reduce_res.shape)}; it must be ({data.shape[0]}, 1)")


def _check_range(ins: str, op: AluOp, values: np.ndarray) -> None:
    if op.valid is None:
        return
    low, high = op.valid
    seen = np.abs(values) if op.symmetric else values
    bad = ~((seen >= np.float32(low)) & (seen <= np.float32(high)))
    if bad.any():
        worst = values[bad].flat[0]
        text = f"{op!r} of {worst!s}: {int(bad.sum())} inputs lie outside its valid range [{low:g}, {high:g}]"
        fail(HardwareLimit.ACTIVATION_RANGE, ins, text)


def _accumulate(machine: Machine, ins: str, values: np.ndarray | None, partitions: int, command: commands) -> None:
    """Update the Scalar engine's registers; ``values`` None: only their validity."""
    if command in (commands.reset, commands.reset_reduce):
        machine.scalar_accumulator = np.zeros((PARTITIONS, 1), np.float32)
        machine.scalar_accumulator_valid = True
    if command is commands.reduce and not machine.scalar_accumulator_valid:
        fail(HardwareLimit.REDUCE, ins, "reduce_cmd=reduce, but the accumulator was never reset")
    if command in (commands.reduce, commands.reset_reduce) and values is not None:
        assert machine.scalar_accumulator is not None
        machine.scalar_accumulator[:partitions] += values.sum(axis=1, keepdims=True, dtype=np.float32)


def _activate(
    ins: str,
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    *,
    bias: Any,
    scale: Any,
    reduce_op: Any,
    reduce_res: NkiTensor | None,
    command: Any,
) -> None:
    machine = current()
    on_chip(dst, ins, "dst")
    on_chip(data, ins, "data")
    same_elements(ins, dst, "dst", data, "data")
    function = need_op(op, ins)
    if function.activation is None:
        fail(HardwareLimit.OPERATOR, ins, f"op={function!r} is not an activation function")
    tiles = _check_operands(machine, ins, data, bias, scale)
    _check_reduce(ins, data, reduce_op, reduce_res, command)
    if function is BY_NAME["reciprocal"] and bias is not None and machine.generation == 2:
        fail(HardwareLimit.ARCH, ins, "reciprocal takes no bias on NeuronCore-v2")
    writes = (dst,) if reduce_res is None else (dst, reduce_res)
    cycles = costs.plain(data.free_elements)
    if reduce_res is not None:
        cycles += costs.ACCUMULATOR_READ
    machine.compute(ins, Engine.SCALAR, cycles, (data, *tiles), writes)
    values = None
    if machine.numerics:
        values = _evaluate(ins, function, data, bias, scale)
        store(dst, values)
    _accumulate(machine, ins, values, data.shape[0], command)
    if reduce_res is not None:
        if not machine.scalar_accumulator_valid:
            fail(HardwareLimit.REDUCE, ins, "reduce_res reads an accumulator that was never reset")
        if machine.numerics:
            assert machine.scalar_accumulator is not None
            store(reduce_res, machine.scalar_accumulator[: data.shape[0]].copy())


def _evaluate(ins: str, function: AluOp, data: NkiTensor, bias: Any, scale: Any) -> np.ndarray:
    assert function.activation is not None
    values = load(data)
    with np.errstate(all="ignore"):
        if isinstance(scale, NkiTensor) or scale != 1.0:
            values = values * scalar_values(scale)
        if bias is not None:
            values = values + scalar_values(bias)
        _check_range(ins, function, values)
        result = function.activation(values)
    return np.asarray(result, np.float32)


def activation(
    dst: NkiTensor,
    op: AluOp,
    data: NkiTensor,
    bias: Any = None,
    scale: Any = 1.0,
    reduce_op: AluOp | None = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: commands = commands.idle,
    name: str | None = None,
) -> None:
    """``dst = op(data * scale + bias)`` on Scalar, float32 inside, with an optional running row sum.

    ``scale``: constant or (P, 1) float32 tile; ``bias``: (P, 1) tile, not tfloat32; from v3 on, constants too.
    ``reduce_res`` (P, 1) receives the accumulator. Inputs outside the function's valid range are refused: the device
    returns garbage for them. Raises ``activation_range``, ``operand``, ``operator``, ``reduce``, ``shape``, ``arch``,
    ``partition_*``, ``buffer``, ``uninitialised``.
    """
    _activate(
        "activation", dst, op, data,
        bias=bias, scale=scale, reduce_op=reduce_op, reduce_res=reduce_res, command=reduce_cmd,
    )  # fmt: skip


def activation_reduce(
    dst: NkiTensor,
    op: AluOp,
    data: NkiTensor,
    reduce_op: AluOp,
    reduce_res: NkiTensor,
    bias: Any = None,
    scale: Any = 1.0,
    name: str | None = None,
) -> None:
    """:func:`activation` with ``reduce_cmd=reset_reduce``: row sums of the result into ``reduce_res`` (P, 1)."""
    ins = "activation_reduce"
    if not isinstance(reduce_res, NkiTensor):
        fail(HardwareLimit.REDUCE, ins, "reduce_res must be a (P, 1) tile")
    _activate(
        ins, dst, op, data,
        bias=bias, scale=scale, reduce_op=reduce_op, reduce_res=reduce_res, command=commands.reset_reduce,
    )  # fmt: skip
