"""Which elements of a buffer a view reads: offset, sizes and strides, kept through every step of a chain of views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from ..graph import views as st
from ..graph.shapes import LEFT_OUT, hint, hints

__all__ = ["StridedRegion", "dense"]


def dense(sizes: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides."""
    return _dense(tuple(sizes))


@lru_cache(maxsize=4096)
def _dense(sizes: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


class _Strided(NamedTuple):
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    strided: bool = True


class StridedRegion(_Strided):
    """A strided view of a buffer, in elements. `strided` is False once no strides describe it, as after permute and reshape."""

    @classmethod
    def whole(cls, sizes: Sequence[int]) -> StridedRegion:
        """All of a contiguous buffer."""
        return _whole(tuple(sizes))

    @cached_property
    def elements(self) -> int:
        """Distinct elements."""
        return math.prod(n for n, s in zip(self.sizes, self.strides, strict=True) if s != 0)

    @cached_property
    def contiguous(self) -> bool:
        """Whether it is in memory row by row without gaps."""
        wanted = dense(self.sizes)
        return self.strided and all(n == 1 or s == w for n, s, w in zip(self.sizes, self.strides, wanted, strict=True))

    @cached_property
    def key(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Equal for views of the same elements, however their axes are ordered, split or merged."""
        axes = sorted((s, n) for n, s in zip(self.sizes, self.strides, strict=True) if n != 1 and s != 0)
        merged: list[tuple[int, int]] = []
        for stride, size in axes:
            if merged and merged[-1][0] * merged[-1][1] == stride:
                merged[-1] = (merged[-1][0], merged[-1][1] * size)
            else:
                merged.append((stride, size))
        return self.offset, tuple(merged)

    def apply(self, step: st.ViewOp) -> StridedRegion:
        """The view of this view that `step` makes."""
        if _axes(step) > len(
            self.sizes
        ):  # without strides it is one run of elements, and which of them the view takes is unknown
            return self
        match step:
            case st.Permute(dims):
                sizes, strides = (tuple(axes[d] for d in dims) for axes in (self.sizes, self.strides))
                return StridedRegion(self.offset, sizes, strides, self.strided)
            case st.Slice(dim, start, size, by):
                moved = self.offset + start * self.strides[dim]
                sizes = (*self.sizes[:dim], hint(size, LEFT_OUT), *self.sizes[dim + 1 :])
                strides = (*self.strides[:dim], self.strides[dim] * by, *self.strides[dim + 1 :])
                return StridedRegion(moved, sizes, strides, self.strided)
            case st.Select(dim, index):
                sizes, strides = (axes[:dim] + axes[dim + 1 :] for axes in (self.sizes, self.strides))
                return StridedRegion(self.offset + index * self.strides[dim], sizes, strides, self.strided)
            case st.Expand(shape):
                return self._expand(hints(shape, LEFT_OUT))
            case st.Reshape(shape):
                return self._reshape(hints(shape, LEFT_OUT))
        return self

    def reshaped(self, shape: tuple[int, ...]) -> StridedRegion:
        """Other sizes, the same elements in the same order."""
        return self._reshape(shape)

    def _expand(self, shape: tuple[int, ...]) -> StridedRegion:
        new = len(shape) - len(self.sizes)
        old = zip(self.sizes, self.strides, shape[new:], strict=True)
        strides = (0,) * new + tuple(0 if n == 1 and w != 1 else s for n, s, w in old)
        return StridedRegion(self.offset, shape, strides, self.strided)

    def _reshape(self, shape: tuple[int, ...]) -> StridedRegion:
        """As `torch.Tensor.view` computes strides: axes that are adjacent in memory may be split and merged."""
        strides = _view_strides(self.sizes, self.strides, shape) if self.strided else None
        if strides is not None:
            return StridedRegion(self.offset, shape, strides)
        # No strides: remember the distinct elements as one run, so that bytes stay right.
        elements = self.elements
        if math.prod(shape) != elements:
            return StridedRegion(self.offset, (elements,), (1,), False)._broadcast_as(shape)
        return StridedRegion(self.offset, shape, dense(shape), False)

    def _broadcast_as(self, shape: tuple[int, ...]) -> StridedRegion:
        repeats = max(1, math.prod(shape) // max(1, self.sizes[0]))
        return StridedRegion(self.offset, (repeats, self.sizes[0]), (0, 1), self.strided)


@lru_cache(maxsize=4096)  # the cached properties of a region then serve all tensors of its sizes
def _whole(sizes: tuple[int, ...]) -> StridedRegion:
    return StridedRegion(0, sizes, dense(sizes))


def _axes(step: st.ViewOp) -> int:
    """How many axes a tensor must have for `step`."""
    match step:
        case st.Permute(dims):
            return len(dims)
        case st.Slice(dim) | st.Select(dim):
            return dim + 1
    return 0


def _view_strides(sizes: Sequence[int], strides: Sequence[int], shape: Sequence[int]) -> tuple[int, ...] | None:
    if math.prod(shape) == 0:
        return dense(shape)
    runs = _runs(sizes, strides)
    result: list[int] = []
    pending = list(shape)
    for run, step in runs:
        left, taken = run, []
        while pending and (left > 1 or pending[-1] == 1):
            size = pending.pop()
            if left % size:
                return None
            taken.append(step)
            step, left = step * size, left // size
        if left != 1:
            return None
        result += taken
    result += [1] * len(pending) if all(n == 1 for n in pending) else []
    return tuple(reversed(result)) if len(result) == len(shape) else None


def _runs(sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(elements, stride) of the groups of neighbouring axes that one stride walks through, innermost first."""
    runs: list[tuple[int, int]] = []
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0] * size, runs[-1][1])
        else:
            runs.append((size, stride))
    return runs
