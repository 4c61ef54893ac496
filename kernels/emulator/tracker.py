"""When regions of a memory were last read and written, in modelled time.

Each allocation is a grid of cells over its own dimensions; a cell holds the end of the last write and of the last read.
An access covers the bounding box of its elements, so two interleaved strided accesses look like they overlap: the
model may order more than the device would, never less.
"""

from __future__ import annotations

import math

import numpy as np

Box = tuple[tuple[int, int], ...]  # (first, last) per dimension, inclusive

_MAX_CELLS = 8192
_QUADRANT = 32


def _steps(shape: tuple[int, ...], on_chip: bool, most: int) -> tuple[int, ...]:
    steps = [1] * len(shape)
    if on_chip:
        steps[0] = _QUADRANT
    while math.prod(-(-n // s) for n, s in zip(shape, steps, strict=True)) > most:
        counts = [-(-n // s) for n, s in zip(shape, steps, strict=True)]
        steps[counts.index(max(counts))] *= 2
    return tuple(steps)


class Tracker:
    """Read and write times of one allocation, as scalars while it is used whole, as a grid afterwards."""

    __slots__ = ("_most", "_on_chip", "_r", "_reads", "_shape", "_steps", "_w", "_writes")

    def __init__(self, shape: tuple[int, ...], on_chip: bool, ready: float = 0.0, most_cells: int = _MAX_CELLS) -> None:
        self._shape = shape
        self._most = most_cells
        self._on_chip = on_chip
        self._w = ready
        self._r = ready
        self._steps: tuple[int, ...] = ()
        self._writes: np.ndarray | None = None
        self._reads: np.ndarray | None = None

    def _cells(self, box: Box) -> tuple[slice, ...]:
        return tuple([slice(lo // s, hi // s + 1) for (lo, hi), s in zip(box, self._steps, strict=True)])

    def _split(self) -> None:
        self._steps = _steps(self._shape, self._on_chip, self._most)
        counts = tuple(-(-n // s) for n, s in zip(self._shape, self._steps, strict=True))
        self._writes = np.full(counts, self._w)
        self._reads = np.full(counts, self._r)

    def read_after(self, box: Box | None) -> float:
        """Return when a read of ``box`` (None: all) may start: the end of the writes it sees."""
        if self._writes is None:
            return self._w
        return float(self._writes.max() if box is None else self._writes[self._cells(box)].max())

    def write_after(self, box: Box | None) -> float:
        """Return when a write of ``box`` may start: the end of earlier reads and writes there."""
        if self._writes is None or self._reads is None:
            return max(self._w, self._r)
        if box is None:
            return float(max(self._writes.max(), self._reads.max()))
        cells = self._cells(box)
        return float(max(self._writes[cells].max(), self._reads[cells].max()))

    def read(self, box: Box | None, end: float) -> None:
        """Note a read of ``box`` that ends at ``end`` ns."""
        if box is None and self._reads is None:
            self._r = max(self._r, end)
            return
        if self._reads is None:
            self._split()
        assert self._reads is not None
        cells: tuple[slice, ...] | slice = slice(None) if box is None else self._cells(box)
        part = self._reads[cells]
        np.maximum(part, end, out=part)

    def write(self, box: Box | None, end: float) -> None:
        """Note a write of ``box`` that ends at ``end`` ns."""
        if box is None:
            self._w = self._r = max(end, self.write_after(None))
            self._writes = self._reads = None
            return
        if self._writes is None:
            self._split()
        assert self._writes is not None
        part = self._writes[self._cells(box)]
        np.maximum(part, end, out=part)

    def last(self) -> float:
        """Return the end of the last access of any kind."""
        return self.write_after(None)


class AddressTracker:
    """The tracker of a tensor placed by hand: a window onto the tracker of the whole memory, by address."""

    __slots__ = ("_byte", "_memory", "_partition", "_strides", "_whole")

    GRANULE = 4  # bytes: placed scalars are adjacent, and coarser cells would make accesses to one wait for another

    def __init__(self, memory: Tracker, partition: int, byte: int, shape: tuple[int, ...], itemsize: int) -> None:
        self._memory = memory
        self._partition = partition
        self._byte = byte
        strides, run = [], itemsize
        for n in reversed(shape[1:]):
            strides.append(run)
            run *= n
        self._strides = tuple(reversed(strides))
        self._whole = ((partition, partition + shape[0] - 1), self._span(byte, byte + run - 1))

    def _span(self, lo: int, hi: int) -> tuple[int, int]:
        return lo // self.GRANULE, hi // self.GRANULE

    def _map(self, box: Box | None) -> Box:
        if box is None:
            return self._whole
        lo = sum(b[0] * s for b, s in zip(box[1:], self._strides, strict=True))
        hi = sum(b[1] * s for b, s in zip(box[1:], self._strides, strict=True)) + self._strides[-1] - 1
        return (
            (box[0][0] + self._partition, box[0][1] + self._partition),
            self._span(self._byte + lo, self._byte + hi),
        )

    def read_after(self, box: Box | None) -> float:
        """See :meth:`Tracker.read_after`."""
        return self._memory.read_after(self._map(box))

    def write_after(self, box: Box | None) -> float:
        """See :meth:`Tracker.write_after`."""
        return self._memory.write_after(self._map(box))

    def read(self, box: Box | None, end: float) -> None:
        """See :meth:`Tracker.read`."""
        self._memory.read(self._map(box), end)

    def write(self, box: Box | None, end: float) -> None:
        """See :meth:`Tracker.write`."""
        self._memory.write(self._map(box), end)

    def last(self) -> float:
        """See :meth:`Tracker.last`."""
        return self._memory.write_after(self._whole)
