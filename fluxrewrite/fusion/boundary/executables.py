"""How many executables a graph becomes if every kernel call is one of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from torch.fx import Node

from ...graph.view import GraphView
from ...site import Site

__all__ = ["segments"]


def segments(view: GraphView, calls: Iterable[Node | Site], nodes: Sequence[Node] | None = None) -> int:
    """The least number of executables for everything but the calls.

    No executable may hold two operations of which one needs the other through a call. Each operation goes into the earliest
    executable that its operands allow, so that independent operations share one. The count is then the length of the longest
    chain of operations with a call between each two, and fewer is impossible. It takes one pass.

    Args:
        view: the graph.
        calls: kernel calls, or sites that calls will replace.
        nodes: only these nodes, in order; the values of all others are ready from the start.
    """
    due: dict[Node, list[frozenset[Node]]] = defaultdict(list)
    for call in calls:
        if isinstance(call, Site):
            due[call.before].append(frozenset((*call.interior, *call.outputs)))
        else:
            due[call].append(frozenset((call,)))
    called = {n for sets in due.values() for members in sets for n in members}
    last: dict[Node, int] = defaultdict(int)  # the latest executable that a value needs
    first: dict[Node, int] = defaultdict(lambda: 1)  # the earliest one that may read the value
    for node in view.nodes if nodes is None else nodes:
        for members in due.get(node, ()):
            needed = {i for m in members for i in m.all_input_nodes} - members
            done = max((last[i] for i in needed), default=0)
            last.update(dict.fromkeys(members, done))
            first.update(dict.fromkeys(members, done + 1))
        if node not in called:
            last[node] = max((last[i] for i in node.all_input_nodes), default=0)
            first[node] = max((first[i] for i in node.all_input_nodes), default=1)
            if _computes(view, node):
                last[node] = first[node]
    return max(last.values(), default=0)


def _computes(view: GraphView, node: Node) -> bool:
    """Whether it makes a tensor: views and splits do not, arithmetic on sizes does not."""
    if node.op not in ("call_function", "call_method"):
        return False
    source = view.source(node)
    if source is not None:
        return view.dtype(source[0]) != view.dtype(node)
    return not view.forwards(node) and bool(view.results(node))
