"""Walks a graph in order and looks through views: the part that does not depend on how a compiler stores values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.fx import Node

from ..graph.shapes import LEFT_OUT, hint, hints
from ..graph.view import GraphView
from ..rewrite.kernel_calls import kernel_calls
from ..site import Inline, Site
from .groups import Kind
from .rules import Rules
from .strided import StridedRegion, dense

__all__ = ["Buffer", "Key", "LoopNest", "Lowered", "ViewedBuffer", "Walk", "of_part"]

B = TypeVar("B")
Key = tuple[int, Any, Any]
"""What is read: buffer, region of it, and the part of that region when only a part of a value is computed."""


@dataclass(slots=True)
class Buffer:
    """Memory: its size in bytes and the loops that write it. No loop writes an input of the graph."""

    bytes: int
    producers: list[int] = field(default_factory=list)
    kept: bool = False
    """Read by the caller of the graph, so it is written in any case."""


@dataclass(slots=True)
class LoopNest:
    """One loop nest or call before loops are merged. `space` is (elements of the result, elements summed for each)."""

    kind: Kind
    names: frozenset[str]
    reads: dict[Key, int]
    writes: tuple[int, ...]
    space: tuple[int, int]


@dataclass(frozen=True)
class Lowered:
    """A graph as loops and calls, before loops are merged.

    Attributes:
        loops: in execution order.
        buffers: what they read and write.
        copies: for each kernel call, the operands copied first, with their bytes.
        places: for each node whose value lies in memory that some loop writes: the buffer, and the bytes of the value.
    """

    loops: list[LoopNest]
    buffers: list[Buffer]
    copies: dict[str, tuple[tuple[str, int], ...]]
    places: dict[str, tuple[int, int]]


class ViewedBuffer(NamedTuple, Generic[B]):
    """The value of a node: a view of something computed."""

    base: B
    region: StridedRegion


class Walk(ABC, Generic[B]):
    """Visits the nodes of a graph; subclasses decide what it takes to compute one."""

    def __init__(self, view: GraphView, rules: Rules, calls: Sequence[Site]) -> None:
        self.view, self.rules = view, rules
        self._kernel_calls = kernel_calls(view)
        self.copies: dict[str, tuple[tuple[str, int], ...]] = {}
        self._values: dict[Node, Any] = {}
        # Choosing kernels walks the same block once for each set of calls. What does not depend on the calls is kept.
        self._passed: dict[Node, Node | tuple[()] | None] = view.memo("walk_passed", lambda _: {})
        self._shown: dict[tuple[Node, StridedRegion], StridedRegion] = view.memo("walk_shown", lambda _: {})
        self._inside = {n: site for site in calls for n in (*site.interior, *site.outputs)}
        self._due: dict[Node, list[Site]] = {}
        for site in calls:
            self._due.setdefault(site.before, []).append(site)

    @abstractmethod
    def _arrived(self, tensor: Any) -> ViewedBuffer[B] | None:
        """An input of the graph; None for anything but a tensor."""

    @abstractmethod
    def _called(
        self, kind: Kind, name: str, operands: Sequence[ViewedBuffer[B]], results: Sequence[torch.Tensor]
    ) -> list[ViewedBuffer[B]]:
        """A library call or a kernel call: operands come from memory, results go there."""

    @abstractmethod
    def _compute(self, node: Node, op: str, tensor: torch.Tensor) -> None:
        """A node that computes one tensor in loops."""

    @abstractmethod
    def _result(self, value: Any) -> None:
        """A value that the caller reads: it must be in memory."""

    def _reused(self, node: Node) -> None:
        """Called after each node: the place to look ahead at its uses."""

    def _copying(self, value: ViewedBuffer[B], region: StridedRegion) -> bool:
        """Whether `contiguous()` and similar operations copy this view of a value; if not, they return the view itself."""
        return False

    def walk(self, nodes: Sequence[Node] | None) -> None:
        """Visit all nodes, or only some."""
        chosen = self.view.nodes if nodes is None else nodes
        known = set(chosen)
        for node in chosen:
            for outside in node.all_input_nodes if nodes is not None else ():
                if outside not in known and outside not in self._values:
                    self._values[outside] = self._arrived(self.view.value(outside))
            for site in self._due.get(node, ()):
                self._site(site)
            if node not in self._inside:
                self._node(node)
            if nodes is not None and any(u not in known for u in node.users):
                self._result(self._values.get(node))

    def _site(self, site: Site) -> None:
        """Visit a call that replaces a site, of a kernel or of one product: its operands are what the site reads from outside."""
        inside = {*site.interior, *site.outputs}
        outside = dict.fromkeys(i for n in inside for i in n.all_input_nodes if i not in inside)
        for n in outside:  # the walk may be of some nodes only, and the site may read values of later nodes
            if n not in self._values:
                self._values[n] = self._arrived(self.view.value(n))
        # `inside` is a set: without the order of the graph, reports would differ from run to run.
        operands = [
            v for n in sorted(outside, key=self.view.order) if isinstance(v := self._values.get(n), ViewedBuffer)
        ]
        if site.inline is not None:
            self._inlined(site, site.inline, operands)
            return
        tensors = [t for n in site.outputs if (t := self.view.tensor(n)) is not None]
        values = self._called("opaque", site.outputs[0].name, operands, tensors)
        for node, value, tensor in zip(site.outputs, values, tensors, strict=False):
            self._values[node] = ViewedBuffer(value.base, StridedRegion.whole(hints(tensor.shape, LEFT_OUT)))

    def _inlined(self, site: Site, form: Inline, operands: Sequence[ViewedBuffer[B]]) -> None:
        """Visit one product; the outputs of the site are strided views of its result."""
        x = self.view.tensor(site.operands["x"])
        lead = [] if x is None else [hint(n, LEFT_OUT) for n in x.shape[:-1]]
        sizes = (*lead, form.columns)
        whole = torch.empty(sizes, dtype=site.dtype, device="meta")
        (value,) = self._called("library", site.outputs[0].name, operands, [whole])
        steps = dense(sizes)
        for node, lanes in zip(site.outputs, form.results, strict=True):
            strides = (
                s if a == lanes.tracked else steps[a] if a >= 0 else 0
                for s, a in zip(lanes.strides, lanes.axes, strict=True)
            )
            self._values[node] = ViewedBuffer(
                value.base, StridedRegion(lanes.offset, hints(lanes.sizes, LEFT_OUT), tuple(strides))
            )

    def _operands(self, node: Node) -> list[ViewedBuffer[B]]:
        found = [self._values.get(n) for n in node.all_input_nodes]
        return [v for v in found if isinstance(v, ViewedBuffer)]

    def _node(self, node: Node) -> None:
        op = self.view.op(node)
        tensor = self.view.value(node)
        if op == "output":
            for value in self._operands(node):
                self._result(value)
            return
        if op in ("placeholder", "get_attr"):
            self._values[node] = self._arrived(tensor)
            return
        seen = self._seen(node, op)
        if seen is not None:
            self._values[node] = seen
        # The mark comes before the rules: a rules file that names the op cannot make a loop of a kernel.
        elif node in self._kernel_calls:
            self._call(node, "opaque")
        elif self._library(node, op):
            self._call(node, "library")
        elif isinstance(tensor, torch.Tensor):
            self._compute(node, op, tensor)
        self._reused(node)

    def _library(self, node: Node, op: str) -> bool:
        return self.rules.of(op)[-1] == "library"

    def _seen(self, node: Node, op: str) -> Any:
        """The value of a node that is only a view, or None."""
        if op == "getitem":
            whole = self._values.get(self.view.arg(node, "input"))
            index = self.view.arg(node, "index")
            if isinstance(whole, list) and isinstance(index, int):
                return whole[index]
        passed = self._passed.get(node, node)
        if passed is node:
            passed = self._passed[node] = _passed(self.view, node, op)
        if not isinstance(passed, Node):
            return passed
        value = self._values.get(passed)
        if op == "wait":
            return value
        if not isinstance(value, ViewedBuffer):
            return None
        region = self._shown.get((node, value.region))
        if region is None:
            region = value.region
            for step in (self.view.source(node) or (passed, ()))[1]:
                region = region.apply(step)
            self._shown[node, value.region] = region
        if op == "copy" and self._copying(value, region):
            return None
        return ViewedBuffer(value.base, region)

    def _call(self, node: Node, kind: Kind) -> None:
        single = isinstance(self.view.value(node), torch.Tensor)
        values = self._called(kind, node.name, self._operands(node), self.view.results(node))
        self._values[node] = values[0] if single else values

    def _named(self, value: ViewedBuffer[B]) -> str:
        """The latest node that has this very value."""
        return next((n.name for n, v in reversed(self._values.items()) if v is value), "")


def _passed(view: GraphView, node: Node, op: str) -> Node | tuple[()] | None:
    """The node that this one is a view of; () for one that returns several views; None for any other node."""
    if op == "wait":
        source = view.arg(node, "input")
        return source if isinstance(source, Node) else None
    found = view.source(node)
    if found is None:
        return () if op in ("split", "chunk", "unbind") else None
    # `view.source` looks through casts. A cast computes: its result has other bytes than its operand.
    return found[0] if view.dtype(node) == view.dtype(found[0]) else None


def of_part(elements: int, reads: dict[Key, int], region: StridedRegion) -> dict[Key, int]:
    """What it reads to compute only `region` of a value of `elements` elements, when all of the value takes `reads`."""
    if region.elements >= elements:
        return reads
    # A loop over a slice reads that slice of operands as large as the value. Smaller operands, such as a bias or a statistic of
    # each row, are read whole: without their index expressions it is not known which part the slice needs.
    share = region.elements / max(1, elements)
    found = {}
    for (buffer, key, part), size in reads.items():
        whole = size >= elements and part is None
        found[buffer, key, region.key if whole else part] = round(size * share) if whole else size
    return found
