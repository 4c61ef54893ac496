"""Maps from the elements of a view to the elements of the tensor that it views, through any chain of views.

Chains are compared by these maps and not step by step. A reshape split in two, a reshape that is undone again and a permute made
of transposes have different steps but the same map; models and exporters write all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .shapes import Dim, Shape, same_dim, same_shape
from .views import AxisLanes, Cast, Expand, Permute, Reshape, Select, Slice, ViewOp

__all__ = ["Elements", "pure_reshape", "viewed"]


@dataclass(frozen=True)
class AxisRun:
    """`size` elements of axis `axis` of the tensor, each `stride` elements after the previous one."""

    axis: int
    stride: int
    size: Dim


@dataclass(frozen=True)
class Elements:
    """The elements of a tensor that a view shows.

    Attributes:
        source: shape of the tensor.
        shape: shape of the view.
        runs: for each axis of the view, the runs that it consists of, outermost first. An axis of size 1 has none.
        offsets: for each axis of the tensor, the first element shown.
    """

    source: Shape
    shape: Shape
    runs: tuple[tuple[AxisRun, ...], ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[Dim]) -> Elements:
        """All elements of a tensor of this shape, in order."""
        # No run for an axis of size 1: reshapes add and drop such axes, so nothing says which of them is which.
        runs = tuple(() if same_dim(n, 1) else (AxisRun(axis, 1, n),) for axis, n in enumerate(shape))
        return cls(tuple(shape), tuple(shape), runs, (0,) * len(shape))

    def apply(self, step: ViewOp) -> Elements | None:
        """The map after one more view; None if it cannot be determined."""
        match step:
            case Cast():
                # A cast moves no element. Callers that care about rounding compare the dtypes themselves.
                return self
            case Expand(shape):
                # A broadcast shows elements several times. `permutation` and `lanes` need each to be shown at most once.
                return self if same_shape(shape, self.shape) else None
            case Permute(dims):
                return self._keep(dims)
            case Select(dim, index):
                return self._selected(dim, index)
            case Slice(dim, start, size, by):
                return self._sliced(dim, start, size, by)
            case Reshape(shape):
                return self._reshaped(tuple(shape))

    def _keep(self, dims: Sequence[int]) -> Elements:
        return replace(self, shape=tuple(self.shape[d] for d in dims), runs=tuple(self.runs[d] for d in dims))

    def _selected(self, dim: int, index: int) -> Elements | None:
        offsets = list(self.offsets)
        # An index into an axis of several runs is a mixed-radix number, with the innermost run as its lowest digit.
        for run in reversed(self.runs[dim]):
            if len(self.runs[dim]) > 1 and not isinstance(run.size, int):
                return None
            position = index if len(self.runs[dim]) == 1 else index % run.size
            offsets[run.axis] += position * run.stride
            index //= run.size if isinstance(run.size, int) else 1
        rest = self._keep([d for d in range(len(self.shape)) if d != dim])
        return replace(rest, offsets=tuple(offsets))

    def _sliced(self, dim: int, start: int, size: Dim, by: int) -> Elements | None:
        """The map after a slice of one axis. Only the outermost run of an axis may be cut.

        A cut through an inner run leaves elements that are no longer evenly spaced, which runs cannot express.
        """
        if not self.runs[dim]:
            return self if start == 0 and same_dim(size, 1) else None
        first, *rest = self.runs[dim]
        inner = math.prod(run.size for run in rest)
        if rest and (by != 1 or not all(isinstance(n, int) for n in (inner, size)) or start % inner or size % inner):
            return None
        count = size // inner if rest else size
        offsets = list(self.offsets)
        offsets[first.axis] += start // inner * first.stride
        cut = () if same_dim(count, 1) else (AxisRun(first.axis, first.stride * by, count),)
        shape, runs = list(self.shape), list(self.runs)
        shape[dim], runs[dim] = size, (*cut, *rest)
        return replace(self, shape=tuple(shape), runs=tuple(runs), offsets=tuple(offsets))

    def _reshaped(self, shape: Shape) -> Elements | None:
        """The same runs in the same order, divided among the axes of another shape."""
        left = list(_joined(run for runs in self.runs for run in runs))[
            ::-1
        ]  # reversed, so that pop() gives the outermost
        found: list[tuple[AxisRun, ...]] = []
        for size in shape:
            taken = _taken(left, size)
            if taken is None:
                return None
            found.append(_joined(taken))
        return None if left else replace(self, shape=shape, runs=tuple(found))

    @property
    def whole(self) -> bool:
        """Whether the view equals the tensor: same shape, same elements in the same places."""
        return self.same(Elements.of(self.source))

    @property
    def permutation(self) -> tuple[int, ...] | None:
        """For each axis of the view, the axis of the tensor that it is; None if axes were split, merged, cut or dropped.

        Axes of size 1 cannot be distinguished, so they are paired in order.
        """
        if len(self.shape) != len(self.source):
            return None
        taken = {runs[0].axis for runs in self.runs if runs}
        single = [axis for axis in range(len(self.source)) if axis not in taken]
        if not all(same_dim(self.source[axis], 1) for axis in single):
            return None
        if not all(same_dim(r.size, self.source[r.axis]) for runs in self.runs for r in runs):
            return None
        return tuple(runs[0].axis if runs else single.pop(0) for runs in self.runs)

    def same(self, other: Elements) -> bool:
        """Whether two views of tensors of one shape are provably the same."""
        if self.offsets != other.offsets or not same_shape(self.shape, other.shape):
            return False
        pairs = zip(self.runs, other.runs, strict=True)
        return all(len(a) == len(b) and all(map(_same, a, b)) for a, b in pairs)

    def lanes(self) -> AxisLanes | None:
        """The elements shown of the last axis of the tensor; None unless every other axis is whole and separate."""
        tracked = len(self.source) - 1
        # An axis of several runs has no single stride, and may mix elements of the last axis with those of others.
        if any(len(runs) > 1 for runs in self.runs):
            return None
        others = [r for runs in self.runs for r in runs if r.axis != tracked]
        if not all(same_dim(r.size, self.source[r.axis]) for r in others):
            return None
        seen = {r.axis for r in others}
        missing = [axis for axis in range(tracked) if axis not in seen]
        if not all(same_dim(self.source[axis], 1) for axis in missing):
            return None
        axes = tuple(runs[0].axis if runs else missing.pop(0) if missing else -1 for runs in self.runs)
        strides = tuple(runs[0].stride if runs and runs[0].axis == tracked else 0 for runs in self.runs)
        return AxisLanes(self.shape, strides, axes, tracked, self.offsets[tracked])


def viewed(shape: Sequence[Dim], steps: Iterable[ViewOp]) -> Elements | None:
    """The elements of a tensor of `shape` that a chain of views shows; None if they cannot be determined."""
    found: Elements | None = Elements.of(shape)
    for step in steps:
        found = found and found.apply(step)
    return found


def pure_reshape(shape: Sequence[Dim], steps: Sequence[ViewOp], result: Sequence[Dim]) -> bool:
    """Whether a chain of views of a tensor of `shape` equals one reshape to `result`, apart from casts."""
    # Reshapes alone keep the order of all elements, also where sizes are symbolic and runs cannot be divided.
    if all(isinstance(s, (Reshape, Cast)) for s in steps):
        last = next((s.shape for s in reversed(steps) if isinstance(s, Reshape)), shape)
        return same_shape(last, result)
    found, direct = viewed(shape, steps), viewed(shape, [Reshape(tuple(result))])
    return found is not None and direct is not None and found.same(direct)


def _same(a: AxisRun, b: AxisRun) -> bool:
    return (a.axis, a.stride) == (b.axis, b.stride) and same_dim(a.size, b.size)


def _taken(left: list[AxisRun], size: Dim) -> list[AxisRun] | None:
    """Runs with `size` elements in total, taken from the end of `left`; None if they do not fit.

    A run that is too long is divided: its outer part is taken and the rest stays in `left`.
    """
    taken: list[AxisRun] = []
    count: Dim = 1
    while not same_dim(count, size):
        if not left:
            return None
        run = left.pop()
        # A run of symbolic size is taken whole, because whether it can be divided depends on the value of the symbol.
        if isinstance(size, int) and isinstance(run.size, int) and isinstance(count, int):
            missing = size // count if size % count == 0 else 0
            if missing and missing < run.size and run.size % missing == 0:
                rest = run.size // missing
                left.append(AxisRun(run.axis, run.stride, rest))
                run = AxisRun(run.axis, run.stride * rest, missing)
        taken.append(run)
        count = count * run.size
        if len(taken) > 16:
            return None
    return taken


def _joined(runs: Iterable[AxisRun]) -> tuple[AxisRun, ...]:
    """Merge runs of one axis where one continues the other.

    Without this, an axis that was split and flattened again would not equal the axis that was never split.
    """
    found: list[AxisRun] = []
    for run in runs:
        last = found[-1] if found else None
        ints = last is not None and isinstance(last.size, int) and isinstance(run.size, int)
        if last is not None and ints and last.axis == run.axis and last.stride == run.stride * run.size:
            found[-1] = AxisRun(run.axis, run.stride, last.size * run.size)
        else:
            found.append(run)
    return tuple(found)
