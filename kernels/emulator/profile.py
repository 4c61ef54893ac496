"""What a run cost: engine table, memory peaks, timeline. All of it is a model; see ``costs`` and ``timeline``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .machine import Machine
from .storage import MemoryRegion
from .timeline import Engine, Event


@dataclass(frozen=True)
class EngineRow:
    """One engine of one core.

    Attributes:
        core: program id of the core.
        engine: which engine.
        instructions: instructions it ran.
        cycles: engine cycles (0 for DMA).
        busy_us: time it was busy, in us; for DMA the time the full bandwidth was taken.
        utilisation: ``busy_us`` over the run's latency, 0 to 1.
        macs: multiply-adds (Tensor engine).
        bytes: bytes moved (DMA).
    """

    core: int
    engine: Engine
    instructions: int
    cycles: float
    busy_us: float
    utilisation: float
    macs: int
    bytes: int


@dataclass(frozen=True)
class InstructionRow:
    """Totals of one instruction on one engine of one core; ``busy_us`` in us."""

    core: int
    engine: Engine
    name: str
    count: int
    busy_us: float


@dataclass(frozen=True)
class MemoryRow:
    """Peak use of an on-chip memory of one core, in bytes per partition."""

    core: int
    memory: str
    peak: int
    capacity: int


@dataclass(frozen=True)
class Profile:
    """Modelled cost of one kernel call.

    Attributes:
        device: device name.
        lnc: cores used.
        latency_us: time from the first to the last instruction of the slowest core, in us.
        engines: a row per core and engine.
        memory: a row per core and on-chip memory.
        events: per core, the timeline (empty when run with ``trace=False``).
    """

    device: str
    lnc: int
    latency_us: float
    engines: tuple[EngineRow, ...]
    memory: tuple[MemoryRow, ...]
    events: tuple[tuple[Event, ...], ...]

    def table(self) -> tuple[EngineRow, ...]:
        """Return the engine rows."""
        return self.engines

    def engine(self, engine: Engine | str, core: int = 0) -> EngineRow:
        """Return the row of one engine; raises ``KeyError`` for an unknown one."""
        for row in self.engines:
            if row.engine == engine and row.core == core:
                return row
        raise KeyError(f"no engine {engine} on core {core}")

    @property
    def dma_bytes(self) -> int:
        """Bytes moved by DMA on all cores."""
        return sum(r.bytes for r in self.engines)

    @property
    def macs(self) -> int:
        """Multiply-adds on all cores."""
        return sum(r.macs for r in self.engines)

    def peak(self, memory: str, core: int = 0) -> int:
        """Return peak bytes per partition of ``sbuf`` or ``psum``; raises ``KeyError`` for another name."""
        for row in self.memory:
            if row.memory == memory and row.core == core:
                return row.peak
        raise KeyError(f"no memory {memory} on core {core}")

    def instructions(self) -> tuple[InstructionRow, ...]:
        """Return totals by core, engine and instruction, busiest first (needs the trace)."""
        totals: dict[tuple[int, Engine, str], list[float]] = {}
        for core, events in enumerate(self.events):
            for e in events:
                entry = totals.setdefault((core, e.engine, e.name), [0, 0.0])
                entry[0] += 1
                entry[1] += (e.end - e.start) / 1000
        rows = [InstructionRow(c, g, n, int(k), us) for (c, g, n), (k, us) in totals.items()]
        return tuple(sorted(rows, key=lambda r: (-r.busy_us, r.core, r.engine, r.name)))

    def chrome_trace(self) -> dict[str, Any]:
        """Return the timeline in the Chrome trace event format (loads in Perfetto); times in us."""
        out: list[dict[str, Any]] = []
        for core, events in enumerate(self.events):
            out.append(_meta("process_name", core, 0, f"NeuronCore {core} ({self.device})"))
            lanes = sorted({(list(Engine).index(e.engine), e.lane) for e in events})
            names = {key: i for i, key in enumerate(lanes)}
            for (engine, lane), tid in names.items():
                label = list(Engine)[engine].value + (f" ring {lane}" if list(Engine)[engine] is Engine.DMA else "")
                out.append(_meta("thread_name", core, tid, label))
            out.extend(_slice(core, names[list(Engine).index(e.engine), e.lane], e) for e in events)
        return {"traceEvents": out, "displayTimeUnit": "ns", "otherData": {"device": self.device, "lnc": self.lnc}}


def _meta(kind: str, core: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": core, "tid": tid, "args": {"name": name}}


def _slice(core: int, tid: int, event: Event) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": event.name,
        "cat": event.engine.value,
        "pid": core,
        "tid": tid,
        "ts": event.start / 1000,
        "dur": (event.end - event.start) / 1000,
        "args": {"line": event.line, "bytes": event.bytes, "macs": event.macs},
    }


def build(machines: Sequence[Machine]) -> Profile:
    """Return the profile of finished machines, one per core."""
    latency = max(m.timeline.end for m in machines) / 1000
    rows = []
    for core, machine in enumerate(machines):
        for engine in Engine:
            c = machine.counters[engine]
            busy = c.busy_ns / 1000
            share = busy / latency if latency else 0.0
            totals = {"macs": c.macs, "bytes": c.bytes}
            rows.append(EngineRow(core, engine, c.instructions, c.cycles, busy_us=busy, utilisation=share, **totals))
    memory = tuple(
        MemoryRow(core, region.name, m.memories[region].peak, m.memories[region].capacity)
        for core, m in enumerate(machines)
        for region in (MemoryRegion.sbuf, MemoryRegion.psum)
    )
    name, events = machines[0].device.name, tuple(tuple(m.timeline.events) for m in machines)
    return Profile(name, len(machines), latency, engines=tuple(rows), memory=memory, events=events)
