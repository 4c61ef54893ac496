"""Instructions between the two cores of a logical core. Sequencing is in ``lnc``."""

from __future__ import annotations

from typing import Any

from .checks import need_generation, need_tensor
from .enums import dma_engine as dma_engines
from .enums import engine as engines
from .errors import HardwareLimit, fail
from .machine import Machine, current, store
from .storage import MemoryRegion
from .tensor import NkiTensor
from .timeline import Engine


def _meeting(machine: Machine, ins: str) -> Any:
    need_generation(machine, ins, 3)
    if machine.barrier is None:
        fail(HardwareLimit.LNC, ins, "needs two cores (kernel[2])")
    return machine.barrier


def core_barrier(
    data: NkiTensor, cores: tuple[int, ...], engine: engines = engines.gpsimd, name: str | None = None
) -> None:
    """Wait until both cores are here; ``data`` (shared HBM) written before is readable by both after (v3+, LNC2).

    Raises ``lnc``, ``buffer``, ``arch``, ``engine``.
    """
    ins, machine = "core_barrier", current()
    meeting = _meeting(machine, ins)
    if tuple(cores) != (0, 1):
        fail(HardwareLimit.LNC, ins, f"cores={cores}; only (0, 1) is supported")
    if need_tensor(data, ins, "data").buffer is not MemoryRegion.shared_hbm:
        fail(HardwareLimit.BUFFER, ins, f"data is in {data.buffer.name}; it must be in shared_hbm")
    units = {e.value: e for e in Engine}
    if engine.name not in units:
        fail(HardwareLimit.ENGINE, ins, f"engine {engine.name} runs no barrier")
    box = data.box()
    arrived = max(meeting.meet(machine.program, data.storage.tracker.write_after(box), ins))
    data.storage.tracker.write(box, arrived)
    machine.timeline.wait(units[engine.name], arrived)


def sendrecv(
    src: NkiTensor,
    dst: NkiTensor,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: dma_engines = dma_engines.dma,
    name: str | None = None,
) -> None:
    """Send ``src`` (SBUF) to the other core and receive its ``src`` in ``dst``, by DMA (v3+, LNC2).

    Raises ``lnc``, ``buffer``, ``arch``, ``shape``, ``dtype``, ``uninitialised``.
    """
    ins, machine = "sendrecv", current()
    meeting = _meeting(machine, ins)
    other = 1 - machine.program
    if send_to_rank != other or recv_from_rank != other:
        text = (
            f"core {machine.program} sends to {send_to_rank} and receives from {recv_from_rank}; both must be {other}"
        )
        fail(HardwareLimit.LNC, ins, text)
    for role, view in (("src", src), ("dst", dst)):
        if need_tensor(view, ins, role).buffer is not MemoryRegion.sbuf:
            fail(HardwareLimit.BUFFER, ins, f"{role} is in {view.buffer.name}; it must be in SBUF")
    mine = src.array().copy() if machine.numerics else None
    sent = src.storage.tracker.read_after(src.box())
    offers = meeting.meet(machine.program, (pipe_id, src.shape, src.dtype, mine, sent), ins)
    pipe, shape, dtype, values, ready = offers[other]
    if pipe != pipe_id or shape != dst.shape or dtype != dst.dtype:
        text = f"core {other} sends {list(shape)} {dtype} on pipe {pipe}; dst is {list(dst.shape)} {dst.dtype}"
        fail(HardwareLimit.LNC, ins, f"{text}, pipe {pipe_id}")
    machine.receive(ins, src, dst, ready)
    if machine.numerics:
        store(dst, values)
