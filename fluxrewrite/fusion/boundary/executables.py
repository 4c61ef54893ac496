"""How many executables a graph becomes where every kernel call is one of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from torch.fx import Node

from ...graph.view import GraphView
from ...site import Site

__all__ = ["segments"]


def segments(view: GraphView, calls: Iterable[Node | Site], nodes: Sequence[Node] | None = None) -> int:
    """The executables of everything but the calls: the fewest of which none holds an operation that needs another one of the
    same executable through a call.

    An operation goes into the first executable after those that it needs something from through a call, so that independent
    ones share theirs; then the count is the longest chain of operations with a call between each two. One pass.

    Args:
        view: the graph.
        calls: kernel calls, or sites that calls will take the place of.
        nodes: only these nodes, in order; what others compute is there from the start.
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
