"""``NkiTensor``: a strided view of one allocation, with the view methods of NKI 0.6."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import dtypes
from .dtypes import DType
from .errors import HardwareLimit, fail
from .storage import MemoryRegion, Storage
from .strides import bounding_box, infer_sizes, merge_dims, normal_index, restride, slice_bounds
from .tracker import Box


class NkiTensor:
    """View of a :class:`Storage`: ``shape``, ``strides`` and ``offset`` count elements of ``dtype``.

    On SBUF and PSUM, dimension 0 is the partition dimension. Views never copy. Every method raises
    :class:`EmulationError` (``index`` or ``view``) for what the hardware's access patterns cannot express.
    """

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")

    def __init__(
        self, storage: Storage, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, dtype: DType
    ) -> None:
        self.storage = storage
        self.shape = shape
        self.strides = strides
        self.offset = offset
        self.dtype = dtype

    @classmethod
    def whole(cls, storage: Storage) -> NkiTensor:
        """Return the view of all of ``storage``."""
        return cls(storage, storage.shape, storage.strides, 0, storage.dtype)

    @property
    def buffer(self) -> MemoryRegion:
        """Memory the tensor lives in."""
        return self.storage.buffer

    @property
    def name(self) -> str:
        """Name given at allocation."""
        return self.storage.name

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<NkiTensor{name} {self.buffer.name} {self.dtype}{list(self.shape)}>"

    def __len__(self) -> int:
        return self.shape[0]

    # -- what the machine asks ------------------------------------------------------------------------------------

    @property
    def is_whole(self) -> bool:
        """Whether the view covers its allocation exactly, in order."""
        st = self.storage
        return self.offset == 0 and self.shape == st.shape and self.strides == st.strides and self.dtype is st.dtype

    @property
    def row_size(self) -> int:
        """Elements of this dtype in one partition of the allocation (on-chip)."""
        st = self.storage
        return st.free_size * st.dtype.itemsize // self.dtype.itemsize

    @property
    def start_partition(self) -> int:
        """Absolute partition of element 0 (on-chip)."""
        base = self.storage.address[0] if self.storage.address else 0
        return base + self.offset // self.row_size

    @property
    def free_elements(self) -> int:
        """Elements per partition of the view."""
        return math.prod(self.shape[1:])

    def array(self) -> np.ndarray:
        """Return the NumPy view of the elements (writable; numerics only)."""
        st = self.storage
        assert st.data is not None
        store = st.data.dtype if st.widened else self.dtype.np
        item = store.itemsize
        strides = tuple([s * item for s in self.strides])
        return np.ndarray(self.shape, store, st.data, self.offset * item, strides)  # type: ignore[arg-type]

    def box(self) -> Box | None:
        """Return the bounding box in the allocation's own dimensions; None when it is the whole allocation."""
        st = self.storage
        if self.is_whole:
            return None
        if self.dtype.itemsize != st.dtype.itemsize:
            return self._coarse_box()
        return bounding_box(st.shape, st.strides, self.shape, self.strides, self.offset)

    def _coarse_box(self) -> Box | None:
        st = self.storage
        if not st.on_chip:
            return None
        first = self.offset // self.row_size
        return ((first, first + self.shape[0] - 1), *[(0, n - 1) for n in st.shape[1:]])

    def free_span(self) -> tuple[int, int]:
        """Return the half-open element range that the view touches within a partition's row."""
        first = self.offset % self.row_size
        reach = sum((n - 1) * s for n, s in zip(self.shape[1:], self.strides[1:], strict=True))
        return first, first + reach + 1

    def runs(self, keep: int = 1) -> list[tuple[int, int]]:
        """Return ``(stride, count)`` of the dimensions from ``keep`` on, adjacent contiguous ones merged."""
        out: list[tuple[int, int]] = []
        for stride, n in zip(self.strides[keep:], self.shape[keep:], strict=True):
            if n == 1:
                continue
            if out and out[-1][0] == stride * n:
                out[-1] = (stride, out[-1][1] * n)
            else:
                out.append((stride, n))
        return out

    # -- views ----------------------------------------------------------------------------------------------------

    def _view(self, shape: Sequence[int], strides: Sequence[int], offset: int | None = None) -> NkiTensor:
        at = self.offset if offset is None else offset
        return NkiTensor(self.storage, tuple(shape), tuple(strides), at, self.dtype)

    def __getitem__(self, key: Any) -> NkiTensor:
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys[at : at + 1] = [slice(None)] * (self.ndim - len(keys) + 1)
        if len(keys) > self.ndim:
            fail(HardwareLimit.INDEX, "index", f"{len(keys)} indices on a tensor of {self.ndim} dimensions")
        keys += [slice(None)] * (self.ndim - len(keys))
        shape: list[int] = []
        strides: list[int] = []
        offset = self.offset
        for dim, (k, n, s) in enumerate(zip(keys, self.shape, self.strides, strict=True)):
            if isinstance(k, slice):
                start, count, step = slice_bounds(k, n, dim)
                offset += start * s
                shape.append(count)
                strides.append(s * step)
            elif isinstance(k, int | np.integer):
                offset += normal_index(int(k), n, "index") * s
                if dim == 0 and self.storage.on_chip:
                    shape.append(1)
                    strides.append(s)
            else:
                fail(HardwareLimit.UNSUPPORTED, "index", f"cannot index with {type(k).__name__}: run-time indices")
        if not shape or (self.storage.on_chip and len(shape) == 1):
            shape.append(1)
            strides.append(1)
        return self._view(shape, strides, offset)

    def __setitem__(self, key: Any, value: Any) -> None:
        fail(
            HardwareLimit.UNSUPPORTED, "assignment", "tensors are written by instructions (dst=...), not by assignment"
        )

    def _dim(self, dim: int, what: str, first_ok: bool = False) -> int:
        d = normal_index(dim, self.ndim, what)
        if d == 0 and self.storage.on_chip and not first_ok:
            fail(HardwareLimit.VIEW, what, "the partition dimension of an on-chip tensor cannot take part in this view")
        return d

    def slice(self, dim: int, start: int, end: int, step: int = 1) -> NkiTensor:
        """Return elements ``start:end:step`` of ``dim``."""
        d = self._dim(dim, "slice", first_ok=True)
        keys: list[Any] = [slice(None)] * self.ndim
        keys[d] = slice(start, end, step)
        return self[tuple(keys)]

    def select(self, dim: int, index: int) -> NkiTensor:
        """Return element ``index`` of ``dim``, dropping the dimension (kept with size 1 for partitions)."""
        if not isinstance(index, int | np.integer):
            fail(HardwareLimit.UNSUPPORTED, "select", "run-time (tensor) indices are not emulated")
        d = self._dim(dim, "select", first_ok=True)
        return self[(*[slice(None)] * d, int(index))]

    def permute(self, dims: Sequence[int]) -> NkiTensor:
        """Reorder dimensions; on-chip ``dims[0]`` must be 0."""
        if sorted(dims) != list(range(self.ndim)):
            fail(HardwareLimit.VIEW, "permute", f"{tuple(dims)} is no permutation of {self.ndim} dimensions")
        if self.storage.on_chip and dims[0] != 0:
            fail(HardwareLimit.VIEW, "permute", "the partition dimension must stay first")
        return self._view([self.shape[d] for d in dims], [self.strides[d] for d in dims])

    def broadcast(self, dim: int, size: int) -> NkiTensor:
        """Repeat a size-1 free dimension ``size`` times (stride 0)."""
        d = self._dim(dim, "broadcast")
        if self.shape[d] != 1:
            fail(HardwareLimit.VIEW, "broadcast", f"dimension {d} has size {self.shape[d]}, not 1")
        shape, strides = list(self.shape), list(self.strides)
        shape[d], strides[d] = size, 0
        return self._view(shape, strides)

    def expand_dim(self, dim: int) -> NkiTensor:
        """Insert a dimension of size 1 at ``dim``."""
        d = dim + self.ndim + 1 if dim < 0 else dim
        if not 0 <= d <= self.ndim or (d == 0 and self.storage.on_chip):
            fail(HardwareLimit.VIEW, "expand_dim", f"cannot insert a dimension at {dim} of {list(self.shape)}")
        stride = self.strides[d] * self.shape[d] if d < self.ndim else 1
        return self._view((*self.shape[:d], 1, *self.shape[d:]), (*self.strides[:d], stride, *self.strides[d:]))

    def squeeze_dim(self, dim: int) -> NkiTensor:
        """Remove a dimension of size 1."""
        d = self._dim(dim, "squeeze_dim")
        if self.shape[d] != 1:
            fail(HardwareLimit.VIEW, "squeeze_dim", f"dimension {d} has size {self.shape[d]}, not 1")
        return self._view((*self.shape[:d], *self.shape[d + 1 :]), (*self.strides[:d], *self.strides[d + 1 :]))

    def reshape_dim(self, dim: int, shape: Sequence[int]) -> NkiTensor:
        """Split one dimension into ``shape`` (one entry may be -1)."""
        sizes = infer_sizes(shape, self.shape[normal_index(dim, self.ndim, "reshape_dim")], "reshape_dim")
        d = self._dim(dim, "reshape_dim", first_ok=len(sizes) == 1)
        inner, strides = self.strides[d], []
        for n in reversed(sizes):
            strides.append(inner)
            inner *= n
        return self._view(
            (*self.shape[:d], *sizes, *self.shape[d + 1 :]),
            (*self.strides[:d], *reversed(strides), *self.strides[d + 1 :]),
        )

    def flatten_dims(self, start_dim: int, end_dim: int) -> NkiTensor:
        """Merge dimensions ``start_dim..end_dim`` (inclusive), which must be contiguous."""
        a, b = self._dim(start_dim, "flatten_dims"), self._dim(end_dim, "flatten_dims")
        merged = merge_dims(self.shape[a : b + 1], self.strides[a : b + 1])
        if len(merged) > 1:
            fail(
                HardwareLimit.VIEW,
                "flatten_dims",
                f"dimensions {a}..{b} of strides {list(self.strides)} are not contiguous",
            )
        n, s = merged[0] if merged else (1, 1)
        return self._view((*self.shape[:a], n, *self.shape[b + 1 :]), (*self.strides[:a], s, *self.strides[b + 1 :]))

    def reshape(self, shape: Sequence[int]) -> NkiTensor:
        """Reshape without copying; on-chip ``shape[0]`` must stay."""
        sizes = infer_sizes(shape, self.size, "reshape")
        keep = 0
        if self.storage.on_chip:
            keep = 1
            if sizes[0] != self.shape[0]:
                fail(HardwareLimit.VIEW, "reshape", f"partition dimension {self.shape[0]} would become {sizes[0]}")
        strides = restride(merge_dims(self.shape[keep:], self.strides[keep:]), sizes[keep:])
        if strides is None:
            fail(
                HardwareLimit.VIEW, "reshape", f"{list(self.shape)} with strides {list(self.strides)} cannot be {sizes}"
            )
        return self._view(sizes, (*self.strides[:keep], *strides))

    def rearrange(
        self, src_pattern: Sequence[Any], dst_pattern: Sequence[Any], fixed_sizes: dict[str, int] | None = None
    ) -> NkiTensor:
        """Split, reorder and merge dimensions by name: ``(('b', ('h', 'w')), ('b', 'w', 'h'), {'h': 4})``."""
        if len(src_pattern) != self.ndim:
            fail(HardwareLimit.VIEW, "rearrange", f"pattern {src_pattern} for {self.ndim} dimensions")
        known = dict(fixed_sizes or {})
        view = self
        names: list[str] = []
        for entry in src_pattern:
            group = (entry,) if isinstance(entry, str) else tuple(entry)
            names += group
            if len(group) > 1:
                view = view.reshape_dim(len(names) - len(group), [known.get(g, -1) for g in group])
        order = [n for entry in dst_pattern for n in ((entry,) if isinstance(entry, str) else entry)]
        if sorted(order) != sorted(names):
            fail(HardwareLimit.VIEW, "rearrange", f"{dst_pattern} does not use the names of {src_pattern}")
        view = view.permute([names.index(n) for n in order])
        for dim, entry in enumerate(dst_pattern):
            if not isinstance(entry, str) and len(entry) > 1:
                view = view.flatten_dims(dim, dim + len(entry) - 1)
        return view

    def view(self, dtype: Any) -> NkiTensor:
        """Reinterpret the bits as ``dtype``; the last dimension scales with the item size."""
        target = dtypes.of(dtype)
        if target is None:
            fail(HardwareLimit.DTYPE, "view", f"{dtype!r} is no NKI dtype")
        if self.storage.widened and target is not self.dtype:
            fail(HardwareLimit.UNSUPPORTED, "view", "low-precision tensors cannot be reinterpreted when precise=False")
        old, new = self.dtype.itemsize, target.itemsize
        if old == new:
            return NkiTensor(self.storage, self.shape, self.strides, self.offset, target)
        last = self.shape[-1] * old
        counts = (*self.strides[:-1], self.offset)
        if self.strides[-1] != 1 or last % new or any(c * old % new for c in counts):
            fail(
                HardwareLimit.VIEW,
                "view",
                f"last dimension of {list(self.shape)} {self.dtype} cannot be read as {target}",
            )
        strides = (*[s * old // new for s in self.strides[:-1]], 1)
        return NkiTensor(self.storage, (*self.shape[:-1], last // new), strides, self.offset * old // new, target)

    reinterpret_cast = view

    def ap(
        self,
        pattern: Sequence[Sequence[int]],
        offset: int | None = None,
        scalar_offset: Any = None,
        vector_offset: Any = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> NkiTensor:
        """Return an explicit access pattern ``[[stride, count], ...]`` over the storage (element units)."""
        if scalar_offset is not None or vector_offset is not None:
            fail(HardwareLimit.UNSUPPORTED, "ap", "run-time offsets (indirect addressing) are not emulated")
        base = self if dtype is None else NkiTensor.whole(self.storage).view(dtype)
        start = self.offset + (offset or 0)
        view = NkiTensor(
            self.storage, tuple(int(p[1]) for p in pattern), tuple(int(p[0]) for p in pattern), start, base.dtype
        )
        limit = self.storage.size * self.storage.dtype.itemsize // base.dtype.itemsize
        last = start + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
        if start < 0 or last >= limit or any(n < 1 for n in view.shape):
            fail(
                HardwareLimit.INDEX,
                "ap",
                f"pattern {list(pattern)} at offset {start} ends at {last} of {limit} elements",
            )
        if self.storage.on_chip and view.free_span()[1] > view.row_size:
            fail(
                HardwareLimit.INDEX,
                "ap",
                f"pattern {list(pattern)} leaves its partition row of {view.row_size} elements",
            )
        return view

    def vector_select(self, dim: int, vector_offset: NkiTensor) -> NkiTensor:
        """Refuse: per-partition indirect addressing is not emulated."""
        fail(HardwareLimit.UNSUPPORTED, "vector_select", "indirect addressing is not emulated")

    def indirect(self, index: NkiTensor, num_elem: int | None = None) -> NkiTensor:
        """Refuse: tensor indirection is not emulated."""
        fail(HardwareLimit.UNSUPPORTED, "indirect", "tensor indirection is not emulated")

    def is_indirect(self) -> bool:
        """Return False: indirect views cannot be made here."""
        return False

    def is_contiguous(self) -> bool:
        """Return whether the elements (per partition on-chip) lie row-major without gaps."""
        merged = merge_dims(self.shape[int(self.storage.on_chip) :], self.strides[int(self.storage.on_chip) :])
        return not merged or (len(merged) == 1 and merged[0][1] == 1)

    def get_pattern(self) -> list[list[int]]:
        """Return ``[[stride, count], ...]`` of the view."""
        return [[s, n] for s, n in zip(self.strides, self.shape, strict=True)]
