"""The checks that every site passes before it is offered: what enters it, what is written, dtypes, gradients."""

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
    """The checks that every site needs: no inner value escapes, nothing it reads is modified on the way, no gradient.

    Gradients are not a Miss: see `needs_grad`. The call stands in front of `place`, the first output when None.
    """
    inside = {*interior, *outputs}
    for node in interior:
        escaped = next((u for u in node.users if u not in inside and not only_checks(u)), None)
        if node not in outputs and escaped is not None and not _input_side(view, node, inside):
            return rewriter.miss(
                Code.INNER_USE, f"{node.name} is also used by {escaped.name}, outside the region", path, node
            )
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
    """What a region reads from outside, but for memory that it writes itself."""
    own = {view.memory(w) for n in inside for w in view.fact(n).writes}
    found = dict.fromkeys(i for n in inside for i in n.all_input_nodes if i not in inside)
    return [n for n in found if view.memory(n) not in own]


def _read(view: GraphView, nodes: Iterable[Any], inside: set[Node]) -> dict[Any, tuple[Node, int]]:
    """For each memory of `nodes`: one of them, and the position of the first operation inside that makes or reads it.

    A view reads nothing: what is written before the first operation that does, a call sees too. A copy of what is written is no
    view (`GraphView.source`).
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
    """A node of a region that computes in a float dtype other than float32 and those `allowed`, if there is one."""
    known = {torch.float32, torch.complex64, *allowed}
    for node in nodes:
        dtype = view.dtype(node)
        if dtype is not None and (dtype.is_floating_point or dtype.is_complex) and dtype not in known:
            return node
    return None


def dense_as(view: GraphView, node: Node, dims: Sequence[int]) -> bool:
    """Whether the traced `node` is not contiguous but would be with its axes in the order `dims`."""
    value = view.tensor(node)
    return value is not None and not value.is_contiguous() and bool(value.permute(*dims).is_contiguous())


def _input_side(view: GraphView, node: Node, inside: set[Node]) -> bool:
    """Whether `node` only views or casts what enters the region, so that others may use it too."""
    above = view.above(node)
    while above is not None:
        if above not in inside:
            return True
        above = view.above(above)
    return False


def needs_grad(view: GraphView, outputs: Iterable[Node]) -> Reason | None:
    """Why a site whose results need a gradient is left alone."""
    for node in outputs:
        value = view.tensor(node)
        if value is not None and value.requires_grad:
            message = "the result requires grad; kernels have no backward: trace under torch.no_grad() to rewrite"
            return Reason(Code.REQUIRES_GRAD, message, node.name)
    return None
