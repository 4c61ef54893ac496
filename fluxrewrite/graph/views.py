"""What one view does to a tensor, as a step that does not depend on its spelling.

A step is derived from the shapes of the traced values where these determine it. `x.view(2, -1)`, `x.unflatten(0, (2, 3))` and
`x.reshape_as(y)` become the same `Reshape`, and no code has to repeat how PyTorch resolves -1 or negative axes in each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .op_table import RESHAPES, Fact
from .shapes import Dim, Shape, same_dim, same_shape

__all__ = [
    "AxisLanes",
    "Cast",
    "Expand",
    "Permute",
    "Reshape",
    "Select",
    "Slice",
    "ViewOp",
    "cast_steps",
    "holds",
    "same_steps",
    "unchanged",
    "view_steps",
]


@dataclass(frozen=True)
class Reshape:
    """The same elements in the same row-major order, in another shape."""

    shape: Shape


@dataclass(frozen=True)
class Permute:
    """Axis i of the result is axis `dims[i]` of the input."""

    dims: tuple[int, ...]


@dataclass(frozen=True)
class Slice:
    """`input[..., start : start + size * step : step, ...]` on axis `dim`."""

    dim: int
    start: int
    size: Dim
    step: int = 1


@dataclass(frozen=True)
class Select:
    """Element `index` of axis `dim`. The axis is dropped."""

    dim: int
    index: int


@dataclass(frozen=True)
class Expand:
    """Broadcast to `shape`."""

    shape: Shape


@dataclass(frozen=True)
class Cast:
    """A change of dtype only. It is `lossless` if the new dtype represents every value of the old one."""

    lossless: bool


ViewOp = Reshape | Permute | Slice | Select | Expand | Cast


def same_steps(a: Sequence[ViewOp], b: Sequence[ViewOp]) -> bool:
    """Whether two chains of views are provably equal, step by step."""
    return len(a) == len(b) and all(_same_step(x, y) for x, y in zip(a, b, strict=True))


def _same_step(a: ViewOp, b: ViewOp) -> bool:
    if type(a) is not type(b):
        return False
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(same_shape(x, y) if isinstance(x, tuple) else same_dim(x, y) for x, y in pairs)


@dataclass(frozen=True)
class AxisLanes:
    """The elements of one axis of a tensor that a view of the tensor shows.

    Attributes:
        sizes: shape of the view.
        strides: how far one step along each axis of the view moves on the tracked axis; 0 for views of other axes.
        axes: the axis of the tensor that each axis of the view is, or is part of; -1 for a new axis of size 1.
        tracked: the tracked axis of the tensor.
        offset: first element shown.
    """

    sizes: Shape
    strides: tuple[int, ...]
    axes: tuple[int, ...]
    tracked: int
    offset: int = 0

    @property
    def block(self) -> tuple[int, int] | None:
        """(start, length) if the elements shown are contiguous on the tracked axis, in any order of axes; else None."""
        tracked = sorted((s, n) for s, n in zip(self.strides, self.sizes, strict=True) if s and not same_dim(n, 1))
        length = 1
        for stride, size in tracked:
            if stride != length or not isinstance(size, int):
                return None
            length *= size
        return self.offset, length


# By what they hold, not by size: neither float16 nor bfloat16 holds all values of the other.
_FLOATS = {torch.float16: 1, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
_COMPLEX = {torch.complex32: 1, torch.complex64: 2, torch.complex128: 3}


def holds(wide: torch.dtype | None, narrow: torch.dtype | None) -> bool:
    """Whether the dtype `wide` represents every value of the dtype `narrow`."""
    if wide == narrow:
        return True
    ranks = next((r for r in (_FLOATS, _COMPLEX) if wide in r and narrow in r), None)
    return ranks is not None and ranks[wide] > ranks[narrow]  # type: ignore[index]


def cast_steps(before: torch.dtype, after: torch.dtype | None, old: Shape, new: Shape) -> tuple[ViewOp, ...] | None:
    """A cast between floats or between complex dtypes; None for any other cast, and if the shape changes."""
    # A cast to integers truncates, and one to complex adds a part. The algebra of a pattern holds for neither.
    if not same_shape(old, new):
        return None
    same_family = any(before in ranks and after in ranks for ranks in (_FLOATS, _COMPLEX))
    return (Cast(holds(after, before)),) if same_family or before == after else None


def unchanged(fact: Fact) -> Any:
    """The operand that an operation returns unchanged: of a product with 1, a cat of one tensor, or a dropout that is off."""
    match fact.op:
        case "mul" | "div":
            a, b = fact.args.get("input"), fact.args.get("other")
            if type(b) in (int, float) and b == 1 and fact.args.get("rounding_mode") is None:
                return a
            return b if fact.op == "mul" and type(a) in (int, float) and a == 1 else None
        case "dropout":
            off = fact.args.get("training", True) is False or fact.args.get("p", 0.5) == 0
            return fact.args.get("input") if off and not fact.writes else None
        case "cat":
            tensors = fact.args.get("tensors")
            return tensors[0] if isinstance(tensors, (tuple, list)) and len(tensors) == 1 else None
    return None


def view_steps(fact: Fact, before: Shape, after: Shape) -> tuple[ViewOp, ...] | None:
    """Steps of a view that keeps dtype and device, from its name and the shapes on both sides; None if they are not known."""
    rank = len(before)
    match fact.op:
        case op if op in RESHAPES:
            return (Reshape(after),)
        case "permute":
            dims = fact.args.get("dims", ())
            return (Permute(tuple(d % rank for d in dims)),) if all(isinstance(d, int) for d in dims) else None
        case "movedim":
            return _moved(rank, fact.args.get("source"), fact.args.get("destination"))
        case "transpose":
            return _swap(rank, fact.args.get("dim0"), fact.args.get("dim1"))
        case "t":
            return _swap(2, 0, 1) if rank == 2 else (Reshape(after),)
        # `T` of a tensor that is not a matrix reverses all axes, which PyTorch has deprecated.
        case "getattr" if fact.args.get("name") == "T" or fact.args.get("name") == "mT":
            return _swap(rank, -2, -1) if rank == 2 or fact.args["name"] == "mT" else None
        case "expand":
            return (Expand(after),)
        case "slice" | "narrow" | "select":
            return _axis_steps(fact, before, after)
        case "getitem":
            return _index_steps(fact.args.get("index"), before, after)
    return None


def _swap(rank: int, a: Any, b: Any) -> tuple[ViewOp, ...] | None:
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    dims = list(range(rank))
    dims[a], dims[b] = dims[b], dims[a]
    return (Permute(tuple(dims)),)


def _moved(rank: int, source: Any, destination: Any) -> tuple[ViewOp, ...] | None:
    froms, tos = ([n] if isinstance(n, int) else list(n) for n in (source, destination))
    if not all(isinstance(n, int) for n in (*froms, *tos)):
        return None
    placed = dict(zip((n % rank for n in tos), (n % rank for n in froms), strict=True))
    rest = iter([d for d in range(rank) if d not in placed.values()])
    return (Permute(tuple(placed[d] if d in placed else next(rest) for d in range(rank))),)


def _axis_steps(fact: Fact, before: Shape, after: Shape) -> tuple[ViewOp, ...] | None:
    dim = fact.args.get("dim", 0) % len(before)
    if fact.op == "select":
        return _index_steps((*[slice(None)] * dim, fact.args.get("index")), before, after)
    start, step = fact.args.get("start", 0), fact.args.get("step", 1)
    return _index_steps((*[slice(None)] * dim, slice(start, None, step)), before, after)


def _index_steps(index: Any, before: Shape, after: Shape) -> tuple[ViewOp, ...] | None:
    """Basic indexing (ints, slices, None, Ellipsis) as selects and slices, then one reshape for the new axes."""
    # True and False are ints to isinstance, but as an index they are masks.
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(i is None or i is Ellipsis or isinstance(i, (int, slice)) for i in items) or any(
        i is True or i is False for i in items
    ):
        return None
    real = sum(1 for i in items if i is not None and i is not Ellipsis)
    fill: list[Any] = [slice(None)] * (len(before) - real)
    at = next((n for n, i in enumerate(items) if i is Ellipsis), len(items))
    items = [*items[:at], *fill, *items[at + 1 :]]
    steps: list[ViewOp] = []
    dim, out = 0, 0  # axis of the running value, axis of the result
    for item in items:
        if item is None:
            out += 1
            continue
        # Each Select has dropped an axis of the running value, but `before` still has it.
        size = before[dim + sum(isinstance(s, Select) for s in steps)]
        if isinstance(item, int):
            if item < 0 and not isinstance(size, int):
                return None
            steps.append(Select(dim, item % size if item < 0 else item))
            continue
        step = _slice_step(dim, item, size, after[out])
        if step is None:
            return None
        steps.extend(step)
        dim, out = dim + 1, out + 1
    return (*steps, Reshape(after)) if None in items else tuple(steps)


def _slice_step(dim: int, item: slice, size: Dim, result: Dim) -> tuple[ViewOp, ...] | None:
    start, by = item.start or 0, item.step or 1
    if not isinstance(start, int) or not isinstance(by, int):
        return None
    if start == 0 and by == 1 and same_dim(size, result):
        return ()
    if start < 0:
        # Where a negative start lands depends on the size. Reading a symbol here would add a guard.
        if not isinstance(size, int):
            return None
        start = max(0, start + size)
    return (Slice(dim, start, result, by),)
