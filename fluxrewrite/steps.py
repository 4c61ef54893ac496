"""What a view does to a tensor, and which elements of one axis reach the other end of a chain of views.

A step is read off the shapes of the traced values, not off the spelling: `x.view(2, -1)`, `x.unflatten(0, (2, 3))` and
`x.reshape_as(y)` are the same `Reshape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx.experimental.symbolic_shapes import statically_known_true

__all__ = [
    "Cast",
    "Dim",
    "Expand",
    "Lanes",
    "Permute",
    "Reshape",
    "Select",
    "Shape",
    "Slice",
    "Step",
    "same_dim",
    "same_shape",
    "same_steps",
    "size_of",
]

Dim = Any  # int or torch.SymInt
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Reshape:
    """Same elements in the same row-major order, other shape."""

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
    """Element `index` of axis `dim`, which disappears."""

    dim: int
    index: int


@dataclass(frozen=True)
class Expand:
    """Broadcast to `shape`."""

    shape: Shape


@dataclass(frozen=True)
class Cast:
    """Change of dtype only; `lossless` when every input value is representable in the result."""

    lossless: bool


Step = Reshape | Permute | Slice | Select | Expand | Cast


def same_dim(a: Dim, b: Dim) -> bool:
    """True when two sizes are equal for certain; never adds a guard to a symbolic size."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(statically_known_true(a == b))


def size_of(dim: Dim) -> int | str:
    """A size as an int where it is known, also when Dynamo has specialised a symbol; else the text of the symbol."""
    known = dim if isinstance(dim, int) else dim.node.maybe_as_int()
    return str(dim) if known is None else int(known)


def same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """True when two shapes are equal for certain."""
    return len(a) == len(b) and all(same_dim(x, y) for x, y in zip(a, b, strict=True))


def same_steps(a: Sequence[Step], b: Sequence[Step]) -> bool:
    """True when two chains of views do the same for certain."""
    return len(a) == len(b) and all(_same_step(x, y) for x, y in zip(a, b, strict=True))


def _same_step(a: Step, b: Step) -> bool:
    if type(a) is not type(b):
        return False
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(same_shape(x, y) if isinstance(x, tuple) else same_dim(x, y) for x, y in pairs)


@dataclass(frozen=True)
class Lanes:
    """Which elements of one tracked axis a view of a tensor exposes.

    Attributes:
        sizes: shape of the view.
        strides: how far one step along each axis of the view moves on the tracked axis; 0 for all other axes.
        axes: the axis of the tensor that each axis of the view is, or is part of; -1 for new axes of size 1.
        tracked: the tracked axis of the tensor.
        offset: first element exposed.
    """

    sizes: Shape
    strides: tuple[int, ...]
    axes: tuple[int, ...]
    tracked: int
    offset: int = 0

    @property
    def block(self) -> tuple[int, int] | None:
        """(start, length) when the exposed elements are one contiguous run, in any order of axes; else None."""
        tracked = sorted((s, n) for s, n in zip(self.strides, self.sizes, strict=True) if s and not same_dim(n, 1))
        length = 1
        for stride, size in tracked:
            if stride != length or not isinstance(size, int):
                return None
            length *= size
        return self.offset, length
