"""Which values are stored by a compiler that decides once it knows all their uses, and the loops that follow from that.

A value is computed inside every consumer that can take it in, and stored for the others. A value may be both: then it is
computed again. This is how XLA fuses (fusion/data/xla.json, `storage`): a producer goes into each consumer that can take it,
unless the duplicates read more memory. Deciding value by value, as `lower_as_met` does, cannot tell: a later consumer may be
the one that needs the value in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from ..graph.view import GraphView
from ..site import Site
from .graph_walk import Buffer, Key, LoopNest, Lowered, ViewedBuffer, of_part
from .groups import Kind
from .ops import LoweredOp, Ops
from .rules import Rules

__all__ = ["lower_by_use"]


class _Uses:
    """Decides which operation is computed inside which consumer."""

    def __init__(self, ops: Sequence[LoweredOp]) -> None:
        self.users: list[list[tuple[LoweredOp, ViewedBuffer[LoweredOp]]]] = [[] for _ in ops]
        self.above = [0] * len(ops)
        """For each operation, a bit for each operation that it depends on, and for itself."""
        for op in ops:
            self.above[op.index] |= 1 << op.index
            for value in op.operands:
                self.users[value.base.index].append((op, value))
                self.above[op.index] |= self.above[value.base.index]
            for made in op.results:
                self.above[made.index] |= self.above[op.index]
        self._readers = [len({user.index for user, _ in users}) for users in self.users]
        self.once: set[LoweredOp] = set()
        """Operations that are never computed in two kernels: that would read more memory."""
        # In graph order: whether a value reaches a consumer within one kernel depends on the decisions on values before it.
        growing = {op for op in ops if self._grows(op)}
        for op in ops:
            for value in op.operands:
                if value.base in growing and not self._everywhere(value.base, op, {}):
                    self.once.add(value.base)

    def inside(self, value: ViewedBuffer[LoweredOp], consumer: LoweredOp) -> bool:
        """Whether the consumer computes the value itself instead of reading it from memory."""
        made = value.base
        if not made.computes or made in self.once:
            return False
        if not (consumer.computes or consumer.vector):
            return False
        # Cheap arithmetic is repeated in each consumer: recomputing it costs less than writing and reading it.
        if not made.expensive and made.kind != "cat":
            return True
        # A loop that broadcasts the value, and a product that computes its operands inside, need each element several times.
        loop = consumer.kind in ("map", "view")
        repeated = consumer.vector or (loop and value.region.elements < consumer.elements)
        single = not made.kept and self._readers[made.index] == 1
        if made.kind == "cat":
            one_way = len({v.region.key for _, v in self.users[made.index]}) == 1
            return not repeated and one_way and (single or len({v.base for v in consumer.operands}) == 1)
        return single and not repeated if made.expensive else True

    def _grows(self, op: LoweredOp) -> bool:
        """Whether computing it again reads more than its result: at least two operands of its size, larger together."""
        if not op.computes or len(op.operands) < 2:
            return False
        large = {v.base for v in op.operands if v.region.elements >= op.elements}
        if len(large) < 2:
            return False
        size = sum(b.elements * b.itemsize for b in {v.base for v in op.operands})
        return size > op.elements * op.itemsize

    def _everywhere(self, made: LoweredOp, consumer: LoweredOp, known: dict[LoweredOp, bool]) -> bool:
        """Whether all paths from the value to the consumer stay inside one kernel, which then computes the value once."""
        if consumer is made:
            return True
        if consumer not in known:
            known[consumer] = all(
                self.inside(value, consumer) and self._everywhere(made, value.base, known)
                for value in consumer.operands
                if self.above[value.base.index] >> made.index & 1
            )
        return known[consumer]


class _Emit:
    """Emits loops and buffers, in graph order."""

    def __init__(self, ops: Ops) -> None:
        self.uses = _Uses(ops.ops)
        self.loops: list[LoopNest] = []
        self.buffers: list[Buffer] = []
        self.buffer: dict[int, int] = {}
        self._inner: dict[int, tuple[frozenset[str], dict[Key, int]]] = {}
        for op in ops.ops:
            self._op(op)

    def _op(self, op: LoweredOp) -> None:
        if op.kind in ("library", "opaque"):
            kind: Kind = "opaque" if op.kind == "opaque" else "library"
            names, reads = self._computing(op)
            writes = tuple(self._allocated(made, [len(self.loops)]) for made in op.results)
            self.loops.append(LoopNest(kind, names, reads, writes, (0, 0)))
        elif op.kind == "input":
            self._allocated(op, [])
        elif op.kind != "result" and self._stored(op):
            names, reads = self._computing(op)
            alias = self._alias(op)
            if alias is not None:
                self.buffer[op.index] = alias
                self.buffers[alias].kept |= op.kept
                return
            loop = LoopNest("fused" if names else "copy", names, reads, (len(self.buffers),), (op.elements, op.summed))
            self._allocated(op, [len(self.loops)])
            self.loops.append(loop)
        if op.kept:
            self.buffers[self.buffer[op.index]].kept = True

    def _stored(self, op: LoweredOp) -> bool:
        return op.kept or any(not self.uses.inside(value, user) for user, value in self.uses.users[op.index])

    def _alias(self, op: LoweredOp) -> int | None:
        """The buffer behind a view that covers all of it in order; None where a loop has to copy."""
        if op.kind != "view":
            return None
        (value,) = op.operands
        plain = value.region.contiguous and value.region.elements == value.base.elements
        return self.buffer[value.base.index] if plain and not self.uses.inside(value, op) else None

    def _allocated(self, op: LoweredOp, producers: list[int]) -> int:
        self.buffer[op.index] = len(self.buffers)
        self.buffers.append(Buffer(op.elements * op.itemsize, producers))
        return self.buffer[op.index]

    def _computing(self, op: LoweredOp) -> tuple[frozenset[str], dict[Key, int]]:
        """The nodes computed in the kernel that ends with an operation, and what it reads."""
        known = self._inner.get(op.index)
        if known is not None:
            return known
        names = frozenset([op.node]) - {""}
        reads: dict[Key, int] = {}
        for value in op.operands:
            base = value.base
            if self.uses.inside(value, op):
                more, inner = self._computing(base)
                names |= more
                reads.update(of_part(base.elements, inner, value.region))
            else:
                reads[self.buffer[base.index], value.region.key, None] = value.region.elements * base.itemsize
        self._inner[op.index] = names, reads
        return names, reads


def lower_by_use(view: GraphView, rules: Rules, nodes: Sequence[Node] | None, calls: Sequence[Site]) -> Lowered:
    """As `lower_as_met.lower`, for rules whose `storage` is "by_use"."""
    ops = Ops(view, rules, calls)
    ops.walk(nodes)
    made = _Emit(ops)
    places = {}
    for node, found in ops.values.items():
        for one in found if isinstance(found, list) else [found]:
            buffer = made.buffer.get(one.base.index) if isinstance(one, ViewedBuffer) else None
            if buffer is not None and made.buffers[buffer].producers:
                places[node.name] = (buffer, one.region.elements * one.base.itemsize)
    return Lowered(made.loops, made.buffers, ops.copies, places)
