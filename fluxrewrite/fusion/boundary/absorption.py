"""Which neighbours a kernel would have to take in to save the traffic at its border."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from torch.fx import Node

from ...graph.edges import edges, producers
from ...graph.view import GraphView
from .. import Fusion, Group

__all__ = ["Absorption", "Neighbours"]


@dataclass(frozen=True)
class Absorption:
    """Neighbouring operations that a kernel would have to take in to save a part of the traffic.

    Attributes:
        nodes: the operations, in graph order.
        path: the module that holds them.
        side: "before" or "after" the call.
        bytes: traffic saved.
    """

    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    path: str
    side: Literal["before", "after"]
    bytes: int


class Neighbours:
    """The compiled kernels on both sides of each kernel call of a rewritten graph."""

    def __init__(self, view: GraphView, fusion: Fusion) -> None:
        self._view = view
        self._fusion = fusion
        self._groups = {g.name: g for g in fusion.groups}
        self._named = view.named
        self._before: dict[Node, list[Node]] = defaultdict(list)
        self._after: dict[Node, list[Node]] = defaultdict(list)
        self._returned = {p for node in view.nodes if node.op == "output" for p in producers(view, node)}
        for producer, consumer in edges(view):
            self._before[consumer].append(producer)
            self._after[producer].append(consumer)

    def absorptions(self, call: Node) -> tuple[Absorption, ...]:
        """Generated kernels that compute something for `call` alone, or that alone read its result; most bytes first.

        The traffic saved is the tensor between the two, written and read. A tensor that the caller of the graph reads is
        written in any case, so it is left out.
        """
        found = []
        for group in dict.fromkeys(g for p in self._before[call] for g in self._of(p)):
            if self._only_for(group, call):
                found.append(self._absorption(group, "before", 2 * group.writes))
        readers = dict.fromkeys(g for c in self._after[call] for g in self._of(c))
        # With a second reader the result is still written, and a reader that is computed in several kernels still reads it:
        # taking one of them in saves nothing.
        if call not in self._returned and len(readers) == 1 and all(len(self._of(c)) == 1 for c in self._after[call]):
            result = next(g for g in self._of(call))
            found.append(self._absorption(next(iter(readers)), "after", 2 * result.writes))
        generated = [a for a in found if a is not None and a.bytes > 0]
        return tuple(sorted(generated, key=lambda a: -a.bytes))

    def _of(self, node: Node) -> list[Group]:
        return [self._groups[name] for name in sorted(self._fusion.of.get(node.name, ()))]

    def _only_for(self, group: Group, call: Node) -> bool:
        """Whether only `call` reads what the group computes."""
        members = [self._named[name] for name in group.nodes]
        outside = {c for m in members for c in self._after[m] if c.name not in group.nodes}
        again = any(len(self._of(m)) > 1 and self._after[m] for m in members)
        return outside == {call} and not again and self._returned.isdisjoint(members)

    def _absorption(self, group: Group, side: Literal["before", "after"], saved: int) -> Absorption | None:
        if group.kind not in ("fused", "copy"):
            return None
        nodes = sorted((self._named[name] for name in group.nodes), key=self._view.order)
        ops = tuple(dict.fromkeys(self._view.op(n) for n in nodes))
        return Absorption(tuple(n.name for n in nodes), ops, self._view.path(*nodes), side, saved)
