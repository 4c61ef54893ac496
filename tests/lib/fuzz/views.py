"""Views in other words: reshapes split, merged and respelled, permutes as transposes, pieces cut another way."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Node

from fluxrewrite.graph.op_table import read

from .edit import Draft, Draw, Unfit

__all__ = ["VIEWS"]

aten = torch.ops.aten


def _permutation(node: Node) -> list[int]:
    """Axis i of the result is axis p[i] of the input. Raises Unfit for what does not permute."""
    fact, rank = read(node), len(Draft.shape(node))
    dims = list(range(rank))
    if fact.op == "permute":
        return [d % rank for d in fact.args["dims"]]
    if fact.op == "transpose":
        a, b = fact.args["dim0"], fact.args["dim1"]
        dims[a], dims[b] = dims[b], dims[a]
    elif fact.op == "getattr" and fact.args["name"] == "mT":
        dims[-1], dims[-2] = dims[-2], dims[-1]
    else:
        raise Unfit(f"{fact.op} does not permute")
    return dims


def _permuting(draft: Draft) -> list[Node]:
    turns = draft.having("permute", "transpose")
    return turns + [n for n in draft.having("getattr") if read(n).args["name"] == "mT"]


def permute_respelled(draft: Draft, draw: Draw) -> None:
    """A permute as a transpose, a transpose as a permute, either in any call form."""
    node = draw.one(_permuting(draft))
    dims, source = _permutation(node), read(node).args["input"]
    rank = len(dims)
    moved = [i for i, d in enumerate(dims) if i != d]
    calls: list[Any] = [
        ("permute", (source, *dims)), ("permute", (source, tuple(dims))), (torch.permute, (source, tuple(dims))),
        (aten.permute.default, (source, list(dims))), ("permute", (source, *(d - rank for d in dims))),
    ]  # fmt: skip
    if len(moved) == 2:
        a, b = moved
        calls += [(t, (source, a, b)) for t in ("transpose", "swapaxes", "swapdims", torch.transpose, torch.swapaxes)]
        calls += [("transpose", (source, b - rank, a)), (aten.transpose.int, (source, a, b))]
        if moved == [rank - 2, rank - 1]:
            calls += [(getattr, (source, "mT"))] * 2
    target, args = draw.one(calls)
    draft.replace(node, draft.before(node)(target, *args))


def permute_moved(draft: Draft, draw: Draw) -> None:
    """A permute as a movedim."""
    node = draw.one(_permuting(draft))
    dims, source = _permutation(node), read(node).args["input"]
    moved = [i for i, d in enumerate(dims) if i != d]
    sources, places = [dims[i] for i in moved], moved
    target = draw.one(["movedim", torch.movedim, torch.moveaxis])
    draft.replace(node, draft.before(node)(target, source, tuple(sources), tuple(places)))


def permute_split(draft: Draft, draw: Draw) -> None:
    """A permute as two in a row."""
    node = draw.one(_permuting(draft))
    dims, source = _permutation(node), read(node).args["input"]
    first = draw.shuffled(range(len(dims)))
    second = [first.index(d) for d in dims]
    call = draft.before(node)
    draft.replace(node, call("permute", call("permute", source, *first), *second))


def _reshapes(draft: Draft) -> list[Node]:
    return [n for n in draft.having("reshape") if draft.tensor(read(n).args.get("input")) is not None]


def _targets(source: Node, like: Node, shape: tuple[int, ...]) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """All calls that give `source` another shape; `like` has that shape."""
    before, inferred = Draft.shape(source), list(shape)
    yield "reshape", (source, *shape), {}
    yield "reshape", (source, shape), {}
    yield torch.reshape, (source, shape), {}
    yield aten.reshape.default, (source, list(shape)), {}
    yield "view", (source, *shape), {}
    yield "view", (source, shape), {}
    yield aten.view.default, (source, list(shape)), {}
    if shape:
        inferred[math.prod(shape) % len(shape)] = -1
        yield "view", (source, *inferred), {}
        yield "reshape", (source, *inferred), {}
    lead = next(
        (i for i, (a, b) in enumerate(zip(before, shape, strict=False)) if a != b), min(len(before), len(shape))
    )
    tail = next((i for i, (a, b) in enumerate(zip(before[lead:][::-1], shape[lead:][::-1], strict=False)) if a != b), 0)
    old, new = before[lead : len(before) - tail], shape[lead : len(shape) - tail]
    if len(new) == 1 and len(old) > 1:
        yield "flatten", (source, lead, lead + len(old) - 1), {}
        yield "flatten", (source,), {"start_dim": lead, "end_dim": lead + len(old) - 1 - len(before)}
        yield torch.flatten, (source, lead, lead + len(old) - 1), {}
        yield aten.flatten.using_ints, (source, lead, lead + len(old) - 1), {}
    if len(old) == 1 and len(new) > 1:
        yield "unflatten", (source, lead, new), {}
        yield "unflatten", (source, lead - len(before), (-1, *new[1:])), {}
        yield torch.unflatten, (source, lead, new), {}
        yield aten.unflatten.int, (source, lead, list(new)), {}
    if not old and new == (1,):
        yield "unsqueeze", (source, lead), {}
        yield torch.unsqueeze, (source, lead), {}
        yield "__getitem__", (source, (*[slice(None)] * lead, None)), {}
    if not new and old == (1,):
        yield "squeeze", (source, lead), {}
        yield torch.squeeze, (source, lead), {}


def reshape_respelled(draft: Draft, draw: Draw) -> None:
    """A reshape as a view, flatten, unflatten, unsqueeze, squeeze, in any call form."""
    node = draw.one(_reshapes(draft))
    source = read(node).args["input"]
    target, args, kwargs = draw.one(list(_targets(source, node, draft.shape(node))))
    draft.replace(node, draft.before(node)(target, *args, **kwargs))


def _between(shape: tuple[int, ...], draw: Draw) -> tuple[int, ...]:
    """Another shape of as many elements, near to this one."""
    axis = draw.one(range(len(shape)))
    options = [(*shape[:axis], 1, *shape[axis:]), (*shape, 1), (math.prod(shape),)]
    if axis + 1 < len(shape):
        options += [(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])] * 2
    factors = [f for f in range(2, shape[axis]) if shape[axis] % f == 0]
    if factors:
        factor = draw.one(factors)
        options += [(*shape[:axis], factor, shape[axis] // factor, *shape[axis + 1 :])] * 2
    return draw.one(options)


def reshape_split(draft: Draft, draw: Draw) -> None:
    """A reshape as two in a row."""
    node = draw.one(_reshapes(draft))
    source, shape = read(node).args["input"], draft.shape(node)
    between = _between(draw.one([draft.shape(source), shape]) or (1,), draw)
    call = draft.before(node)
    target, args, kwargs = draw.one(list(_targets(source, source, between)))
    middle = call(target, *args, **kwargs)
    target, args, kwargs = draw.one(list(_targets(middle, node, shape)))
    draft.replace(node, call(target, *args, **kwargs))


def reshape_merged(draft: Draft, draw: Draw) -> None:
    """Two reshapes in a row as one."""
    pairs = [(n, read(n).args["input"]) for n in _reshapes(draft)]
    node, middle = draw.one([(a, b) for a, b in pairs if b in _reshapes(draft)])
    source = read(middle).args["input"]
    draft.replace(node, draft.before(node)("reshape", source, *draft.shape(node)))


def _pieces(draft: Draft) -> list[tuple[Node, Node, int, int, int]]:
    """Pieces of chunks and splits: (piece, whole, axis, start, length)."""
    found = []
    for node in draft.having("getitem"):
        whole, index = read(node).args.get("input"), read(node).args.get("index")
        if isinstance(whole, Node) and isinstance(index, int) and read(whole).op in ("chunk", "split"):
            source = read(whole).args["input"]
            dim = read(whole).args.get("dim", 0) % len(draft.shape(source))
            sizes = [v.shape[dim] for v in whole.meta["example_value"]]
            index %= len(sizes)
            found.append((node, source, dim, sum(sizes[:index]), sizes[index]))
    return found


def piece_cut(draft: Draft, draw: Draw) -> None:
    """A piece of a chunk or split as a slice of its own."""
    node, source, dim, start, length = draw.one(_pieces(draft))
    index = (*[slice(None)] * dim, slice(start, start + length))
    rank = len(draft.shape(source))
    calls: list[Any] = [
        (operator.getitem, (source, index)),
        ("narrow", (source, dim, start, length)),
        (torch.narrow, (source, dim - rank, start, length)),
        (aten.slice.Tensor, (source, dim, start, start + length)),
        (operator.getitem, (source, (Ellipsis, *index[dim:], *[slice(None)] * (rank - dim - 1)))),
    ]
    target, args = draw.one(calls)
    draft.replace(node, draft.before(node)(target, *args))


def chunk_split(draft: Draft, draw: Draw) -> None:
    """A chunk as a split, and the other way round."""
    node = draw.one(draft.having("chunk", "split"))
    fact = read(node)
    source, dim = fact.args["input"], fact.args.get("dim", 0)
    sizes = [v.shape[dim] for v in node.meta["example_value"]]
    calls: list[Any] = [("split", (source, sizes, dim)), ("split_with_sizes", (source, sizes, dim))]
    calls += [(torch.split, (source, tuple(sizes), dim)), (aten.split_with_sizes.default, (source, sizes, dim))]
    if len(set(sizes)) == 1:
        calls += [("split", (source, sizes[0], dim)), ("chunk", (source, len(sizes), dim))]
        calls += [(aten.split.Tensor, (source, sizes[0], dim))]
    target, args = draw.one(calls)
    draft.replace(node, draft.before(node)(target, *args))


def unbind_selected(draft: Draft, draw: Draw) -> None:
    """An element of an unbind as a select or an index."""
    items = [n for n in draft.having("getitem") if isinstance(read(n).args.get("index"), int)]
    node = draw.one([n for n in items if read(read(n).args["input"]).op == "unbind"])
    whole, index = read(node).args["input"], read(node).args["index"]
    source = read(whole).args["input"]
    dim = read(whole).args.get("dim", 0) % len(draft.shape(source))
    calls: list[Any] = [
        ("select", (source, dim, index)), (torch.select, (source, dim, index)), (aten.select.int, (source, dim, index)),
        (operator.getitem, (source, (*[slice(None)] * dim, index))),
    ]  # fmt: skip
    target, args = draw.one(calls)
    draft.replace(node, draft.before(node)(target, *args))


VIEWS: dict[str, Callable[[Draft, Draw], None]] = {
    "permute respelled": permute_respelled,
    "permute as movedim": permute_moved,
    "permute split": permute_split,
    "reshape respelled": reshape_respelled,
    "reshape split": reshape_split,
    "reshapes merged": reshape_merged,
    "piece as slice": piece_cut,
    "chunk as split": chunk_split,
    "unbind as select": unbind_selected,
}
