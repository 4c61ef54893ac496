"""Vector-engine instructions that compute and reduce at once, and batch-norm statistics."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import accumulator, costs, dtypes
from .checks import apply, need_generation, on_chip, same_elements, scalar_operand, scalar_values
from .enums import reduce_cmd as commands
from .errors import HardwareLimit, fail
from .machine import current, load, store
from .ops import BY_NAME, AluOp, need_arithmetic
from .specs import BN_STATS_MAX
from .tensor import NkiTensor
from .timeline import Engine

_REDUCERS = tuple(BY_NAME[n] for n in ("add", "multiply", "maximum", "minimum"))
_RESETTING = (commands.reset_reduce, commands.reduce, commands.load_reduce)
_EXP_IN = frozenset({"float8_e4m3", "float8_e5m2", "float16", "bfloat16", "float32"}) | {
    *("int8", "int16", "int32", "uint8", "uint16", "uint32")
}
_FLOAT32 = frozenset({dtypes.float32})


def tensor_scalar_reduce(
    dst: NkiTensor,
    data: NkiTensor,
    op0: AluOp,
    operand0: Any,
    reduce_op: AluOp,
    reduce_res: NkiTensor | None = None,
    reverse0: bool = False,
    reduce_cmd: commands = commands.reset_reduce,
    reduce_init: Any = None,
    reduce_res_negate: bool = False,
    name: str | None = None,
) -> None:
    """``dst = data op0 operand0``; its row reduction (add, multiply, maximum, minimum) goes to ``reduce_res`` (P, 1).

    Raises ``operator``, ``operand``, ``reduce``, ``shape``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "tensor_scalar_reduce", current()
    on_chip(dst, ins, "dst")
    on_chip(data, ins, "data")
    same_elements(ins, dst, "dst", data, "data")
    first = need_arithmetic(op0, ins, machine.generation, "op0", unary=True)
    _check_reducer(ins, reduce_op, reverse0)
    accumulator.check(ins, data, reduce_cmd, _RESETTING, reduce_res, init=reduce_init)
    accumulator.needs_registers(machine, ins, reduce_cmd, reduce_res)
    tiles = [None if first.binary is None else scalar_operand(ins, operand0, data, "operand0")]
    if reduce_init is not None:
        tiles.append(scalar_operand(ins, reduce_init, data, "reduce_init"))
    writes = (dst,) if reduce_res is None else (dst, reduce_res)
    cycles = costs.plain(data.free_elements) + costs.ACCUMULATOR_READ
    machine.compute(ins, Engine.VECTOR, cycles, (data, *[t for t in tiles if t is not None]), writes)
    values = None
    if machine.numerics:
        values = apply(first, load(data), None if first.binary is None else scalar_values(operand0), False)
        store(dst, values)
    accumulator.update(
        machine, reduce_op, reduce_cmd, values, data, reduce_res=reduce_res, init=reduce_init, negate=reduce_res_negate
    )


def _check_reducer(ins: str, reduce_op: AluOp, reverse0: bool) -> None:
    if reverse0:
        fail(HardwareLimit.OPERATOR, ins, "reverse0 is not supported by this instruction yet (NKI 0.6)")
    if reduce_op not in _REDUCERS:
        fail(HardwareLimit.REDUCE, ins, f"reduce_op={reduce_op!r}; it must be add, multiply, maximum or minimum")


