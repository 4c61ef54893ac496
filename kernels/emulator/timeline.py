"""The modelled clock of one core: engines in order, dependences between them, and the DMA rings.

An instruction starts when its engine is free, the data it reads are there and what it overwrites is no longer in use.
Tensor engine: sixteen 32x32 parts of the array, so tiled matmuls on different parts run side by side. NeuronCore-v2
only: Vector and GpSimd share the SBUF port, Vector and Scalar the PSUM port (architecture guide).

DMA: sixteen rings, each in order; a copy takes the ring whose last copy ended latest before its data are ready. Its
first byte moves ``dma_latency_ns`` after its data are ready, or when the ring gets to it. All rings share the core's
bandwidth: a copy is given the first gap that is long enough. Its rate falls with the length of its contiguous runs (see
``specs``) and with fewer than sixteen runs.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import StrEnum
from typing import NamedTuple

from . import specs
from .specs import DeviceSpec


class Engine(StrEnum):
    """Engines of the timeline."""

    TENSOR = "tensor"
    VECTOR = "vector"
    SCALAR = "scalar"
    GPSIMD = "gpsimd"
    DMA = "dma"


class Event(NamedTuple):
    """One instruction on the timeline; times in ns, ``lane`` is the DMA ring (0 elsewhere)."""

    name: str
    engine: Engine
    lane: int
    start: float
    end: float
    line: str
    bytes: int
    macs: int


class _Bandwidth:
    """Busy intervals of the shared DMA bandwidth, kept merged and sorted."""

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []

    def reserve(self, earliest: float, length: float) -> float:
        """Return the start of the first gap of ``length`` ns from ``earliest`` on, and occupy it."""
        i = bisect_right(self._ends, earliest)
        at = earliest
        while i < len(self._starts) and self._starts[i] < at + length:
            at = max(at, self._ends[i])
            i += 1
        end = at + length
        if i > 0 and at - self._ends[i - 1] < 1.0:
            self._ends[i - 1] = end
            if i < len(self._starts) and self._starts[i] - end < 1.0:
                self._ends[i - 1] = self._ends[i]
                del self._starts[i], self._ends[i]
        elif i < len(self._starts) and self._starts[i] - end < 1.0:
            self._starts[i] = at
        else:
            self._starts.insert(i, at)
            self._ends.insert(i, end)
        return at


class Timeline:
    """Clock of one core. All times in ns."""

    def __init__(self, device: DeviceSpec, keep_events: bool = True) -> None:
        self.device = device
        self.events: list[Event] = []
        self._keep = keep_events
        self._free = dict.fromkeys((Engine.VECTOR, Engine.SCALAR, Engine.GPSIMD), 0.0)
        self._array = [0.0] * 16
        self._ports = {"sbuf": 0.0, "psum": 0.0}
        self._rings = [0.0] * specs.DMA_RINGS
        self._dge = [0.0, 0.0]
        self._bandwidth = _Bandwidth()
        self.end = 0.0

    def _note(self, event: Event) -> Event:
        self.end = max(self.end, event.end)
        if self._keep:
            self.events.append(event)
        return event

    def compute(
        self,
        name: str,
        engine: Engine,
        cycles: float,
        ready: float,
        line: str,
        macs: int = 0,
        ports: tuple[str, ...] = (),
    ) -> Event:
        """Run ``cycles`` on an in-order engine, not before ``ready``."""
        start = max(self._free[engine], ready)
        shared = [p for p in ports if self.device.generation == 2]
        for port in shared:
            start = max(start, self._ports[port])
        end = start + cycles / self.device.clock_ghz[engine]
        self._free[engine] = end
        for port in shared:
            self._ports[port] = end
        return self._note(Event(name, engine, 0, start, end, line=line, bytes=0, macs=macs))

    def matmul(
        self, name: str, cycles: float, ready: float, line: str, macs: int, parts: tuple[int, ...] | None = None
    ) -> tuple[Event, float]:
        """Run ``cycles`` on ``parts`` of the array (None: all). Returns the event and the share of the array."""
        used = range(16) if parts is None else parts
        start = max(ready, max(self._array) if parts is None else max(self._array[p] for p in used))
        end = start + cycles / self.device.clock_ghz[Engine.TENSOR]
        for p in used:
            self._array[p] = end
        return self._note(Event(name, Engine.TENSOR, 0, start, end, line=line, bytes=0, macs=macs)), len(used) / 16

    def dma(
        self, name: str, nbytes: int, run: int, ready: float, line: str, efficiency: float = 1.0, hwdge: bool = False
    ) -> tuple[Event, float]:
        """Move ``nbytes`` in contiguous runs of ``run`` bytes. Returns the event and bandwidth-ns taken."""
        if hwdge:
            block = self._dge.index(min(self._dge))
            self._dge[block] = ready = max(self._dge[block], ready) + self.device.hwdge_issue_ns
        full = nbytes / (self.device.dma_bytes_per_ns * dma_efficiency(run) * efficiency)
        engines = self.device.dma_engines
        used = min(engines, -(-nbytes // min(run, specs.DMA_FULL_RUN_BYTES)))
        waiting = [r for r in self._rings if r <= ready]
        ring = self._rings.index(max(waiting) if waiting else min(self._rings))
        begin = max(ready + self.device.dma_latency_ns, self._rings[ring])
        start = self._bandwidth.reserve(begin, full)
        end = start + full * engines / used
        self._rings[ring] = end
        return self._note(Event(name, Engine.DMA, ring, start, end, line=line, bytes=nbytes, macs=0)), full

    def wait(self, engine: Engine, until: float) -> None:
        """Hold an in-order engine until ``until``."""
        if engine in self._free:
            self._free[engine] = max(self._free[engine], until)
            self.end = max(self.end, until)


def dma_efficiency(run: int) -> float:
    """Return the share of peak DMA bandwidth that contiguous runs of ``run`` bytes reach (see ``specs``)."""
    if run >= specs.DMA_FULL_RUN_BYTES:
        return 1.0
    overhead, full = specs.DMA_PACKET_OVERHEAD_BYTES, specs.DMA_FULL_RUN_BYTES
    return run / (run + overhead) * (full + overhead) / full
