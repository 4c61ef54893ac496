"""Copies: DMA, on-chip copies, memset, predicated copy."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import costs, dtypes, specs
from .checks import (
    consecutive_partitions,
    need_generation,
    need_tensor,
    not_both_psum,
    on_chip,
    pick_engine,
    same_elements,
    scalar_operand,
)
from .enums import dge_mode as dge_modes
from .enums import engine as engines
from .enums import oob_mode as oob_modes
from .errors import HardwareLimit, fail
from .machine import Machine, current, raw, store
from .storage import MemoryRegion
from .tensor import NkiTensor
from .timeline import Engine

_COPY_ENGINES = (Engine.VECTOR, Engine.SCALAR, Engine.GPSIMD)
_TRANSPOSES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def _off_psum(view: Any, ins: str, role: str) -> NkiTensor:
    tensor = need_tensor(view, ins, role)
    if tensor.buffer is MemoryRegion.psum:
        fail(HardwareLimit.DMA_PSUM, ins, f"{role} is in PSUM, which DMA cannot reach; copy through SBUF")
    if tensor.storage.on_chip and not tensor.is_whole:
        consecutive_partitions(tensor, ins, role)
    return tensor


def _run_bytes(view: NkiTensor) -> int:
    runs = view.runs(1 if view.storage.on_chip else 0)
    return (runs[-1][1] if runs and runs[-1][0] == 1 else 1) * view.dtype.itemsize


def _check_mode(machine: Machine, ins: str, mode: Any, priority: Any) -> bool:
    if priority is not None:
        need_generation(machine, ins, 4)
        if priority not in (0, 1, 2, 3):
            fail(HardwareLimit.DMA_MODE, ins, f"priority={priority!r}; it must be 0, 1, 2 or 3")
    if not isinstance(mode, dge_modes):
        fail(HardwareLimit.DMA_MODE, ins, f"dge_mode={mode!r} is no nisa.dge_mode")
    if mode is dge_modes.hwdge:
        need_generation(machine, ins, 3)
    return mode is dge_modes.hwdge


def _convert(values: np.ndarray, src: NkiTensor, dst: NkiTensor) -> np.ndarray:
    return values if src.dtype == dst.dtype else dtypes.to_float32(values)


def dma_copy(
    dst: NkiTensor,
    src: NkiTensor,
    priority: int | None = None,
    oob_mode: oob_modes = oob_modes.error,
    dge_mode: dge_modes = dge_modes.unknown,
    engine: engines = engines.unknown,
    name: str | None = None,
) -> None:
    """Copy ``src`` to ``dst`` (HBM or SBUF each) by DMA; element counts must agree, types convert through float32.

    Raises ``dma_psum``, ``dma_elements``, ``dma_mode``, ``arch``, ``uninitialised``.
    """
    ins, machine = "dma_copy", current()
    _off_psum(dst, ins, "dst")
    _off_psum(src, ins, "src")
    if dst.size != src.size:
        fail(
            HardwareLimit.DMA_ELEMENTS,
            ins,
            f"dst {list(dst.shape)} has {dst.size} elements, src {list(src.shape)} {src.size}",
        )
    hardware = _check_mode(machine, ins, dge_mode, priority)
    if hardware and dst.dtype != src.dtype:
        fail(HardwareLimit.DMA_MODE, ins, f"hwdge cannot convert {src.dtype} to {dst.dtype}")
    machine.dma(ins, src, dst, run=min(_run_bytes(src), _run_bytes(dst)), hwdge=hardware)
    if machine.numerics:
        store(dst, _convert(src.array(), src, dst))


def _check_transpose(ins: str, dst: NkiTensor, src: NkiTensor, axes: Any, hardware: bool) -> tuple[int, ...]:
    order = _TRANSPOSES.get(src.ndim)
    if order is None or (axes is not None and tuple(axes) != order):
        fail(
            HardwareLimit.DMA_TRANSPOSE,
            ins,
            f"axes {axes} of a {src.ndim}-d tile; legal are {list(_TRANSPOSES.values())}",
        )
    if dst.buffer is not MemoryRegion.sbuf:
        fail(HardwareLimit.DMA_TRANSPOSE, ins, f"dst is in {dst.buffer.name}; it must be in SBUF")
    if dst.dtype != src.dtype:
        fail(HardwareLimit.DMA_TRANSPOSE, ins, f"dst is {dst.dtype}, src {src.dtype}; they must be the same")
    wanted = tuple(src.shape[a] for a in order)
    if dst.shape != wanted:
        fail(
            HardwareLimit.DMA_TRANSPOSE,
            ins,
            f"dst is {list(dst.shape)}; transposing {list(src.shape)} gives {list(wanted)}",
        )
    if hardware:
        rows, last = src.shape[0], src.shape[-1]
        good = rows == 16 if src.ndim == 2 else rows in (1, 2, 4, 8, 16) and rows * src.shape[-2] % 16 == 0
        if not good or last > 128 or src.dtype.itemsize != 2:
            text = (
                f"hwdge takes 2-byte types, last dimension <= 128 and rows of 16; src is {list(src.shape)} {src.dtype}"
            )
            fail(HardwareLimit.DMA_TRANSPOSE, ins, text)
    return order


def dma_transpose(
    dst: NkiTensor,
    src: NkiTensor,
    axes: tuple[int, ...] | None = None,
    priority: int | None = None,
    dge_mode: dge_modes = dge_modes.unknown,
    oob_mode: oob_modes = oob_modes.error,
    name: str | None = None,
) -> None:
    """Transpose ``src`` (HBM or SBUF) into ``dst`` (SBUF): (1, 0), (2, 1, 0) or (3, 1, 2, 0).

    Raises ``dma_psum``, ``dma_transpose``, ``dma_mode``, ``arch``, ``uninitialised``.
    """
    ins, machine = "dma_transpose", current()
    _off_psum(dst, ins, "dst")
    _off_psum(src, ins, "src")
    if dge_mode is dge_modes.swdge or dge_mode is dge_modes.none:
        fail(HardwareLimit.DMA_MODE, ins, f"dge_mode {dge_mode.name}: direct transposes take unknown or hwdge")
    hardware = _check_mode(machine, ins, dge_mode, priority)
    order = _check_transpose(ins, dst, src, axes, hardware)
    in_sbuf = src.buffer is MemoryRegion.sbuf
    share = specs.DMA_TRANSPOSE_EFFICIENCY_SBUF if in_sbuf else specs.DMA_TRANSPOSE_EFFICIENCY_HBM
    machine.dma(ins, src, dst, run=_run_bytes(src), efficiency=share, hwdge=hardware)
    if machine.numerics:
        store(dst, src.array().transpose(order).copy())


def tensor_copy(dst: NkiTensor, src: NkiTensor, engine: engines = engines.unknown, name: str | None = None) -> None:
    """Copy an on-chip tile (bit-exact when types agree, else through float32). Default engine: Vector.

    Raises ``partition_*``, ``shape``, ``buffer``, ``engine``, ``gpsimd_psum``, ``arch``, ``uninitialised``.
    """
    ins, machine = "tensor_copy", current()
    on_chip(dst, ins, "dst")
    on_chip(src, ins, "src")
    same_elements(ins, dst, "dst", src, "src")
    unit = pick_engine(ins, engine, Engine.VECTOR, _COPY_ENGINES, (dst, src))
    if unit is Engine.SCALAR and machine.generation < 3:
        fail(
            HardwareLimit.ARCH, ins, "the Scalar engine has no tensor_copy on NeuronCore-v2; use activation(op=nl.copy)"
        )
    machine.compute(ins, unit, costs.one_input(machine.generation, unit is Engine.VECTOR, src, dst), (src,), (dst,))
    if machine.numerics:
        store(dst, _convert(raw(src), src, dst).copy())


def _check_memset(ins: str, dst: NkiTensor, value: Any) -> None:
    if not isinstance(value, int | float | np.integer | np.floating | bool):
        fail(HardwareLimit.VALUE, ins, f"value={value!r} is no number")
    if dst.dtype.kind == "p" and value != 0:
        fail(HardwareLimit.VALUE, ins, f"{dst.dtype} can only be set to 0, not {value}")
    if dst.dtype.kind in "iu":
        info = np.iinfo(dst.dtype.np)
        if float(value) != int(value) or not info.min <= value <= info.max:
            fail(HardwareLimit.VALUE, ins, f"{value} is no {dst.dtype} ({info.min} to {info.max})")
    if dst.dtype.kind == "f" and np.isfinite(value):
        with np.errstate(over="ignore"):
            stored = np.float32(value).astype(dst.dtype.np)
        if not np.isfinite(stored):
            fail(HardwareLimit.VALUE, ins, f"{value} does not fit {dst.dtype}")


def memset(dst: NkiTensor, value: float, engine: engines = engines.unknown, name: str | None = None) -> None:
    """Fill an on-chip tile with a constant that its type holds. Default engine: Vector.

    Raises ``value``, ``partition_*``, ``buffer``, ``engine``, ``gpsimd_psum``.
    """
    ins, machine = "memset", current()
    on_chip(dst, ins, "dst")
    _check_memset(ins, dst, value)
    unit = pick_engine(ins, engine, Engine.VECTOR, (Engine.VECTOR, Engine.GPSIMD), (dst,))
    machine.compute(ins, unit, costs.memset(dst, value == 0), (), (dst,))
    if machine.numerics:
        dst.array()[...] = np.float32(value) if dst.dtype.kind == "f" else int(value)


def tensor_copy_predicated(
    dst: NkiTensor, src: Any, predicate: NkiTensor, reverse_pred: bool = False, name: str | None = None
) -> None:
    """Copy elements of ``src`` (tile of dst's type, or constant) where ``predicate`` (unsigned) holds. Vector.

    Raises ``partition_*``, ``shape``, ``dtype``, ``both_psum``, ``uninitialised``.
    """
    ins, machine = "tensor_copy_predicated", current()
    on_chip(dst, ins, "dst")
    on_chip(predicate, ins, "predicate")
    same_elements(ins, dst, "dst", predicate, "predicate")
    if predicate.dtype not in ("uint8", "uint16", "uint32"):
        fail(HardwareLimit.DTYPE, ins, f"predicate is {predicate.dtype}; it must be uint8, uint16 or uint32")
    reads = [predicate]
    if isinstance(src, NkiTensor):
        on_chip(src, ins, "src")
        same_elements(ins, dst, "dst", src, "src")
        not_both_psum(ins, src, "src", predicate, "predicate")
        if src.dtype != dst.dtype:
            fail(HardwareLimit.DTYPE, ins, f"src is {src.dtype}, dst {dst.dtype}; they must be the same")
        reads.append(src)
    else:
        scalar_operand(ins, src, dst, "src")
    # What the predicate leaves alone must have a value already: dst is read too.
    reads.append(dst)
    cycles = costs.plain(dst.free_elements * (2 if isinstance(src, NkiTensor) else 1))
    machine.compute(ins, Engine.VECTOR, cycles, reads, (dst,))
    if machine.numerics:
        keep = raw(predicate) != 0
        new = raw(src) if isinstance(src, NkiTensor) else np.float32(src)
        store(dst, np.where(~keep if reverse_pred else keep, new, raw(dst)))
