"""Groups of operations that one compiled kernel computes, and the bytes that each moves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

__all__ = ["Fusion", "Group", "Kind"]

Kind = Literal["fused", "library", "opaque", "copy"]


@dataclass(frozen=True)
class Group:
    """One kernel that a compiler makes or calls.

    Attributes:
        name: name of the kernel, unique within a `Fusion`.
        kind: "fused" for generated code, "library" for a call of a matrix product or the like, "opaque" for a kernel
            call, "copy" for a kernel that only changes a layout.
        nodes: names of the traced graph's nodes that it computes, wholly or in part. A node that is computed again in
            several kernels is listed in each.
        reads: bytes of its distinct tensor operands in memory.
        writes: bytes of its results.
    """

    name: str
    kind: Kind
    nodes: frozenset[str]
    reads: int
    writes: int


@dataclass(frozen=True)
class Fusion:
    """All kernels of one graph.

    Attributes:
        by: the source, with its version: "inductor 2.13.0 cpu", "xla 2.9.0 cpu", or "model of inductor".
        groups: the kernels in execution order.
    """

    by: str
    groups: tuple[Group, ...]

    @property
    def bytes(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(g.reads + g.writes for g in self.groups)

    @cached_property
    def of(self) -> Mapping[str, frozenset[str]]:
        """Names of the groups that compute a node, by name of the node."""
        found: dict[str, set[str]] = defaultdict(set)
        for group in self.groups:
            for node in group.nodes:
                found[node].add(group.name)
        return {node: frozenset(names) for node, names in found.items()}

    def fused(self, producer: str, consumer: str) -> bool:
        """Whether some kernel computes both nodes, so that the value between them need not go through memory."""
        nothing: frozenset[str] = frozenset()
        return not self.of.get(producer, nothing).isdisjoint(self.of.get(consumer, nothing))
