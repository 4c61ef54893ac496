"""From a graph to loops: which values a compiler computes inside their consumers, and which it stores.

This is how Inductor lowers: it decides on a value when it meets it, before the consumers are lowered, with the thresholds of
its config (fusion/data/inductor.json). XLA decides once all uses are known; that is `lower_by_use`. The order matters: a value
that is stored early has its own loop, which later consumers read and no longer compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import Node

from ..graph.shapes import LEFT_OUT, hint, hints
from ..graph.view import GraphView
from ..site import Site
from .graph_walk import Buffer, Key, LoopNest, Lowered, ViewedBuffer, Walk, of_part
from .groups import Kind
from .rules import Rules
from .strided import StridedRegion

__all__ = ["lower"]


class _Virtual:
    """A value, and what it takes to compute it as long as it is not in memory.

    Attributes:
        buffer: where it is stored; None as long as it is not.
        names: nodes computed on the way.
        reads: what is read to compute it.
        heavy: whether one of the nodes is too expensive to compute twice.
        fixed: its buffer cannot become a part of a larger one.
    """

    def __init__(self, sizes: tuple[int, ...], itemsize: int) -> None:
        self.sizes, self.itemsize = sizes, itemsize
        self.buffer: int | None = None
        self.names: frozenset[str] = frozenset()
        self.reads: dict[Key, int] = {}
        self.heavy = False
        self.fixed = False

    @property
    def elements(self) -> int:
        return math.prod(self.sizes)


class Lowering(Walk[_Virtual]):
    """Decides on each value when it is met, with a look ahead at its uses; see `lower`."""

    def __init__(self, view: GraphView, rules: Rules, calls: Sequence[Site]) -> None:
        super().__init__(view, rules, calls)
        self.loops: list[LoopNest] = []
        self.buffers: list[Buffer] = []

    def places(self) -> dict[str, tuple[int, int]]:
        """For each node whose value is in memory that some loop writes: the buffer, and the bytes of the value."""
        found = {}
        for node, value in self._values.items():
            for one in value if isinstance(value, list) else [value]:
                base = one.base if isinstance(one, ViewedBuffer) else None
                if base is not None and base.buffer is not None and self.buffers[base.buffer].producers:
                    found[node.name] = (base.buffer, one.region.elements * base.itemsize)
        return found

    # *** values and buffers

    def _memory(
        self, base: _Virtual, kind: Kind, names: frozenset[str], reads: dict[Key, int], summed: int = 1
    ) -> None:
        """Store `base` with a loop of its own."""
        base.buffer = len(self.buffers)
        self.buffers.append(Buffer(base.elements * base.itemsize, [len(self.loops)]))
        self.loops.append(LoopNest(kind, names, reads, (base.buffer,), (base.elements, summed)))

    def _input(self, sizes: tuple[int, ...], itemsize: int) -> _Virtual:
        base = _Virtual(sizes, itemsize)
        base.buffer, base.fixed = len(self.buffers), True
        self.buffers.append(Buffer(base.elements * itemsize))
        return base

    def _store(self, value: ViewedBuffer[_Virtual]) -> None:
        base = value.base
        if base.buffer is None:
            self._memory(base, "fused", base.names, base.reads)

    def _reading(self, values: Iterable[ViewedBuffer[_Virtual]]) -> tuple[frozenset[str], dict[Key, int], bool]:
        """The nodes computed on the way, what is read, and whether a heavy operation is among the nodes."""
        names: frozenset[str] = frozenset()
        reads: dict[Key, int] = {}
        heavy = False
        for value in values:
            base = value.base
            if base.buffer is None:
                names, heavy = names | base.names, heavy or base.heavy
                reads.update(of_part(base.elements, base.reads, value.region))
            else:
                key = (base.buffer, value.region.key, None)
                reads[key] = value.region.elements * base.itemsize
        return names, reads, heavy

    # *** nodes

    def _result(self, value: Any) -> None:
        """Store a value that the caller reads."""
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, ViewedBuffer):
                self._store(one)
                self.buffers[one.base.buffer or 0].kept = True

    def _arrived(self, tensor: Any) -> ViewedBuffer[_Virtual] | None:
        if not isinstance(tensor, torch.Tensor):
            return None
        sizes = hints(tensor.shape, LEFT_OUT)
        strides = tuple(hint(s, LEFT_OUT) for s in tensor.stride())
        return ViewedBuffer(self._input(sizes, tensor.element_size()), StridedRegion(0, sizes, strides))

    def _copying(self, value: ViewedBuffer[_Virtual], region: StridedRegion) -> bool:
        return value.base.buffer is not None and not region.contiguous

    def _called(
        self, kind: Kind, name: str, operands: Sequence[ViewedBuffer[_Virtual]], results: Sequence[torch.Tensor]
    ) -> list[ViewedBuffer[_Virtual]]:
        reads: dict[Key, int] = {}
        copies = []
        for value in operands:
            self._store(value)
            # A library call takes strides, so only a view that no strides describe is copied for it.
            if not value.region.strided or (
                kind == "opaque" and self.rules.contiguous_calls and not value.region.contiguous
            ):
                copies.append((self._named(value), value.region.elements * value.base.itemsize))
                value = self._copied(value, frozenset())
            reads.update(self._reading([value])[1])
        if kind == "opaque":
            self.copies[name] = tuple(copies)
        made = [_Virtual(hints(t.shape, LEFT_OUT), t.element_size()) for t in results]
        for base in made:
            base.buffer, base.fixed = len(self.buffers), True
            self.buffers.append(Buffer(base.elements * base.itemsize, [len(self.loops)]))
        writes = tuple(b.buffer for b in made if b.buffer is not None)
        self.loops.append(LoopNest(kind, frozenset([name]), reads, writes, (0, 0)))
        return [ViewedBuffer(b, _region(t)) for b, t in zip(made, results, strict=True)]

    def _copied(self, value: ViewedBuffer[_Virtual], names: frozenset[str]) -> ViewedBuffer[_Virtual]:
        base = _Virtual(value.region.sizes, value.base.itemsize)
        self._memory(base, "copy", names, self._reading([value])[1])
        return ViewedBuffer(base, StridedRegion.whole(base.sizes))

    def _compute(self, node: Node, op: str, tensor: torch.Tensor) -> None:
        """Loops over elements, reductions first."""
        operands = self._operands(node)
        base = _Virtual(hints(tensor.shape, LEFT_OUT), tensor.element_size())
        *before, last = self.rules.of(op)
        for part in before:
            if part == "reduce":
                operands = [*operands, self._reduced(node, operands, base)]
        names, reads, heavy = self._reading(operands)
        names |= {node.name}
        if last == "store" and self.rules.join == "store":
            self._joined(node, base)
        elif last == "reduce":
            largest = max((v.base.elements for v in operands), default=base.elements)
            self._memory(base, "fused", names, reads, max(1, largest // max(1, base.elements)))
        else:
            base.names, base.reads, base.heavy = names, reads, heavy or op in self.rules.heavy
            # Nothing is stored for a single use: the value stays inside its consumer unless too many buffers are read for it.
            if not self.rules.inline or len(reads) > self.rules.most_reads:
                self._memory(base, "fused", names, reads)
        self._values[node] = ViewedBuffer(base, StridedRegion.whole(base.sizes))

    def _reduced(self, node: Node, operands: list[ViewedBuffer[_Virtual]], result: _Virtual) -> ViewedBuffer[_Virtual]:
        """One number for each row of the first operand."""
        rows = _Virtual(result.sizes[:-1] or (1,), 4)
        names, reads, _ = self._reading(operands[:1])
        self._memory(rows, "fused", names | {node.name}, reads, max(1, result.elements // max(1, rows.elements)))
        return ViewedBuffer(rows, StridedRegion.whole((*rows.sizes, 1))._expand(result.sizes))

    def _joined(self, node: Node, base: _Virtual) -> None:
        """Write each input to its place: with the loop that computes it if there is one, else with a copy.

        A value that is all of its loop's result, in order, needs no second pass: its loop writes into the joined buffer. The
        buffer of an input, of a call or of another cat is fixed, and is copied.
        """
        base.buffer, base.fixed = len(self.buffers), True
        whole = Buffer(base.elements * base.itemsize)
        self.buffers.append(whole)
        for value in self._operands(node):
            source = value.base
            direct = value.region.contiguous and value.region.elements == source.elements
            if source.buffer is not None and not source.fixed and direct:
                whole.producers += self.buffers[source.buffer].producers
                self._into(source, base.buffer)
                continue
            names, reads, _ = self._reading([value])
            kind: Kind = "copy" if source.buffer is not None else "fused"
            whole.producers.append(len(self.loops))
            self.loops.append(
                LoopNest(kind, names | {node.name}, reads, (base.buffer,), (math.prod(value.region.sizes), 1))
            )
            if source.buffer is None and direct:
                source.buffer, source.fixed = base.buffer, True

    def _into(self, source: _Virtual, buffer: int) -> None:
        """Redirect the loops that wrote `source` to a part of `buffer`."""
        old = source.buffer
        for index in self.buffers[old or 0].producers:
            loop = self.loops[index]
            loop.writes = tuple(buffer if w == old else w for w in loop.writes)
        source.buffer, source.fixed = buffer, True

    def _reused(self, node: Node) -> None:
        """Store a value that is too expensive to compute in several consumers, or that a call takes from memory."""
        value = self._values.get(node)
        if not isinstance(value, ViewedBuffer) or value.base.buffer is not None:
            return
        base, uses = value.base, sum(self._uses(u, node) for u in node.users)
        expensive = base.heavy or len(base.reads) > self.rules.reuse_reads
        # What a call takes is written in any case; other consumers then read one buffer rather than several. With a single
        # buffer behind it the value costs them the same either way.
        called = any(self._calls(u) for u in node.users)
        if (uses > 1 and expensive) or (called and len(base.reads) > 1):
            self._store(value)

    def _calls(self, user: Node) -> bool:
        """Whether a use needs the value in memory."""
        if user in self._inside or user in self._kernel_calls:
            return True
        return self.view.source(user) is None and self.rules.of(self.view.op(user))[-1] == "library"

    def _uses(self, user: Node, node: Node) -> int:
        """How often a user reads the node: softmax, say, goes over its input once for each of its parts."""
        parts = self.rules.of(self.view.op(user)) if self.view.source(user) is None else ("view",)
        return len(parts) if user.args[:1] == (node,) or user.kwargs.get("input") is node else 1


def _region(tensor: torch.Tensor) -> StridedRegion:
    sizes = hints(tensor.shape, LEFT_OUT)
    return StridedRegion(0, sizes, tuple(hint(s, LEFT_OUT) for s in tensor.stride()))


def lower(view: GraphView, rules: Rules, nodes: Sequence[Node] | None = None, calls: Sequence[Site] = ()) -> Lowered:
    """The loops and calls of a graph before loops are merged, with the buffers between them; see `schedule.fuse`."""
    lowering = Lowering(view, rules, calls)
    lowering.walk(nodes)
    return Lowered(lowering.loops, lowering.buffers, lowering.copies, lowering.places())
