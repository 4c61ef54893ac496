"""The running machine: one per program (core) of a simulation, found by the instructions through a context variable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .dtypes import DType, cast, to_float32
from .errors import EmulationError, HardwareLimit, fail, kernel_line
from .memory import Memory, clobber
from .specs import PARTITIONS, PSUM_PARTITION_BYTES, DeviceSpec
from .storage import MATMUL_STARTED, ON_CHIP, UNWRITTEN, WRITTEN, MemoryRegion, Storage
from .tensor import NkiTensor
from .timeline import Engine, Event, Timeline

_CURRENT: ContextVar[Machine] = ContextVar("fluxrewrite_emulator_machine")


@dataclass(frozen=True)
class MachineOptions:
    """What a run does: see :func:`simulate` for the meaning of each field."""

    precise: bool = True
    numerics: bool = True
    trace: bool = True


@dataclass
class Counters:
    """Totals of one engine of one core."""

    instructions: int = 0
    cycles: float = 0.0
    busy_ns: float = 0.0
    macs: int = 0
    bytes: int = 0


@dataclass
class Shared:
    """What the cores of one logical core have in common: shared HBM, matched by the order of allocation."""

    hbm: list[Storage] = field(default_factory=list)
    constants: list[Storage] = field(default_factory=list)


class Machine:
    """Memories, clock and counters of one core while a kernel runs on it."""

    def __init__(
        self, device: DeviceSpec, options: MachineOptions, shared: Shared, program: int, programs: int
    ) -> None:
        self.device = device
        self.generation = device.generation
        self.options = options
        self.numerics = options.numerics
        self.shared = shared
        self.program = program
        self.programs = programs
        self.memories = {
            MemoryRegion.sbuf: Memory(MemoryRegion.sbuf, device.sbuf_partition_bytes),
            MemoryRegion.psum: Memory(MemoryRegion.psum, PSUM_PARTITION_BYTES),
        }
        self.timeline = Timeline(device, options.trace)
        self.counters: defaultdict[Engine, Counters] = defaultdict(Counters)
        self.vector_accumulator: np.ndarray | None = None
        self.vector_accumulator_valid = False
        self.scalar_accumulator: np.ndarray | None = None
        self.scalar_accumulator_valid = False
        self.barrier: Any = None
        self._shared_seen = 0

    # -- allocation -----------------------------------------------------------------------------------------------

    def allocate(
        self, shape: Sequence[int], dtype: DType, buffer: MemoryRegion, name: str, address: tuple[int, int] | None
    ) -> NkiTensor:
        """Allocate a tensor; raises the capacity, rank and partition-count errors."""
        sizes = tuple(int(n) for n in shape)
        if not sizes or any(n < 1 for n in sizes):
            fail(HardwareLimit.SHAPE, "ndarray", f"shape {list(sizes)} has a dimension below 1")
        if buffer in ON_CHIP and len(sizes) < 2:
            fail(
                HardwareLimit.ON_CHIP_RANK,
                "ndarray",
                f"{buffer.name} tensor of shape {list(sizes)} needs two dimensions",
            )
        if buffer in ON_CHIP and sizes[0] > PARTITIONS:
            fail(
                HardwareLimit.PARTITION_COUNT,
                "ndarray",
                f"shape {list(sizes)} has {sizes[0]} partitions; the limit is 128",
            )
        storage = Storage(sizes, dtype, buffer, name, kernel_line())
        if buffer in ON_CHIP:
            memory = self.memories[buffer]
            if address is None:
                memory.allocate(storage)
            else:
                memory.place(storage, (int(address[0]), int(address[1])))
        elif buffer is MemoryRegion.shared_hbm:
            storage = self._shared_storage(storage)
        if self.numerics and storage.data is None:
            storage.fill_unwritten(self.options.precise)
        return NkiTensor.whole(storage)

    def _shared_storage(self, storage: Storage) -> Storage:
        index, self._shared_seen = self._shared_seen, self._shared_seen + 1
        if index == len(self.shared.hbm):
            self.shared.hbm.append(storage)
            return storage
        first = self.shared.hbm[index]
        if first.shape != storage.shape or first.dtype != storage.dtype:
            text = f"core {self.program} allocates {storage.shape} {storage.dtype} where core 0 had {first.shape}"
            fail(HardwareLimit.LNC, "ndarray", f"the cores' control flow differs: {text}")
        return first

    # -- one instruction ------------------------------------------------------------------------------------------

    def _ready(self, name: str, reads: Sequence[NkiTensor], writes: Sequence[NkiTensor]) -> tuple[float, list[Any]]:
        ready, boxes = 0.0, []
        for view in reads:
            storage = view.storage
            if storage.reclaimed:
                self.memories[storage.buffer].refuse(storage)
            if storage.uniform is None or storage.uniform == UNWRITTEN:
                self._check_written(name, view)
            box = view.box()
            boxes.append(box)
            ready = max(ready, storage.tracker.read_after(box))
        for view in writes:
            storage = view.storage
            if storage.reclaimed:
                self.memories[storage.buffer].refuse(storage)
            box = view.box()
            boxes.append(box)
            ready = max(ready, storage.tracker.write_after(box))
        return ready, boxes

    def _check_written(self, name: str, view: NkiTensor) -> None:
        st = view.storage
        low, _, missing = st.lowest_state(view.shape, view.strides, view.offset, view.dtype.itemsize)
        if low == UNWRITTEN:
            text = f"{st.name or 'tensor'} {list(st.shape)} {st.dtype} from {st.line}"
            fail(
                HardwareLimit.UNINITIALISED,
                name,
                f"reads {missing} of {view.size} elements of {text} that nothing has written",
            )

    def _done(
        self,
        boxes: list[Any],
        reads: Sequence[NkiTensor],
        writes: Sequence[NkiTensor],
        end: float,
        state: int,
    ) -> None:
        for view, box in zip(reads, boxes, strict=False):
            view.storage.tracker.read(box, end)
        for view, box in zip(writes, boxes[len(reads) :], strict=True):
            storage = view.storage
            storage.tracker.write(box, end)
            storage.mark(view.shape, view.strides, view.offset, view.dtype.itemsize, state=state, whole=view.is_whole)
            if storage.neighbours:
                self._clobber(view)

    def _clobber(self, view: NkiTensor) -> None:
        assert view.storage.address is not None
        item, (lo, hi) = view.dtype.itemsize, view.free_span()
        first, base = view.start_partition, view.storage.address[1]
        clobber(view.storage, (first, first + view.shape[0]), (base + lo * item, base + hi * item))

    def _count(self, engine: Engine, event: Event, cycles: float, busy: float) -> None:
        c = self.counters[engine]
        c.instructions += 1
        c.cycles += cycles
        c.busy_ns += busy
        c.macs += event.macs
        c.bytes += event.bytes

    def compute(
        self,
        name: str,
        engine: Engine,
        cycles: float,
        reads: Sequence[NkiTensor],
        writes: Sequence[NkiTensor],
    ) -> None:
        """Issue an instruction on Vector, Scalar or GpSimd; raises ``uninitialised`` and late capacity errors."""
        ready, boxes = self._ready(name, reads, writes)
        ports: tuple[str, ...] = ()
        if self.generation == 2:
            ports = _shared_ports(engine, (*reads, *writes))
        event = self.timeline.compute(name, engine, cycles, ready, self._line(), ports=ports)
        self._count(engine, event, cycles, event.end - event.start)
        self._done(boxes, reads, writes, event.end, WRITTEN)

    def matmul(
        self,
        name: str,
        cycles: float,
        reads: Sequence[NkiTensor],
        dst: NkiTensor,
        *,
        macs: int,
        parts: tuple[int, ...] | None = None,
    ) -> None:
        """Issue a Tensor-engine instruction; later ones may accumulate onto ``dst``."""
        ready, boxes = self._ready(name, reads, (dst,))
        event, share = self.timeline.matmul(name, cycles, ready, self._line(), macs=macs, parts=parts)
        self._count(Engine.TENSOR, event, cycles, (event.end - event.start) * share)
        self._done(boxes, reads, (dst,), event.end, MATMUL_STARTED)

    def dma(
        self, name: str, src: NkiTensor, dst: NkiTensor, run: int, efficiency: float = 1.0, hwdge: bool = False
    ) -> None:
        """Issue a DMA copy of all of ``src`` in contiguous runs of ``run`` bytes."""
        ready, boxes = self._ready(name, (src,), (dst,))
        nbytes = max(src.size * src.dtype.itemsize, dst.size * dst.dtype.itemsize)
        event, busy = self.timeline.dma(name, nbytes, run, ready, self._line(), efficiency=efficiency, hwdge=hwdge)
        self._count(Engine.DMA, event, 0.0, busy)
        self._done(boxes, (src,), (dst,), event.end, WRITTEN)

    def receive(self, name: str, src: NkiTensor, dst: NkiTensor, other_ready: float) -> None:
        """Issue this core's half of an exchange: ``src`` leaves, ``dst`` arrives once the other core has it."""
        ready, boxes = self._ready(name, (src,), (dst,))
        nbytes = dst.size * dst.dtype.itemsize
        run = dst.free_elements * dst.dtype.itemsize
        event, busy = self.timeline.dma(name, nbytes, run, max(ready, other_ready), self._line())
        self._count(Engine.DMA, event, 0.0, busy)
        self._done(boxes, (src,), (dst,), event.end, WRITTEN)

    def _line(self) -> str:
        return kernel_line() if self.options.trace else ""


