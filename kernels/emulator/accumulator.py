"""The Vector engine's accumulator registers: one float32 per partition, shared by its reducing instructions."""

from __future__ import annotations

from typing import Any

import numpy as np

from .checks import on_chip, scalar_values
from .enums import reduce_cmd as commands
from .errors import HardwareLimit, fail
from .machine import Machine, store
from .ops import AluOp
from .specs import PARTITIONS
from .tensor import NkiTensor

_IDENTITY = {"add": 0.0, "multiply": 1.0, "maximum": -np.inf, "minimum": np.inf}


def check(
    ins: str,
    data: NkiTensor,
    command: Any,
    allowed: tuple[commands, ...],
    reduce_res: NkiTensor | None,
    init: Any = None,
) -> None:
    """Check ``reduce_cmd``, ``reduce_res`` (P, 1) and that an initial value goes only with ``load_reduce``."""
    if command not in allowed:
        options = ", ".join(c.name for c in allowed)
        fail(HardwareLimit.REDUCE, ins, f"reduce_cmd={command!r}; it must be one of {options}")
    if (init is not None) != (command is commands.load_reduce):
        fail(
            HardwareLimit.REDUCE,
            ins,
            f"reduce_init={init!r} with reduce_cmd={command.name}: load_reduce needs it, others not",
        )
    if reduce_res is not None:
        on_chip(reduce_res, ins, "reduce_res")
        if reduce_res.shape[0] != data.shape[0] or reduce_res.free_elements != 1:
            fail(HardwareLimit.SHAPE, ins, f"reduce_res is {list(reduce_res.shape)}; it must be ({data.shape[0]}, 1)")


def needs_registers(machine: Machine, ins: str, command: commands, reduce_res: NkiTensor | None) -> None:
    """Refuse to add to, or read out, registers that nothing has reset."""
    resets = command in (commands.reset_reduce, commands.load_reduce, commands.reset)
    if not resets and not machine.vector_accumulator_valid and (command is commands.reduce or reduce_res is not None):
        text = f"reduce_cmd={command.name} uses the accumulator, which no reset_reduce has started since an idle run"
        fail(HardwareLimit.REDUCE, ins, text)


def update(
    machine: Machine,
    op: AluOp,
    command: commands,
    values: np.ndarray | None,
    data: NkiTensor,
    reduce_res: NkiTensor | None,
    init: Any = None,
    negate: bool = False,
) -> None:
    """Fold ``values`` (P, N) into the registers as ``command`` says and write them to ``reduce_res``.

    ``idle`` leaves the registers undefined, as documented: only a resetting command makes them valid again.
    """
    # Marked before values are computed, so that a run without numerics refuses what a run with them does.
    machine.vector_accumulator_valid = command is not commands.idle
    if values is None or command is commands.idle or op.reduction is None:
        return
    rows = data.shape[0]
    if machine.vector_accumulator is None or command is commands.reset_reduce:
        machine.vector_accumulator = np.full((PARTITIONS, 1), _IDENTITY[op.name], np.float32)
    registers = machine.vector_accumulator
    if command is commands.load_reduce:
        registers[:rows] = scalar_values(init)
    folded = op.reduction.reduce(np.asarray(values, np.float32), axis=1, keepdims=True)
    registers[:rows] = op.reduction(registers[:rows], folded)
    if reduce_res is not None:
        store(reduce_res, -registers[:rows] if negate else registers[:rows].copy())
