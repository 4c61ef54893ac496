"""From a graph to loops: which values a compiler keeps in registers inside their consumers, and which it stores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ..graph import GraphView
from ..site import Site
from .groups import Kind
from .region import Region, hint
from .rules import Rules

__all__ = ["Buffer", "Loop", "Lowering", "lower"]

Key = tuple[int, Any, Any]
"""What is read: buffer, region of it, and the part of that region when only a part of a value is computed."""
OPAQUE = "fluxrewrite."


@dataclass
class Buffer:
    """Memory: its size in bytes and the loops that write it; none for an input of the graph."""

    bytes: int
    producers: list[int] = field(default_factory=list)
    kept: bool = False
    """Read by the caller, or by a view of it that no loop accounts for."""


@dataclass
class Loop:
    """One loop nest or call before loops are merged. `space` is (elements of the result, elements summed for each)."""

    kind: Kind
    names: frozenset[str]
    reads: dict[Key, int]
    writes: tuple[int, ...]
    space: tuple[int, int]


class _Virtual:
    """A value that may not be in memory (yet): then what computing it takes."""

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


@dataclass(frozen=True)
class _Value:
    base: _Virtual
    region: Region


class Lowering:
    """Reads a graph in order; see `lower`."""

    def __init__(self, view: GraphView, rules: Rules, calls: Sequence[Site]) -> None:
        self.view, self.rules = view, rules
        self.loops: list[Loop] = []
        self.buffers: list[Buffer] = []
        self.copies: dict[str, tuple[tuple[str, int], ...]] = {}
        self._values: dict[Node, Any] = {}
        self._inside = {n: site for site in calls for n in (*site.interior, *site.outputs)}
        self._due: dict[Node, list[Site]] = {}
        for site in calls:
            self._due.setdefault(site.before, []).append(site)

    def run(self, nodes: Sequence[Node] | None) -> Lowering:
        """All nodes, or some; returns itself."""
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
        return self

    def places(self) -> dict[str, tuple[int, int]]:
        """For each node whose value lies in memory that some loop writes: the buffer, and the bytes of the value."""
        found = {}
        for node, value in self._values.items():
            for one in value if isinstance(value, list) else [value]:
                base = one.base if isinstance(one, _Value) else None
                if base is not None and base.buffer is not None and self.buffers[base.buffer].producers:
                    found[node.name] = (base.buffer, one.region.elements * base.itemsize)
        return found

    def _site(self, site: Site) -> None:
        """A kernel call in the place of a site: what the site reads from outside, and its outputs."""
        inside = {*site.interior, *site.outputs}
        outside = dict.fromkeys(i for n in inside for i in n.all_input_nodes if i not in inside)
        operands = [v for n in sorted(outside, key=self.view.order) if isinstance(v := self._values.get(n), _Value)]
        tensors = [t for n in site.outputs if (t := self.view.tensor(n)) is not None]
        values = self._called("opaque", site.outputs[0].name, operands, tensors)
        for node, value in zip(site.outputs, values, strict=False):
            self._values[node] = _Value(value.base, Region.whole(value.base.sizes))

    # *** values and buffers

    def _memory(
        self, base: _Virtual, kind: Kind, names: frozenset[str], reads: dict[Key, int], summed: int = 1
    ) -> None:
        """Store `base` by a loop of its own."""
        base.buffer = len(self.buffers)
        self.buffers.append(Buffer(base.elements * base.itemsize, [len(self.loops)]))
        self.loops.append(Loop(kind, names, reads, (base.buffer,), (base.elements, summed)))

    def _input(self, sizes: tuple[int, ...], itemsize: int) -> _Virtual:
        base = _Virtual(sizes, itemsize)
        base.buffer, base.fixed = len(self.buffers), True
        self.buffers.append(Buffer(base.elements * itemsize))
        return base

    def _store(self, value: _Value) -> None:
        base = value.base
        if base.buffer is None:
            self._memory(base, "fused", base.names, base.reads)

    def _reading(self, values: Iterable[_Value]) -> tuple[frozenset[str], dict[Key, int], bool]:
        """Nodes computed on the way, what is read, and whether something heavy is computed."""
        names: frozenset[str] = frozenset()
        reads: dict[Key, int] = {}
        heavy = False
        for value in values:
            base = value.base
            if base.buffer is None:
                names, heavy = names | base.names, heavy or base.heavy
                reads.update(_of_part(base, value.region))
            else:
                key = (base.buffer, value.region.key, None)
                reads[key] = value.region.elements * base.itemsize
        return names, reads, heavy

    def _operands(self, node: Node) -> list[_Value]:
        found = [self._values.get(n) for n in node.all_input_nodes]
        return [v for v in found if isinstance(v, _Value)]

    # *** nodes

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
        elif op.startswith(OPAQUE) or self._parts(op)[-1] == "library":
            self._call(node, "opaque" if op.startswith(OPAQUE) else "library")
        elif isinstance(tensor, torch.Tensor):
            self._compute(node, op, tensor)
        self._reused(node)

    def _result(self, value: Any) -> None:
        """What the caller reads must be in memory."""
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, _Value):
                self._store(one)
                self.buffers[one.base.buffer or 0].kept = True

    def _arrived(self, tensor: Any) -> _Value | None:
        if not isinstance(tensor, torch.Tensor):
            return None
        sizes = tuple(map(hint, tensor.shape))
        strides = tuple(hint(s) for s in tensor.stride())
        return _Value(self._input(sizes, tensor.element_size()), Region(0, sizes, strides))

    def _seen(self, node: Node, op: str) -> Any:
        """The value of a node that only views, or None."""
        if op == "getitem":
            whole = self._values.get(self.view.arg(node, "input"))
            index = self.view.arg(node, "index")
            if isinstance(whole, list) and isinstance(index, int):
                return whole[index]
        if op == "dropout" and (not self.view.arg(node, "training") or self.view.number(self.view.arg(node, "p")) == 0):
            return self._values.get(self.view.arg(node, "input"))
        found = self.view.source(node)
        if op in ("split", "chunk", "unbind") and found is None:
            return ()
        if found is None or self.view.dtype(node) != self.view.dtype(found[0]):
            return None
        value = self._values.get(found[0])
        if not isinstance(value, _Value):
            return None
        region = value.region
        for step in found[1]:
            region = region.apply(step)
        if op == "copy" and value.base.buffer is not None and not region.contiguous:
            return None
        return _Value(value.base, region)

    def _parts(self, op: str) -> tuple[str, ...]:
        return self.rules.parts.get(op, ("library",))

    def _call(self, node: Node, kind: Kind) -> None:
        value = self.view.value(node)
        results = [
            t
            for t in ([value] if isinstance(value, torch.Tensor) else tree_leaves(value))
            if isinstance(t, torch.Tensor)
        ]
        values = self._called(kind, node.name, self._operands(node), results)
        self._values[node] = values[0] if isinstance(self.view.value(node), torch.Tensor) else values

    def _called(
        self, kind: Kind, name: str, operands: Sequence[_Value], results: Sequence[torch.Tensor]
    ) -> list[_Value]:
        """A library call or one of our kernels: operands come from memory, results go there."""
        reads: dict[Key, int] = {}
        copies = []
        for value in operands:
            self._store(value)
            if not value.region.strided or (
                kind == "opaque" and self.rules.contiguous_calls and not value.region.contiguous
            ):
                copies.append((self._named(value), value.region.elements * value.base.itemsize))
                value = self._copied(value, frozenset())
            reads.update(self._reading([value])[1])
        if kind == "opaque":
            self.copies[name] = tuple(copies)
        made = [_Virtual(tuple(map(hint, t.shape)), t.element_size()) for t in results]
        for base in made:
            base.buffer, base.fixed = len(self.buffers), True
            self.buffers.append(Buffer(base.elements * base.itemsize, [len(self.loops)]))
        writes = tuple(b.buffer for b in made if b.buffer is not None)
        self.loops.append(Loop(kind, frozenset([name]), reads, writes, (0, 0)))
        return [_Value(b, _region(t)) for b, t in zip(made, results, strict=True)]

    def _named(self, value: _Value) -> str:
        """The latest node that has this very value."""
        return next((n.name for n, v in reversed(self._values.items()) if v is value), "")

    def _copied(self, value: _Value, names: frozenset[str]) -> _Value:
        base = _Virtual(value.region.sizes, value.base.itemsize)
        self._memory(base, "copy", names, self._reading([value])[1])
        return _Value(base, Region.whole(base.sizes))

    def _compute(self, node: Node, op: str, tensor: torch.Tensor) -> None:
        """Loops over elements, reductions first."""
        operands = self._operands(node)
        base = _Virtual(tuple(map(hint, tensor.shape)), tensor.element_size())
        *before, last = self._parts(op)
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
            if not self.rules.inline or len(reads) > self.rules.most_reads:
                self._memory(base, "fused", names, reads)
        self._values[node] = _Value(base, Region.whole(base.sizes))

    def _reduced(self, node: Node, operands: list[_Value], result: _Virtual) -> _Value:
        """One number for each row of the first operand."""
        rows = _Virtual(result.sizes[:-1] or (1,), 4)
        names, reads, _ = self._reading(operands[:1])
        self._memory(rows, "fused", names | {node.name}, reads, max(1, result.elements // max(1, rows.elements)))
        return _Value(rows, Region.whole((*rows.sizes, 1))._expand(result.sizes))

    def _joined(self, node: Node, base: _Virtual) -> None:
        """Each input written to its place: by the loop that makes it where there is one, else by a copy."""
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
                Loop(kind, names | {node.name}, reads, (base.buffer,), (math.prod(value.region.sizes), 1))
            )
            if source.buffer is None and direct:
                source.buffer, source.fixed = base.buffer, True

    def _into(self, source: _Virtual, buffer: int) -> None:
        """The loops that wrote `source` write a part of `buffer` instead."""
        old = source.buffer
        for index in self.buffers[old or 0].producers:
            loop = self.loops[index]
            loop.writes = tuple(buffer if w == old else w for w in loop.writes)
        source.buffer, source.fixed = buffer, True

    def _reused(self, node: Node) -> None:
        """Store what several consumers would compute again at too high a price, and what memory is needed of anyhow."""
        value = self._values.get(node)
        if not isinstance(value, _Value) or value.base.buffer is not None:
            return
        base, uses = value.base, sum(self._uses(u, node) for u in node.users)
        dear = base.heavy or len(base.reads) > self.rules.reuse_reads
        called = any(self._calls(u) for u in node.users)
        if (uses > 1 and dear) or (called and len(base.reads) > 1):
            self._store(value)

    def _calls(self, user: Node) -> bool:
        """Whether a use needs the value in memory."""
        if user in self._inside:
            return True
        return self.view.source(user) is None and self._parts(self.view.op(user))[-1] == "library"

    def _uses(self, user: Node, node: Node) -> int:
        parts = self._parts(self.view.op(user)) if self.view.source(user) is None else ("view",)
        return len(parts) if user.args[:1] == (node,) or user.kwargs.get("input") is node else 1


def _of_part(base: _Virtual, region: Region) -> dict[Key, int]:
    """What computing a part of a value reads: of buffers as large as the value, only the same part."""
    if region.elements >= base.elements:
        return base.reads
    share = region.elements / max(1, base.elements)
    reads = {}
    for (buffer, key, part), size in base.reads.items():
        whole = size >= base.elements and part is None
        reads[buffer, key, region.key if whole else part] = round(size * share) if whole else size
    return reads


def _region(tensor: torch.Tensor) -> Region:
    sizes = tuple(map(hint, tensor.shape))
    return Region(0, sizes, tuple(hint(s) for s in tensor.stride()))


def lower(view: GraphView, rules: Rules, nodes: Sequence[Node] | None = None, calls: Sequence[Site] = ()) -> Lowering:
    """The loops and calls of a graph before loops are merged, with the buffers between them; see `schedule.fuse`."""
    return Lowering(view, rules, calls).run(nodes)
