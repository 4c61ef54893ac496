"""One allocation: its elements, which of them have been written, and when."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from enum import Enum

import numpy as np

from .dtypes import DType
from .tracker import AddressTracker, Tracker


class MemoryRegion(Enum):
    """Memories a tensor can live in (names as in ``nki.language``)."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"


ON_CHIP = frozenset({MemoryRegion.sbuf, MemoryRegion.psum})

UNWRITTEN = 0
WRITTEN = 1
MATMUL_STARTED = 2  # holds a sum that an overwriting matmul started: the only thing a matmul may add to


class Storage:
    """Elements of one tensor in row-major order, with their state.

    ``data`` is a flat NumPy array, or None when only shapes and limits are checked. ``uniform`` is the state shared by
    all elements, or None when ``state`` holds one state byte per ``unit`` bytes of storage.
    """

    __slots__ = (
        "__weakref__",
        "address",
        "buffer",
        "bytes_per_partition",
        "data",
        "dtype",
        "free_size",
        "line",
        "mutated",
        "name",
        "neighbours",
        "on_chip",
        "on_free",
        "reclaimed",
        "shape",
        "size",
        "state",
        "store_itemsize",
        "strides",
        "tracker",
        "uniform",
        "unit",
        "widened",
    )

    def __init__(self, shape: tuple[int, ...], dtype: DType, buffer: MemoryRegion, name: str, line: str) -> None:
        self.shape = shape
        self.dtype = dtype
        self.buffer = buffer
        self.name = name
        self.line = line
        self.on_chip = buffer in ON_CHIP
        self.size = math.prod(shape)
        strides, run = [], 1
        for n in reversed(shape):
            strides.append(run)
            run *= n
        self.strides = tuple(reversed(strides))
        self.free_size = self.strides[0] if self.on_chip else self.size
        self.bytes_per_partition = self.free_size * dtype.itemsize
        self.data: np.ndarray | None = None
        self.store_itemsize = dtype.itemsize
        self.widened = False
        self.uniform: int | None = UNWRITTEN
        self.state: np.ndarray | None = None
        self.unit = dtype.itemsize
        self.address: tuple[int, int] | None = None
        self.neighbours: list[weakref.ref[Storage]] = []
        self.tracker: Tracker | AddressTracker = Tracker(shape, self.on_chip)
        self.on_free: Callable[[Storage], None] | None = None
        self.reclaimed = False
        self.mutated = False

    def __del__(self) -> None:
        if self.on_free is not None:
            self.on_free(self)

    def fill_unwritten(self, precise: bool) -> None:
        """Allocate elements: NaN for floats, 4 for integers, as ``nki.simulate`` fills fresh memory."""
        low = self.dtype.kind == "f" and self.dtype.itemsize < 4
        self.widened = low and not precise
        store = np.dtype(np.float32) if self.widened else self.dtype.np
        self.store_itemsize = store.itemsize
        self.data = np.empty(self.size, store)
        self.data.fill(np.nan if self.dtype.kind == "f" else 4)

    def adopt(self, values: np.ndarray | None, precise: bool) -> None:
        """Take ``values`` (kernel input, already of this dtype) as contents, fully written."""
        self.uniform = WRITTEN
        if values is None:
            return
        low = self.dtype.kind == "f" and self.dtype.itemsize < 4
        self.widened = low and not precise
        store = np.dtype(np.float32) if self.widened else self.dtype.np
        self.store_itemsize = store.itemsize
        self.data = np.array(values, dtype=store, order="C").reshape(-1)

    def _state_view(self, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, itemsize: int) -> np.ndarray:
        if self.state is None:
            count = self.size * self.dtype.itemsize // self.unit
            self.state = np.full(count, self.uniform, np.uint8)
            self.uniform = None
        if itemsize < self.unit:
            self.state = np.repeat(self.state, self.unit // itemsize)
            self.unit = itemsize
        k = itemsize // self.unit
        if k == 1:
            return np.ndarray(shape, np.uint8, self.state, offset, strides)  # type: ignore[arg-type]
        return np.ndarray((*shape, k), np.uint8, self.state, offset * k, (*[s * k for s in strides], 1))  # type: ignore[arg-type]

    def lowest_state(
        self, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, itemsize: int
    ) -> tuple[int, int, int]:
        """Return the lowest and highest state in a view, and how many of its elements are unwritten."""
        if self.uniform is not None:
            return self.uniform, self.uniform, (math.prod(shape) if self.uniform == UNWRITTEN else 0)
        part = self._state_view(shape, strides, offset, itemsize)
        low = int(part.min())
        missing = int((part == UNWRITTEN).sum()) * self.unit // itemsize if low == UNWRITTEN else 0
        return low, int(part.max()), missing

    def mark(
        self, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, itemsize: int, state: int, whole: bool
    ) -> None:
        """Set the state of a view's elements."""
        self.mutated = True
        if whole:
            self.uniform = state
            self.state = None
            return
        if self.uniform == state:
            return
        self._state_view(shape, strides, offset, itemsize)[...] = state

    def settle(self) -> bool:
        """Return whether every element has been written, remembering it if so."""
        if self.uniform is None and self.state is not None:
            low, high = int(self.state.min()), int(self.state.max())
            if low == high:
                self.uniform, self.state = low, None
            return low > UNWRITTEN
        return self.uniform != UNWRITTEN

    def invalidate(self, partitions: tuple[int, int], span: tuple[int, int]) -> None:
        """Forget absolute ``partitions`` x byte ``span`` (both half-open): another tensor was put there."""
        if self.address is None or (self.uniform == UNWRITTEN):
            return
        base_partition, base_byte = self.address
        if span[1] <= base_byte or span[0] >= base_byte + self.bytes_per_partition:
            return
        p0, p1 = (max(0, min(self.shape[0], p - base_partition)) for p in partitions)
        b0, b1 = (max(0, min(self.bytes_per_partition, b - base_byte)) for b in span)
        if p0 >= p1 or b0 >= b1:
            return
        whole = self._state_view((self.shape[0], self.free_size), (self.free_size, 1), 0, self.dtype.itemsize)
        item = self.dtype.itemsize
        whole[p0:p1, b0 // item : -(-b1 // item)] = UNWRITTEN