def _shared_ports(engine: Engine, views: Sequence[NkiTensor]) -> tuple[str, ...]:
    ports = []
    if engine is not Engine.SCALAR and any(v.buffer is MemoryRegion.sbuf for v in views):
        ports.append("sbuf")
    if engine is not Engine.GPSIMD and any(v.buffer is MemoryRegion.psum for v in views):
        ports.append("psum")
    return tuple(ports)


def enter(machine: Machine) -> Any:
    """Make ``machine`` the running one; returns the token for :func:`leave`."""
    return _CURRENT.set(machine)


def leave(token: Any) -> None:
    """Undo :func:`enter`."""
    _CURRENT.reset(token)


def current() -> Machine:
    """Return the running machine; raises ``unsupported`` outside of a simulation."""
    machine = _CURRENT.get(None)
    if machine is None:
        raise EmulationError(
            HardwareLimit.UNSUPPORTED, "NKI calls work only inside simulate(kernel)(...)", "nki", kernel_line()
        )
    return machine


def running() -> Machine | None:
    """Return the running machine, or None."""
    return _CURRENT.get(None)


# -- elements ----------------------------------------------------------------------------------------------------


def load(view: NkiTensor) -> np.ndarray:
    """Return the elements as float32, shape ``(P, elements per partition)``."""
    array = to_float32(view.array())
    return array if array.ndim == 2 else array.reshape(array.shape[0], -1)


def raw(view: NkiTensor) -> np.ndarray:
    """Return the stored elements, shape ``(P, elements per partition)``."""
    array = view.array()
    return array if array.ndim == 2 else array.reshape(array.shape[0], -1)


def store(view: NkiTensor, values: np.ndarray) -> None:
    """Write ``values`` (same element count, row-major) to ``view``, rounded to its dtype."""
    target = view.array()
    shaped = values if values.shape == target.shape else values.reshape(target.shape)
    if view.storage.widened or view.dtype.np == shaped.dtype:
        target[...] = cast(shaped, view.dtype) if view.dtype == "tfloat32" else shaped
    else:
        target[...] = cast(shaped, view.dtype)
