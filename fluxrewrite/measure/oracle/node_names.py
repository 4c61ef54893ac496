"""Which nodes of a traced graph a node of Inductor's graph stands for."""

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
    """The names of the nodes of one traced graph, followed through Inductor.

    They travel as metadata, which decompositions and passes hand on. (`from_node` would not do: in a rewritten graph it leads
    back to the graph before.) Where a pass replaces several nodes by one, only the last one's name arrives, or none; then the
    nodes that vanished on the way there are taken to be computed by the one that came in.

    Attributes:
        named: a copy of the graph whose nodes carry their names.
    """

    def __init__(self, gm: GraphModule) -> None:
        self.named = _named(gm)
        self._traced = {n.name: n for n in gm.graph.nodes}
        self._before: Targets = {}
        self._after: Graph | None = None

    def see_before(self, graph: Graph) -> None:
        """Take note of the decomposed graph, before Inductor's passes."""
        self._before = _targets(graph)

    def see_after(self, graph: Graph) -> None:
        """Take note of the graph that is lowered."""
        self._after = graph

    def of(self, node: Node) -> frozenset[str]:
        """The traced nodes that a node of the lowered graph computes."""
        own = _handed_on(node)
        kept = {n for n in own if node.target in self._before.get(n, ())}
        return own.union(*(self._absorbed(n) for n in own - kept))

    @cached_property
    def _alive(self) -> frozenset[str]:
        nodes = self._after.nodes if self._after is not None else ()
        return frozenset(n.meta["custom"][_KEY] for n in nodes if _KEY in n.meta.get("custom", {}))

    def _absorbed(self, name: str) -> set[str]:
        """The nodes above `name` that vanished, as far as nothing that is left stands between; views are passed over."""
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
            for name in _handed_on(node):
                found[name].add(node.target)
    return found


def _handed_on(node: Node) -> frozenset[str]:
    """The name that a node carries; one that came in without is named after those that it was put in front of."""
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