def exponential(
    dst: NkiTensor,
    src: NkiTensor,
    max_value: Any = 0.0,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: commands = commands.idle,
    reduce_init: Any = 0.0,
    name: str | None = None,
) -> None:
    """``dst = exp(src - max_value)`` on Vector with an optional running row sum (NeuronCore-v4).

    Four times the Scalar engine's rate (architecture guide, trn3). Raises ``arch``, ``dtype``, ``operand``, ``reduce``,
    ``shape``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "exponential", current()
    need_generation(machine, ins, 4)
    on_chip(dst, ins, "dst")
    on_chip(src, ins, "src")
    same_elements(ins, dst, "dst", src, "src")
    if src.dtype not in _EXP_IN:
        fail(HardwareLimit.DTYPE, ins, f"src is {src.dtype}, which exponential does not take")
    loads = reduce_cmd is commands.load_reduce
    if not loads and (isinstance(reduce_init, NkiTensor) or reduce_init != 0.0):
        fail(HardwareLimit.REDUCE, ins, "reduce_init must be 0.0 unless reduce_cmd is load_reduce")
    init = reduce_init if loads else None
    accumulator.check(ins, src, reduce_cmd, (commands.idle, *_RESETTING), reduce_res, init=init)
    accumulator.needs_registers(machine, ins, reduce_cmd, reduce_res)
    tiles = [scalar_operand(ins, max_value, src, "max_value", _FLOAT32)]
    if init is not None:
        tiles.append(scalar_operand(ins, init, src, "reduce_init", _FLOAT32))
    writes = (dst,) if reduce_res is None else (dst, reduce_res)
    cycles = costs.plain(src.free_elements / costs.EXPONENTIAL_RATE)
    machine.compute(ins, Engine.VECTOR, cycles, (src, *[t for t in tiles if t is not None]), writes)
    values = None
    if machine.numerics:
        with np.errstate(all="ignore"):
            values = np.exp(load(src) - scalar_values(max_value))
        store(dst, values)
    accumulator.update(machine, BY_NAME["add"], reduce_cmd, values, src, reduce_res=reduce_res, init=init)


def bn_stats(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> None:
    """Write (count, mean, variance*count) of the even and of the odd elements: 6 per partition, of at most 512.

    Raises ``bn_stats``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "bn_stats", current()
    on_chip(dst, ins, "dst")
    on_chip(data, ins, "data")
    if data.free_elements > BN_STATS_MAX:
        fail(
            HardwareLimit.BN_STATS,
            ins,
            f"data has {data.free_elements} elements per partition; the limit is {BN_STATS_MAX}",
        )
    if dst.shape[0] != data.shape[0] or dst.free_elements != 6:
        fail(HardwareLimit.BN_STATS, ins, f"dst is {list(dst.shape)}; it must be ({data.shape[0]}, 6)")
    machine.compute(ins, Engine.VECTOR, costs.plain(data.free_elements), (data,), (dst,))
    if machine.numerics:
        values = load(data)
        columns = []
        for part in (values[:, 0::2], values[:, 1::2]):
            n = part.shape[1]
            mean = part.mean(axis=1) if n else np.zeros(part.shape[0], np.float32)
            spread = ((part - mean[:, None]) ** 2).sum(axis=1)
            columns += [np.full(part.shape[0], n, np.float32), mean, spread]
        store(dst, np.stack(columns, axis=1).astype(np.float32))


def bn_aggr(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> None:
    """Merge ``bn_stats`` triples into mean and variance: 2 elements per partition.

    Raises ``bn_stats``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "bn_aggr", current()
    on_chip(dst, ins, "dst")
    on_chip(data, ins, "data")
    if data.free_elements % 3:
        fail(
            HardwareLimit.BN_STATS,
            ins,
            f"data has {data.free_elements} elements per partition; they must come in threes",
        )
    if dst.shape[0] != data.shape[0] or dst.free_elements != 2:
        fail(HardwareLimit.BN_STATS, ins, f"dst is {list(dst.shape)}; it must be ({data.shape[0]}, 2)")
    machine.compute(ins, Engine.VECTOR, costs.bn_aggr(data.free_elements), (data,), (dst,))
    if machine.numerics:
        triples = load(data).reshape(data.shape[0], -1, 3)
        count, mean, spread = triples[..., 0], triples[..., 1], triples[..., 2]
        total = count.sum(axis=1)
        center = (count * mean).sum(axis=1) / total
        variance = (spread + count * (mean - center[:, None]) ** 2).sum(axis=1) / total
        store(dst, np.stack([center, variance], axis=1).astype(np.float32))
