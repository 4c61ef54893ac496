"""Producer and consumer pairs of a graph. Views between the two are skipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.fx import Node

from .view import GraphView

__all__ = ["edges", "producers"]


def producers(view: GraphView, node: Node) -> tuple[Node, ...]:
    """The nodes whose values `node` computes with. A view that it reads is replaced by the value that is viewed.

    Inputs of the graph are included. A cast to another dtype is a computation of its own. A view, a split, a cast that changes
    nothing, a dropout that drops nothing and the wait for a collective are not.
    """
    known: dict[Node, tuple[Node, ...]] = view.memo("producers", lambda _: {})
    if node not in known:
        known[node] = _producers(view, node)
    return known[node]


def _producers(view: GraphView, node: Node) -> tuple[Node, ...]:
    found: dict[Node, None] = {}
    for value in node.all_input_nodes:
        while _passes(view, value):
            value = value.all_input_nodes[0]
        found[value] = None
    return tuple(found)


def _passes(view: GraphView, node: Node) -> bool:
    known: dict[Node, bool] = view.memo("passes", lambda _: {})
    if node not in known:
        known[node] = _forwarding(view, node)
    return known[node]


def _forwarding(view: GraphView, node: Node) -> bool:
    op = view.op(node)
    # `GraphView` does not see a wait as a view, because its input must not be read before it. For fusion it computes nothing.
    if op == "wait":
        return True
    # Taking an item of a tuple moves no data, even where the tuple is the result of an operation that is not a split.
    if op == "getitem" and view.tensor(node.all_input_nodes[0]) is None:
        return True
    if not view.forwards(node) or not node.all_input_nodes:
        return False
    source = view.source(node)
    return source is None or view.dtype(source[0]) == view.dtype(node)


def edges(view: GraphView) -> Sequence[tuple[Node, Node]]:
    """(producer, consumer) for each value that one operation computes and another reads, in graph order."""
    return view.memo("edges", lambda v: tuple(_edges(v)))


def _edges(view: GraphView) -> Iterator[tuple[Node, Node]]:
    for node in view.nodes:
        if node.op in ("call_function", "call_method") and not _passes(view, node):
            for producer in producers(view, node):
                if producer.op in ("call_function", "call_method"):
                    yield producer, node
