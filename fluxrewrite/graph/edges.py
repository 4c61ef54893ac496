"""Producer and consumer pairs of a graph, with views looked through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.fx import Node

from .view import GraphView

__all__ = ["edges", "producers"]


def producers(view: GraphView, node: Node) -> tuple[Node, ...]:
    """The nodes whose values `node` computes with: those that it reads, and what views among them view.

    A cast to another dtype computes; a view, a split, a cast that changes nothing, a dropout that drops nothing and the wait
    for a collective do not.
    Inputs of the graph are among them.
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
    if op == "wait":
        return True
    if op == "getitem" and view.tensor(node.all_input_nodes[0]) is None:
        return True
    if not view.forwards(node) or not node.all_input_nodes:
        return False
    source = view.source(node)
    return source is None or view.dtype(source[0]) == view.dtype(node)


def edges(view: GraphView) -> Sequence[tuple[Node, Node]]:
    """(producer, consumer) for each value that one operation computes and another one reads, in graph order."""
    return view.memo("edges", lambda v: tuple(_edges(v)))


def _edges(view: GraphView) -> Iterator[tuple[Node, Node]]:
    for node in view.nodes:
        if node.op in ("call_function", "call_method") and not _passes(view, node):
            for producer in producers(view, node):
                if producer.op in ("call_function", "call_method"):
                    yield producer, node
