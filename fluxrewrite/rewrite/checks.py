"""The checks that every site must pass before it is offered: inputs, writes, dtypes, gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import Node

from ..graph.view import GraphView
from ..site import Code, Miss, Reason
from .base import Pass
from .guards import only_checks, shared_and_written

__all__ = ["blocked", "dense_as", "needs_grad", "odd_dtype"]


def blocked(
    rewriter: Pass,
    view: GraphView,
    path: str,
    interior: Sequence[Node],
    outputs: Sequence[Node],
    operands: Iterable[Any],
    place: Node | None = None,
) -> Miss | None:
    """Why a region must not become a site: an inner value is used outside, or something that it reads is modified on the way.

    Gradients are checked separately, by `needs_grad`.

    Args:
        rewriter: the pass, for its kind and form.
        view: the graph.
        path: module of the region.
        interior: nodes that are removed with the region.
        outputs: nodes that the results replace.
        operands: arguments of the call; those that are not nodes are ignored.
        place: node that the call is inserted before; the first output if None.
    """
    inside = {*interior, *outputs}
    for node in interior:
        escaped = next((u for u in node.users if u not in inside and not only_checks(u)), None)
        if node not in outputs and escaped is not None and not _input_side(view, node, inside):
            return rewriter.miss(
                Code.INNER_USE, f"{node.name} is also used by {escaped.name}, outside the region", path, node
            )
    # The call reads all operands at once, at `place`. The region read them one by one, before or after that. A write between
    # the first of these moments and the last would reach one of the two and not the other.
    last = max(view.order(n) for n in inside)
    before = view.order(outputs[0] if place is None else place)
    for node, first in _read(view, [*operands, *interior, *_entering(view, inside)], inside).values():
        writer = view.written([node], min(first, before), max(last, before))
        if writer is not None:
            message = f"{writer.name} modifies memory that the region reads, between {min(first, before)} and {last}"
            return rewriter.miss(Code.MUTATION, message, path, writer)
    reason = shared_and_written(view, outputs)
    return None if reason is None else Miss(rewriter.kind, path, reason)


def _entering(view: GraphView, inside: set[Node]) -> list[Node]:
    """The values that a region reads from outside, except for memory that the region itself writes."""
    own = {view.memory(w) for n in inside for w in view.fact(n).writes}
    found = dict.fromkeys(i for n in inside for i in n.all_input_nodes if i not in inside)
    return [n for n in found if view.memory(n) not in own]


def _read(view: GraphView, nodes: Iterable[Any], inside: set[Node]) -> dict[Any, tuple[Node, int]]:
    """For each memory of `nodes`: one of them, and the position of the first operation inside that makes or reads it.

    A view does not read. A write after the view but before the first operation that reads also reaches the call. A copy of memory
    that is written does not count as a view (`GraphView.source`).
    """
    first: dict[Any, int] = {}
    for node in inside:
        if view.forwards(node):
            continue
        for memory in (view.memory(n) for n in (node, *node.all_input_nodes)):
            first[memory] = min(view.order(node), first.get(memory, view.order(node)))
    start = min(view.order(n) for n in inside)
    return {view.memory(n): (n, first.get(view.memory(n), start)) for n in nodes if isinstance(n, Node)}


def odd_dtype(view: GraphView, nodes: Iterable[Node], allowed: Iterable[torch.dtype | None]) -> Node | None:
    """The first of some nodes that computes in a float or complex dtype other than float32 and those `allowed`, or None."""
    # Models widen to float32 around norms and rotations, and kernels do too. Any other dtype rounds differently.
    known = {torch.float32, torch.complex64, *allowed}
    for node in nodes:
        dtype = view.dtype(node)
        if dtype is not None and (dtype.is_floating_point or dtype.is_complex) and dtype not in known:
            return node
    return None


def dense_as(view: GraphView, node: Node, dims: Sequence[int]) -> bool:
    """Whether the traced value of `node` is not contiguous but would be with its axes in the order `dims`."""
    value = view.tensor(node)
    return value is not None and not value.is_contiguous() and bool(value.permute(*dims).is_contiguous())


def _input_side(view: GraphView, node: Node, inside: set[Node]) -> bool:
    """Whether `node` only views or casts a value that enters the region. Such a node may have other users, and then stays."""
    above = view.above(node)
    while above is not None:
        if above not in inside:
            return True
        above = view.above(above)
    return False


def needs_grad(view: GraphView, outputs: Iterable[Node]) -> Reason | None:
    """Why a site is left alone whose results require a gradient; None if no result does."""
    for node in outputs:
        value = view.tensor(node)
        if value is not None and value.requires_grad:
            message = "the result requires grad; kernels have no backward: trace under torch.no_grad() to rewrite"
            return Reason(Code.REQUIRES_GRAD, message, node.name)
    return None
