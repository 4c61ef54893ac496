"""From loops to kernels: which loops a compiler merges, and what each kernel then reads and writes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from ..graph.op_table import is_collective
from ..graph.view import GraphView
from ..site import Site
from .graph_walk import Key, LoopNest, Lowered
from .groups import Fusion, Group
from .lower_as_met import lower
from .lower_by_use import lower_by_use
from .rules import Rules

__all__ = ["FusionPrediction", "fuse"]

# Kernels of one level that a loop is tried against, the latest first. The limit keeps scheduling linear in the graph. On
# FLUX.2-klein-4B an unlimited search merges nothing more, and a window of 1 misses merges.
_WINDOW = 8


@dataclass(slots=True)
class _Kernel:
    """Loops that are merged so far."""

    index: int
    level: int
    loops: list[LoopNest] = field(default_factory=list)
    before: set[int] = field(default_factory=set)
    """Kernels of the same level that must run earlier."""
    used: bool = False
    """Another kernel reads what this one writes."""
    reads: set[Key] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)

    def take(self, loop: LoopNest) -> None:
        """Add a loop."""
        self.loops.append(loop)
        self.reads.update(loop.reads)
        self.writes.update(loop.writes)


@dataclass(frozen=True)
class FusionPrediction:
    """What a compiler makes of a graph, by its rules.

    Attributes:
        fusion: its kernels, the nodes of each, and the bytes it moves.
        stored: bytes in memory, by name, of the nodes whose value goes through memory between kernels; without inputs of the graph.
        copies: for each kernel call, the operands that are copied first because the call takes contiguous ones, with their bytes.
    """

    fusion: Fusion
    stored: Mapping[str, int]
    copies: Mapping[str, tuple[tuple[str, int], ...]]


def fuse(
    view: GraphView, rules: Rules, nodes: Sequence[Node] | None = None, calls: Sequence[Site] = ()
) -> FusionPrediction:
    """Predict what a compiler that follows `rules` makes of a graph.

    Args:
        view: the graph.
        rules: the compiler's.
        nodes: only these of its nodes, in order; values from elsewhere are inputs, values used elsewhere are results.
        calls: sites to treat as replaced by kernel calls, as if the graph was rewritten.
    """
    lowering = (lower if rules.storage == "as_met" else lower_by_use)(view, rules, nodes, calls)
    sent = view.memo("sent", _sent)
    kernels, owner = _Scheduler(lowering, rules, sent).run()
    readers: dict[int, set[int]] = defaultdict(set)
    for index, loop in enumerate(lowering.loops):
        for key in loop.reads:
            readers[key[0]].add(owner[index])
    groups = tuple(_groups(lowering, kernels, owner, readers))
    crossing = {b for b, m in enumerate(lowering.buffers) if m.kept or readers[b] - {owner[p] for p in m.producers}}
    stored = {name: size for name, (buffer, size) in lowering.places.items() if buffer in crossing}
    return FusionPrediction(Fusion(f"model of {rules.name}", groups), stored, lowering.copies)


def _sent(view: GraphView) -> frozenset[str]:
    return frozenset(n.name for n in view.with_op(*filter(is_collective, view.inventory())))


class _Scheduler:
    """Merges loops into kernels, in graph order.

    A level counts the calls that must run before a kernel. Two loops with a call between them cannot be one kernel: it would
    run both before and after the call. So merging looks within a level only, and `_Kernel.before` excludes cycles there.
    """

    def __init__(self, lowering: Lowered, rules: Rules, sent: frozenset[str]) -> None:
        self.lowering, self.rules, self.sent = lowering, rules, sent
        self.kernels: list[_Kernel] = []
        self.owner: list[int] = []
        self.by_level: dict[int, list[_Kernel]] = defaultdict(list)

    def run(self) -> tuple[list[_Kernel], list[int]]:
        for loop in self.lowering.loops:
            self._place(loop)
        return self.kernels, self.owner

    def _place(self, loop: LoopNest) -> None:
        producers = {self.kernels[self.owner[p]].index for key in loop.reads for p in self._producers(key[0])}
        level = max((self._after(self.kernels[p], loop) for p in producers), default=0)
        earlier = {p for p in producers if self.kernels[p].level == level}
        # An epilogue first: the result of the product then need not be written. Merged with other loops, this one reads it back.
        kernel = self._epilogue(loop, producers) if self.rules.epilogue and loop.kind == "fused" else None
        if kernel is None and self.rules.merge and loop.kind in ("fused", "copy"):
            # `_waiting` moves a kernel past a call for good, so it is tried only where no kernel of the level takes the loop.
            kernel = self._partner(loop, level, earlier) or self._waiting(loop, level, producers - earlier)
        if kernel is None:
            kernel = _Kernel(len(self.kernels), level)
            self.kernels.append(kernel)
            self.by_level[level].append(kernel)
        kernel.take(loop)
        for p in producers:
            self.kernels[p].used = self.kernels[p].used or p != kernel.index
        for p in earlier - {kernel.index}:
            kernel.before |= {p, *self.kernels[p].before}
        self.owner.append(kernel.index)

    def _producers(self, buffer: int) -> list[int]:
        return [p for p in self.lowering.buffers[buffer].producers if p < len(self.owner)]

    def _after(self, kernel: _Kernel, loop: LoopNest) -> int:
        """The level of a loop that reads what a kernel writes: a level ends at every call."""
        called = kernel.loops[0].kind in ("library", "opaque")
        return kernel.level + (1 if called else 0)

    def _partner(self, loop: LoopNest, level: int, earlier: set[int]) -> _Kernel | None:
        """The latest kernel of the level that shares memory with the loop, runs over the same elements, and closes no cycle."""
        for kernel in reversed(self.by_level[level][-_WINDOW:]):
            if kernel.loops[0].kind in ("library", "opaque"):
                continue
            # Another producer that must run after the kernel would have to run before it too.
            others = earlier - {kernel.index}
            if any(kernel.index in self.kernels[p].before for p in others):
                continue
            if self._mixed(kernel, loop):
                continue
            if self._shares(kernel, loop) and any(self._alike(other, loop) for other in kernel.loops):
                return kernel
        return None

    def _waiting(self, loop: LoopNest, level: int, producers: set[int]) -> _Kernel | None:
        """A producer of an earlier level that no other kernel reads so far: it can just as well run later, with this loop."""
        for kernel in (self.kernels[p] for p in sorted(producers, reverse=True)):
            calls = kernel.loops[0].kind in ("library", "opaque")
            if (
                not kernel.used
                and not calls
                and not self._mixed(kernel, loop)
                and any(self._alike(other, loop) for other in kernel.loops)
            ):
                # `before` is within a level: all of the old level runs before the new one.
                self.by_level[kernel.level].remove(kernel)
                kernel.level, kernel.before = level, set()
                self.by_level[level].append(kernel)
                return kernel
        return None

    def _epilogue(self, loop: LoopNest, producers: set[int]) -> _Kernel | None:
        """The library call whose whole result the loop runs over, if everything else that the loop reads is ready before the call.

        A collective takes no epilogue: its result comes from other ranks.
        """
        for (buffer, region, _), size in loop.reads.items():
            for kernel in {self.owner[p]: self.kernels[self.owner[p]] for p in self._producers(buffer)}.values():
                whole = size == self.lowering.buffers[buffer].bytes
                each = math.prod(n for _, n in region[1]) == loop.space[0] and loop.space[1] == 1
                in_time = all(self.kernels[p].level <= kernel.level for p in producers)
                product = kernel.loops[0].kind == "library" and kernel.loops[0].names.isdisjoint(self.sent)
                if product and whole and each and in_time:
                    return kernel
        return None

    def _mixed(self, kernel: _Kernel, loop: LoopNest) -> bool:
        """Whether the loop reads a buffer that the kernel writes only a part of, such as the result of a stored cat.

        Merged, the loop would read elements that other kernels have not written yet.
        """
        return any(key[0] in kernel.writes and len(self.lowering.buffers[key[0]].producers) > 1 for key in loop.reads)

    def _shares(self, kernel: _Kernel, loop: LoopNest) -> bool:
        return any(key[0] in kernel.writes or key in kernel.reads for key in loop.reads)

    def _alike(self, a: LoopNest, b: LoopNest) -> bool:
        if a.space == b.space:
            return True
        # With `outer`, a reduction shares its loop over rows: with a loop over the elements that it sums, or with a loop that has a
        # whole number of elements for each row. Without it only equal loops merge.
        if not self.rules.outer:
            return False
        rows, other = (a, b) if a.space[1] > 1 else (b, a)
        if rows.space[1] == 1:
            return False
        if other.space[1] > 1:
            return rows.space[0] * rows.space[1] == other.space[0] * other.space[1]
        return other.space[0] % max(1, rows.space[0]) == 0


def _groups(
    lowering: Lowered, kernels: list[_Kernel], owner: list[int], readers: Mapping[int, set[int]]
) -> list[Group]:
    groups = []
    for kernel in kernels:
        inside = {b for b in kernel.writes if {owner[p] for p in lowering.buffers[b].producers} == {kernel.index}}
        reads: dict[int, int] = defaultdict(int)
        # Reading all of a region includes reading its parts. Regions may overlap, so a buffer counts at most once, below.
        every = {k: v for loop in kernel.loops for k, v in loop.reads.items()}
        for (buffer, region, part), size in every.items():
            if buffer not in inside and (part is None or (buffer, region, None) not in every):
                reads[buffer] += size
        total = sum(min(size, lowering.buffers[b].bytes) for b, size in reads.items())
        groups.append(_group(lowering, kernel, total, readers))
    return groups


def _group(lowering: Lowered, kernel: _Kernel, reads: int, readers: Mapping[int, set[int]]) -> Group:
    writes = 0
    for buffer in kernel.writes:
        memory = lowering.buffers[buffer]
        if not memory.kept and readers[buffer] <= {kernel.index}:
            continue
        # Of a buffer that several kernels write side by side, each is charged with the elements that its own loops write.
        shares = [loop.space[0] for loop in kernel.loops if buffer in loop.writes]
        every = [lowering.loops[p].space[0] for p in memory.producers]
        part = sum(shares) / max(1, sum(every)) if len(memory.producers) > 1 else 1.0
        writes += round(memory.bytes * part)
    names = frozenset(n for loop in kernel.loops for n in loop.names)
    # A library call with an epilogue stays a call: its matrix product decides its time.
    kinds = [loop.kind for loop in kernel.loops]
    kind = kinds[0] if len(set(kinds)) == 1 or kinds[0] == "library" else "fused"
    return Group(f"k{kernel.index}", kind, names, reads, writes)
