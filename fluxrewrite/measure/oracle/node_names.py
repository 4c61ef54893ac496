"""Which nodes of a traced graph a node of Inductor's graph computes."""

from __future__ import annotations

import copy
from collections import defaultdict
from functools import cached_property
from typing import Any

from torch.fx import Graph, GraphModule, Node

__all__ = ["Names"]

_KEY = "fluxrewrite_name"
Targets = dict[str, set[Any]]


class Names:
    """The names of the nodes of a traced graph, tracked through Inductor.

    Names travel as metadata, which decompositions and passes copy. (`from_node` does not work: in a rewritten graph it points to
    the graph before the rewrite.) If a pass replaces several nodes by one, only the name of the last one arrives, or none. The
    nodes that disappeared on the way are then taken to be computed by the new node.

    Attributes:
        named: a copy of the graph whose nodes carry their names.
    """

    def __init__(self, gm: GraphModule) -> None:
        self.named = _named(gm)
        self._traced = {n.name: n for n in gm.graph.nodes}
        self._before: Targets = {}
        self._after: Graph | None = None

    def see_before(self, graph: Graph) -> None:
        """Record the decomposed graph, before Inductor's passes."""
        self._before = _targets(graph)

    def see_after(self, graph: Graph) -> None:
        """Record the graph that is lowered."""
        self._after = graph

    def of(self, node: Node) -> frozenset[str]:
        """The traced nodes that a node of the lowered graph computes."""
        own = _carried_names(node)
        kept = {n for n in own if node.target in self._before.get(n, ())}
        return own.union(*(self._absorbed(n) for n in own - kept))

    @cached_property
    def _alive(self) -> frozenset[str]:
        nodes = self._after.nodes if self._after is not None else ()
        return frozenset(n.meta["custom"][_KEY] for n in nodes if _KEY in n.meta.get("custom", {}))

    def _absorbed(self, name: str) -> set[str]:
        """The nodes above `name` that disappeared, up to the nearest nodes that are left; views are skipped."""
        found: set[str] = set()
        pending = list(self._traced[name].all_input_nodes)
        seen: set[Node] = set()
        while pending:
            node = pending.pop()
            targets = self._before.get(node.name, set())
            view = all(getattr(t, "is_view", False) for t in targets)
            if node in seen or node.op == "placeholder" or (node.name in self._alive and not view):
                continue
            seen.add(node)
            pending += node.all_input_nodes
            if not view:
                found.add(node.name)
        return found


def _named(gm: GraphModule) -> GraphModule:
    graph, twins = Graph(), dict[Node, Node]()
    graph.output(graph.graph_copy(gm.graph, twins))
    for old, new in twins.items():
        new.meta = copy.copy(old.meta)
        new.meta["custom"] = {**old.meta.get("custom", {}), _KEY: old.name}
    result = GraphModule(gm, graph, class_name=type(gm).__name__)
    result.meta = dict(gm.meta)
    return result


def _targets(graph: Graph) -> Targets:
    found: Targets = defaultdict(set)
    for node in graph.nodes:
        if node.op == "call_function":
            for name in _carried_names(node):
                found[name].add(node.target)
    return found


def _carried_names(node: Node) -> frozenset[str]:
    """The name that a node carries. A node that a pass inserted without a name has those of its nearest named users."""
    pending, seen, found = [node], set[Node](), set[str]()
    while pending:
        current = pending.pop()
        name = current.meta.get("custom", {}).get(_KEY)
        if name is not None:
            found.add(name)
        elif current not in seen:
            seen.add(current)
            pending += current.users
    return frozenset(found)
