"""Where a kernel call separates operations that a compiler would have fused, and what that costs in memory traffic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch.fx import Node

from ...graph.edges import edges, producers
from ...graph.shapes import LEFT_OUT, hints, size_of
from ...graph.view import GraphView
from ...rewrite.kernel_calls import inserted_call
from ...site import Site
from .. import FusionPrediction
from .absorption import Absorption, Neighbours

__all__ = ["CallBoundary", "FusedGraph", "Materialised", "calls_of", "described", "find_boundaries"]

Kind = Literal["split", "barrier", "layout"]


@dataclass(frozen=True)
class Materialised:
    """A tensor that goes through memory because of a kernel call, and did not before.

    Attributes:
        name: node that computes it.
        op: what that node does.
        role: "operand" or "result" of the call.
        shape: ints, or the text of a symbolic size.
        bytes: its size; of a symbolic one at the size that was traced.
    """

    name: str
    op: str
    role: Literal["operand", "result"]
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    bytes: int


@dataclass(frozen=True)
class CallBoundary:
    """One kernel call as a border.

    Attributes:
        site: what the call replaces.
        call: name of the call in the rewritten graph.
        kind: "barrier": an opaque call inside an executable; "split": it also ends the executable; "layout": a copy made only
            because the kernel wants contiguous operands.
        tensors: what goes through memory because of it; of a tensor that two calls share, the first has it.
        lost: producer and consumer pairs whose fusion it breaks; one end is inside the call.
        absorptions: most bytes first.
    """

    site: Site
    call: str
    kind: Kind
    tensors: tuple[Materialised, ...]
    lost: tuple[tuple[str, str], ...] = ()
    absorptions: tuple[Absorption, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all tensors: each is written once and read once more often than without the call."""
        return sum(t.bytes for t in self.tensors)


@dataclass
class _CallTraffic:
    tensors: list[Materialised] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class FusedGraph:
    """A graph and what a compiler makes of it."""

    view: GraphView
    prediction: FusionPrediction


def find_boundaries(before: FusedGraph, after: FusedGraph, sites: Sequence[Site], regime: str) -> list[CallBoundary]:
    """The borders that arise where kernel calls replace `sites`.

    Args:
        before: the original graph.
        after: the rewritten one.
        sites: the ones that kernels replace; they do not overlap.
        regime: "compile", where a call is a barrier, or "lazy", where it also splits the executable.

    Returns:
        One "barrier" or "split" for each site, and a "layout" for each whose operands must be copied, in graph order.
    """
    view = before.view
    owner = {n: i for i, site in enumerate(sites) for n in (*site.interior, *site.outputs)}
    found = [_CallTraffic() for _ in sites]
    for producer, consumer in edges(view):
        a, b = owner.get(producer), owner.get(consumer)
        if (a is None and b is None) or a == b:
            continue
        if before.prediction.fusion.fused(producer.name, consumer.name):
            # Between two sites the pair is lost once, so that sums over calls are right: the consumer has it.
            found[b if b is not None else a or 0].lost.append((producer.name, consumer.name))
    _materialised(before, after, sites, owner, found)
    calls = calls_of(after.view, sites)
    neighbours = Neighbours(after.view, after.prediction.fusion)
    kind: Kind = "split" if regime == "lazy" else "barrier"
    result = []
    for site, one, call in zip(sites, found, calls, strict=True):
        if call is None:
            continue
        absorbed = neighbours.absorptions(call)
        tensors, lost = tuple(one.tensors), tuple(one.lost)
        result.append(CallBoundary(site, call.name, kind, tensors, lost=lost, absorptions=absorbed))
        copied = tuple(_copied(after.view, after.prediction.copies.get(call.name, ())))
        if copied:
            result.append(CallBoundary(site, call.name, "layout", copied))
    return result


def calls_of(view: GraphView, sites: Sequence[Site]) -> list[Node | None]:
    """The kernel call that replaces each site in a rewritten graph; None where there is none.

    Args:
        view: the rewritten graph.
        sites: sites of one original graph.
    """
    # The original may have been rewritten before: its calls keep marks that name nodes of a graph before it.
    original = {n.name for n in sites[0].outputs[0].graph.nodes} if sites else frozenset[str]()
    made: dict[tuple[str, str], Node] = {}
    for node in view.nodes:
        call = inserted_call(node)
        if call is not None and node.name not in original:
            made.setdefault((call.origin, call.kind), node)
    return [made.get((site.outputs[0].name, site.kind)) for site in sites]


def _materialised(
    before: FusedGraph,
    after: FusedGraph,
    sites: Sequence[Site],
    owner: Mapping[Node, int],
    found: Sequence[_CallTraffic],
) -> None:
    """Operands and results that are in memory with the calls and were not without; each once.

    A tensor that two calls share counts for the first, so that the sum over all calls is what the graph moves. An operand counts
    only if a kernel stores it after the rewrite: a call may also read an input, or a value that was in memory before.
    """
    view, stored, stored_after = before.view, before.prediction.stored, after.prediction.stored
    done: set[Node] = set()
    for index, site in enumerate(sites):
        for node in _operands(view, site, owner, index):
            if node not in done and node.name not in stored and node.name in stored_after:
                done.add(node)
                found[index].tensors.append(_tensor(view, node, "operand"))
        for node in site.outputs:
            made = _computing(view, node)
            if made not in done and made.name not in stored and view.tensor(node) is not None:
                done.add(made)
                found[index].tensors.append(_tensor(view, node, "result"))


def _operands(view: GraphView, site: Site, owner: Mapping[Node, int], index: int) -> list[Node]:
    """What operations inside the site read from operations outside, without inputs of the graph."""
    seen: dict[Node, None] = {}
    for node in sorted({*site.interior, *site.outputs}, key=view.order):
        for producer in producers(view, node):
            if owner.get(producer) != index and producer.op in ("call_function", "call_method"):
                seen[producer] = None
    return list(seen)


def _computing(view: GraphView, node: Node) -> Node:
    """The operation whose value `node` views."""
    while True:
        source = view.source(node)
        if source is None or view.dtype(source[0]) != view.dtype(node):
            return node
        node = source[0]


def _tensor(view: GraphView, node: Node, role: Literal["operand", "result"]) -> Materialised:
    return described(node.name, view.op(node), role, view.tensor(node))


def described(name: str, op: str, role: Literal["operand", "result"], value: torch.Tensor | None) -> Materialised:
    """The record of a tensor. Without a value it has no sizes and no bytes."""
    if value is None:
        return Materialised(name, op, role, (), dtype=torch.float32, bytes=0)
    size = math.prod(hints(value.shape, LEFT_OUT)) * value.element_size()
    return Materialised(name, op, role, tuple(map(size_of, value.shape)), dtype=value.dtype, bytes=size)


def _copied(view: GraphView, copies: Iterable[tuple[str, int]]) -> Iterator[Materialised]:
    for name, size in copies:
        node = view.named.get(name)
        op = view.op(node) if node is not None else ""
        yield replace(described(name, op, "operand", view.tensor(node)), bytes=size)
