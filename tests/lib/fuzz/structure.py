"""The same operations otherwise arranged: other names, another order, values computed twice, results used or returned again."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from fluxrewrite.graph.op_table import CASTS, RESHAPES, read

from .edit import Draft, Draw, Unfit

__all__ = ["INPLACE", "STRUCTURE"]

aten = torch.ops.aten
_NAMES = ("query", "key", "value", "cos", "sin", "mask", "x", "linear", "softmax", "rope", "add", "output_1")


def renamed(draft: Draft, draw: Draw) -> None:
    """Nodes under names that say something else."""
    for node in draft.calls:
        if draw.coin():
            node._rename(draw.one(_NAMES))


def reordered(draft: Draft, draw: Draw) -> None:
    """Another order that the data flow allows."""
    if draft.writes():
        raise Unfit("what is written must stay in its order")
    left = {n: len(n.all_input_nodes) for n in draft.calls}
    inputs = set(draft.inputs)
    for node in left:
        left[node] -= len(inputs & set(node.all_input_nodes))
    ready = [n for n, count in left.items() if not count]
    while ready:
        node = draw.one(ready)
        ready.remove(node)
        draft.output.prepend(node)
        for user in node.users:
            if user in left:
                left[user] -= 1
                ready += [user] if not left[user] else []


def computed_twice(draft: Draft, draw: Draw) -> None:
    """One view or cast written down anew for one of its users."""
    written = draft.written()
    views = draft.having(
        *RESHAPES, *CASTS, "permute", "transpose", "getitem", "slice", "narrow", "select", "chunk", "split"
    )
    node = draw.one([n for n in views if len(n.users) > 1 and not written & draft.memory(n)])
    user = draw.one(list(node.users))
    twin = draft.before(node)(node.target, *node.args, **node.kwargs)
    draft.replace(node, twin, [user])


def computed_once(draft: Draft, draw: Draw) -> None:
    """Equal calls as one."""
    if draft.writes():
        raise Unfit("equal calls may answer other values")
    pairs = [(a, b) for a in draft.calls for b in draft.calls if a is not b and _equal(a, b)]
    order = draft.order()
    kept, dropped = draw.one([p for p in pairs if order[p[0]] < order[p[1]]])
    draft.replace(dropped, kept)


def _equal(a: Node, b: Node) -> bool:
    return (a.op, a.target, a.args, a.kwargs) == (b.op, b.target, b.args, b.kwargs)


def returned_again(draft: Draft, draw: Draw) -> None:
    """A result returned a second time, as itself or as a view."""
    (results,) = draft.output.args
    node = draw.one([n for n in results if isinstance(n, Node)])  # type: ignore[union-attr]
    made = node if draw.coin() else draft.before(draft.output)(draw.one(["detach", aten.alias.default]), node)
    draft.output.args = ((*results, made),)  # type: ignore[misc]


def input_used(draft: Draft, draw: Draw) -> None:
    """An input, or a result, read once more: by something returned, or by dead code."""
    (results,) = draft.output.args
    outer = [n for n in (*draft.inputs, *results) if draft.tensor(n) is not None]  # type: ignore[misc]
    node = draw.one(outer)
    call = draft.before(draft.output)
    made = (
        call(draw.one([torch.sin, torch.abs, torch.neg]), node)
        if draft.tensor(node).dtype.is_floating_point
        else call("clone", node)
    )  # type: ignore[union-attr]
    if draw.coin():
        draft.output.args = ((*results, made),)  # type: ignore[misc]


def stacked(draft: Draft, draw: Draw) -> None:
    """A stack as a cat of unsqueezed tensors."""
    node = draw.one(draft.having("stack"))
    tensors, dim = read(node).args["tensors"], read(node).args.get("dim", 0)
    call = draft.before(node)
    draft.replace(node, call(torch.cat, [call("unsqueeze", t, dim) for t in tensors], dim))


_IN_PLACE = {
    "add": ("add_", operator.iadd, aten.add_.Tensor),
    "mul": ("mul_", operator.imul, aten.mul_.Tensor),
    "sub": ("sub_", operator.isub),
    "div": ("div_", operator.itruediv),
    "masked_fill": ("masked_fill_",),
    "neg": ("neg_",),
}


def in_place(draft: Draft, draw: Draw) -> None:
    """An operation that writes to its first operand, which nothing else reads later."""
    order = draft.order()
    nodes = [n for n in draft.having(*_IN_PLACE) if _own(draft, n, order)]
    node = draw.one(nodes)
    before = draft.tensor(node)
    target = draw.one(_IN_PLACE[read(node).op])
    draft.change(node, node.args, None, target)
    after = draft._computed(node)
    if before is None or (after.shape, after.dtype) != (before.shape, before.dtype):
        raise AssertionError("in place it is something else")


def _own(draft: Draft, node: Node, order: dict[Node, int]) -> bool:
    """Whether the first operand is as large as the result, of the graph's own making, and dead after `node`."""
    first = node.args[0] if node.args else None
    if first is not read(node).args.get("input"):  # rsub
        return False
    old, new = draft.tensor(first), draft.tensor(node)
    if (
        old is None
        or new is None
        or node.kwargs
        or old.shape != new.shape
        or old.dtype != new.dtype
        or 0 in old.stride()
    ):
        return False
    mine = draft.memory(first)
    alike = [n for n in draft.nodes if mine & draft.memory(n)]
    later = [u for n in alike for u in n.users if order[u] >= order[node] and u is not node]
    return not later and all(n.op != "placeholder" for n in alike) and sum(a is first for a in node.args) == 1


STRUCTURE = {
    "renamed": renamed,
    "reordered": reordered,
    "computed twice": computed_twice,
    "computed once": computed_once,
    "returned again": returned_again,
    "input or result used again": input_used,
    "stack as cat": stacked,
}
INPLACE = {"in place": in_place}
