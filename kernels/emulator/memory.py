"""SBUF and PSUM space: what is live, how much that is, and when freed space may be used again.

A tensor lives from ``nl.ndarray`` until its last view is garbage collected. A name that a loop binds again still holds
the previous iteration's tensor while the next one is allocated; when space runs short, such tensors, recognised by
their common source line, are reclaimed oldest first. A reclaimed tensor that is used again was needed after all: that
use is the capacity error. Space is a pool without addresses, so fragmentation is not modelled. Freed bytes remember
when their last access ends, and a new tensor placed on them cannot be written earlier: that is how depth of buffering
shows in the timeline. PSUM tensors take whole 2 KiB banks, or a power-of-two share of one, so none straddles a bank.
Tensors with an explicit ``address`` are counted by the highest address in use.
"""

from __future__ import annotations

import heapq
import weakref
from collections import defaultdict, deque

from .errors import EmulationError, HardwareLimit, kernel_line
from .specs import PARTITIONS, PSUM_BANK_BYTES
from .storage import UNWRITTEN, MemoryRegion, Storage
from .tracker import AddressTracker, Tracker

_ALIGN = 4
_BUCKET = 2048  # bytes of address space searched together for overlaps


def psum_bytes(size: int) -> int:
    """Return the bytes of a PSUM partition that a tensor of ``size`` bytes per partition takes."""
    if size > PSUM_BANK_BYTES // 2:
        return -(-size // PSUM_BANK_BYTES) * PSUM_BANK_BYTES
    return 1 << max(size - 1, _ALIGN - 1).bit_length()


class Memory:
    """One on-chip memory of one core; sizes are bytes per partition."""

    def __init__(self, region: MemoryRegion, capacity: int) -> None:
        self.region = region
        self.capacity = capacity
        self.live = 0
        self.peak = 0
        self._placed_top = 0
        self._free: list[tuple[float, int]] = [(0.0, capacity)]
        self._lines: defaultdict[str, deque[weakref.ref[Storage]]] = defaultdict(deque)
        self._placed: defaultdict[int, list[weakref.ref[Storage]]] = defaultdict(list)
        cells = (PARTITIONS, -(-capacity // AddressTracker.GRANULE))
        self._times = Tracker(cells, True, most_cells=cells[0] * cells[1])

    def _cost(self, storage: Storage) -> int:
        size = storage.bytes_per_partition
        return psum_bytes(size) if self.region is MemoryRegion.psum else -(-size // _ALIGN) * _ALIGN

    def allocate(self, storage: Storage) -> None:
        """Place ``storage``; raises ``sbuf_capacity``/``psum_capacity`` when live tensors leave no room."""
        cost = self._cost(storage)
        peers = self._lines[storage.line]
        while self.live + cost + self._placed_top > self.capacity and peers:
            old = peers.popleft()()
            if old is not None and not old.reclaimed:
                old.reclaimed = True
                self._release(old)
        if self.live + cost + self._placed_top > self.capacity:
            self.refuse(storage, cost)
        self.live += cost
        self.peak = max(self.peak, self.live + self._placed_top)
        storage.tracker = Tracker(storage.shape, True, self._take(cost))
        storage.on_free = self._on_free
        while peers and peers[0]() is None:
            peers.popleft()
        peers.append(weakref.ref(storage))

    def refuse(self, storage: Storage, cost: int | None = None) -> None:
        """Raise the capacity error for ``storage`` (``cost`` None: it was reclaimed, and is used again)."""
        limit = HardwareLimit.PSUM_CAPACITY if self.region is MemoryRegion.psum else HardwareLimit.SBUF_CAPACITY
        what = f"{storage.name or 'tensor'} {list(storage.shape)} {storage.dtype}"
        room = f"{self.live + self._placed_top} of {self.capacity} bytes per partition are live"
        if cost is None:
            text = f"{what} from {storage.line} is used, but its space had to be given to later tensors; {room}"
        else:
            text = f"{what} needs {cost} bytes per partition, but {room}"
        raise EmulationError(limit, text, "ndarray", kernel_line())

    def _take(self, cost: int) -> float:
        ready, need = 0.0, cost
        while need > 0 and self._free:
            at, size = heapq.heappop(self._free)
            ready = max(ready, at)
            if size > need:
                heapq.heappush(self._free, (at, size - need))
            need -= size
        return ready

    def _on_free(self, storage: Storage) -> None:
        if not storage.reclaimed:
            self._release(storage)

    def _release(self, storage: Storage) -> None:
        cost = self._cost(storage)
        self.live -= cost
        heapq.heappush(self._free, (storage.tracker.last(), cost))

    def place(self, storage: Storage, address: tuple[int, int]) -> None:
        """Put ``storage`` at ``(partition, byte)`` and note which placed tensors it overlaps."""
        partition, byte = address
        end = byte + storage.bytes_per_partition
        limit = HardwareLimit.PSUM_CAPACITY if self.region is MemoryRegion.psum else HardwareLimit.SBUF_CAPACITY
        grown = max(self._placed_top, end)
        if partition < 0 or partition + storage.shape[0] > PARTITIONS or byte < 0 or self.live + grown > self.capacity:
            text = (
                f"{storage.name or 'tensor'} {list(storage.shape)} {storage.dtype} at {address} ends at partition "
                f"{partition + storage.shape[0]}, byte {end}; {self.live} of {self.capacity} bytes are in use elsewhere"
            )
            raise EmulationError(limit, text, "ndarray", kernel_line())
        self._placed_top = grown
        self.peak = max(self.peak, self.live + grown)
        storage.address = address
        storage.tracker = AddressTracker(self._times, partition, byte, storage.shape, storage.dtype.itemsize)
        for other in self._near(byte, end):
            if _overlap(storage, other):
                other.neighbours.append(weakref.ref(storage))
                storage.neighbours.append(weakref.ref(other))
        for bucket in range(byte // _BUCKET, (end - 1) // _BUCKET + 1):
            self._placed[bucket].append(weakref.ref(storage))

    def _near(self, byte: int, end: int) -> set[Storage]:
        """Return live placed tensors that share an address bucket with ``byte`` to ``end``, dropping dead ones."""
        found: set[Storage] = set()
        for bucket in range(byte // _BUCKET, (end - 1) // _BUCKET + 1):
            live = [(ref, other) for ref in self._placed[bucket] if (other := ref()) is not None]
            self._placed[bucket] = [ref for ref, _ in live]
            found.update(other for _, other in live)
        return found


def _overlap(a: Storage, b: Storage) -> bool:
    assert a.address is not None
    assert b.address is not None
    (pa, ba), (pb, bb) = a.address, b.address
    return (
        pa < pb + b.shape[0]
        and pb < pa + a.shape[0]
        and ba < bb + b.bytes_per_partition
        and bb < ba + a.bytes_per_partition
    )


def clobber(storage: Storage, partitions: tuple[int, int], span: tuple[int, int]) -> None:
    """Forget the contents of tensors placed over bytes ``span`` of ``partitions`` that ``storage`` now writes."""
    for ref in storage.neighbours:
        other = ref()
        if other is not None and other.uniform != UNWRITTEN:
            other.invalidate(partitions, span)
