"""What an operation does that only views or copies a tensor: its steps, read off its name and the shapes on both sides."""

from __future__ import annotations

from typing import Any

import torch

from . import steps as st
from .vocabulary import RESHAPES, Fact

__all__ = ["cast_steps", "holds", "unchanged", "view_steps"]

_FLOATS = {torch.float16: 1, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
_COMPLEX = {torch.complex32: 1, torch.complex64: 2, torch.complex128: 3}


def holds(wide: torch.dtype | None, narrow: torch.dtype | None) -> bool:
    """Whether every value of the dtype `narrow` is one of `wide`."""
    if wide == narrow:
        return True
    ranks = next((r for r in (_FLOATS, _COMPLEX) if wide in r and narrow in r), None)
    return ranks is not None and ranks[wide] > ranks[narrow]  # type: ignore[index]


def cast_steps(
    before: torch.dtype, after: torch.dtype | None, old: st.Shape, new: st.Shape
) -> tuple[st.Step, ...] | None:
    """A cast between floats, or between complex numbers; None for all others, and where the shape changes."""
    if not st.same_shape(old, new):
        return None
    both = any(before in ranks and after in ranks for ranks in (_FLOATS, _COMPLEX))
    return (st.Cast(holds(after, before)),) if both or before == after else None


def unchanged(fact: Fact) -> Any:
    """The operand that an operation answers as it is: a product with 1, one tensor joined, a dropout that is off; else None."""
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


def view_steps(fact: Fact, before: st.Shape, after: st.Shape) -> tuple[st.Step, ...] | None:
    """Steps of a node that keeps dtype and device, from its name and the shapes on both sides."""
    rank = len(before)
    match fact.op:
        case op if op in RESHAPES:
            return (st.Reshape(after),)
        case "permute":
            dims = fact.args.get("dims", ())
            return (st.Permute(tuple(d % rank for d in dims)),) if all(isinstance(d, int) for d in dims) else None
        case "movedim":
            return _moved(rank, fact.args.get("source"), fact.args.get("destination"))
        case "transpose":
            return _swap(rank, fact.args.get("dim0"), fact.args.get("dim1"))
        case "t":
            return _swap(2, 0, 1) if rank == 2 else (st.Reshape(after),)
        case "getattr" if fact.args.get("name") == "T" or fact.args.get("name") == "mT":
            return _swap(rank, -2, -1) if rank == 2 or fact.args["name"] == "mT" else None
        case "expand":
            return (st.Expand(after),)
        case "slice" | "narrow" | "select":
            return _axis_steps(fact, before, after)
        case "getitem":
            return _index_steps(fact.args.get("index"), before, after)
    return None


def _swap(rank: int, a: Any, b: Any) -> tuple[st.Step, ...] | None:
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    dims = list(range(rank))
    dims[a], dims[b] = dims[b], dims[a]
    return (st.Permute(tuple(dims)),)


def _moved(rank: int, source: Any, destination: Any) -> tuple[st.Step, ...] | None:
    froms, tos = ([n] if isinstance(n, int) else list(n) for n in (source, destination))
    if not all(isinstance(n, int) for n in (*froms, *tos)):
        return None
    placed = dict(zip((n % rank for n in tos), (n % rank for n in froms), strict=True))
    rest = iter([d for d in range(rank) if d not in placed.values()])
    return (st.Permute(tuple(placed[d] if d in placed else next(rest) for d in range(rank))),)


def _axis_steps(fact: Fact, before: st.Shape, after: st.Shape) -> tuple[st.Step, ...] | None:
    dim = fact.args.get("dim", 0) % len(before)
    if fact.op == "select":
        return _index_steps((*[slice(None)] * dim, fact.args.get("index")), before, after)
    start, step = fact.args.get("start", 0), fact.args.get("step", 1)
    return _index_steps((*[slice(None)] * dim, slice(start, None, step)), before, after)


def _index_steps(index: Any, before: st.Shape, after: st.Shape) -> tuple[st.Step, ...] | None:
    """Basic indexing (ints, slices, None, Ellipsis) as selects and slices, then one reshape for the new axes."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(i is None or i is Ellipsis or isinstance(i, (int, slice)) for i in items) or any(
        i is True or i is False for i in items
    ):
        return None
    real = sum(1 for i in items if i is not None and i is not Ellipsis)
    fill: list[Any] = [slice(None)] * (len(before) - real)
    at = next((n for n, i in enumerate(items) if i is Ellipsis), len(items))
    items = [*items[:at], *fill, *items[at + 1 :]]
    steps: list[st.Step] = []
    dim, out = 0, 0  # axis of the running value, axis of the result
    for item in items:
        if item is None:
            out += 1
            continue
        size = before[dim + sum(isinstance(s, st.Select) for s in steps)]
        if isinstance(item, int):
            if item < 0 and not isinstance(size, int):
                return None
            steps.append(st.Select(dim, item % size if item < 0 else item))
            continue
        step = _slice_step(dim, item, size, after[out])
        if step is None:
            return None
        steps.extend(step)
        dim, out = dim + 1, out + 1
    return (*steps, st.Reshape(after)) if None in items else tuple(steps)


def _slice_step(dim: int, item: slice, size: st.Dim, result: st.Dim) -> tuple[st.Step, ...] | None:
    start, by = item.start or 0, item.step or 1
    if not isinstance(start, int) or not isinstance(by, int):
        return None
    if start == 0 and by == 1 and st.same_dim(size, result):
        return ()
    if start < 0:
        if not isinstance(size, int):
            return None
        start = max(0, start + size)
    return (st.Slice(dim, start, result, by),)
