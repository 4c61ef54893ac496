"""What a plan does to a graph: boundaries, traffic, executables and time, before any compile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import Graph as FxGraph
from torch.fx import Node

from ...graph.collectives import Collective, collectives
from ...graph.edges import edges
from ...graph.view import GraphView
from ...rewrite.base import Replacement
from ...rewrite.kernel_calls import kernel_calls
from ...site import Site
from .. import fuse
from .block_map import BlockKernels, CallNeighbours, around, strips
from .boundaries import CallBoundary, FusedGraph, calls_of, find_boundaries
from .executables import segments
from .step_time import Calls, StepTime, calls_for, group_times, total
from .target import Target

__all__ = ["RewriteEffect", "effect_of", "unchanged"]


@dataclass(frozen=True)
class RewriteEffect:
    """A rewritten graph compared with the original one.

    Attributes:
        boundaries: one for each kernel call, and layout copies, in graph order.
        elsewhere: pairs whose fusion is lost though neither end is in a kernel call.
        bytes_before, bytes_after: what all kernels of the graph read and write.
        kernels_before, kernels_after: compiled kernels and calls.
        segments_before, segments_after: executables.
        before, after: predicted time of a step, without the time that collectives take between ranks.
        sent_before, sent_after: collectives.
        strips: the kernels by blocks.
        calls: the kernel calls among their neighbours, in graph order.
        graphs: both graphs, and what the compiler makes of them.
        times: of each kernel of both.
    """

    boundaries: tuple[CallBoundary, ...]
    elsewhere: tuple[tuple[str, str], ...]
    bytes_before: int
    bytes_after: int
    kernels_before: int
    kernels_after: int
    segments_before: int
    segments_after: int
    before: StepTime
    after: StepTime
    sent_before: tuple[Collective, ...] = ()
    sent_after: tuple[Collective, ...] = ()
    strips: tuple[BlockKernels, ...] = ()
    calls: tuple[CallNeighbours, ...] = ()
    graphs: tuple[FusedGraph, ...] = ()
    times: tuple[tuple[StepTime, ...], ...] = ()


@dataclass(frozen=True)
class _Side:
    """One of the two graphs: what the compiler makes of it, the time of each kernel, and how many executables it runs as."""

    graph: FusedGraph
    times: tuple[StepTime, ...]
    executables: int


def effect_of(
    view: GraphView, rewritten: FxGraph, replacements: Sequence[Replacement], target: Target
) -> RewriteEffect:
    """Compare a graph with its rewritten form.

    Args:
        view: the original graph.
        rewritten: what `plan.apply_graph` made of it; the original graph when nothing was rewritten.
        replacements: what was replaced in it, `Plan.replacements()` of the plan that `apply_graph` returned.
        target: device, regime and compiler.
    """
    before = _side(view, Calls(), target)
    if not replacements:
        return _effect(before, before, {}, target)
    taken = {r.site.outputs[0]: r for r in replacements if r.kernel is not None}
    sites = [taken[n].site for n in sorted(taken, key=view.order)]
    kernels = {r.site.kind: r.kernel for r in taken.values() if r.kernel is not None}
    after_view = GraphView(rewritten)
    calls = {c: s for s, c in zip(sites, calls_of(after_view, sites), strict=True) if c is not None}
    after = _side(after_view, calls_for(view, {c.name: s for c, s in calls.items()}, target, kernels), target)
    return replace(
        _effect(before, after, calls, target),
        boundaries=tuple(find_boundaries(before.graph, after.graph, sites, target.regime)),
        elsewhere=_elsewhere(before.graph, after.graph, sites),
    )


def unchanged(effect: RewriteEffect, target: Target) -> RewriteEffect:
    """The effect of leaving the graph of `effect` as it was, from figures that are known: nothing is predicted again."""
    side = _Side(effect.graphs[0], effect.times[0], effect.segments_before)
    return _effect(side, side, {}, target)


def _side(view: GraphView, calls: Calls, target: Target) -> _Side:
    prediction = fuse(view, target.rules)
    times = tuple(group_times(view, prediction, target, calls))
    return _Side(FusedGraph(view, prediction), times, _executables(view, target))


def _effect(before: _Side, after: _Side, calls: Mapping[Node, Site], target: Target) -> RewriteEffect:
    """The effect without boundaries; `calls` are the inserted calls and their sites."""
    return RewriteEffect(
        boundaries=(),
        elsewhere=(),
        bytes_before=before.graph.prediction.fusion.bytes,
        bytes_after=after.graph.prediction.fusion.bytes,
        kernels_before=len(before.times),
        kernels_after=len(after.times),
        segments_before=before.executables,
        segments_after=after.executables,
        before=total(before.times, target, before.executables),
        after=total(after.times, target, after.executables),
        sent_before=collectives(before.graph.view),
        sent_after=collectives(after.graph.view),
        strips=strips(before.graph, after.graph, (before.times, after.times), calls),
        calls=around(after.graph.view, calls),
        graphs=(before.graph, after.graph),
        times=(before.times, after.times),
    )


def _executables(view: GraphView, target: Target) -> int:
    """How many executables a graph runs as. A call that the model makes itself splits it as one that was inserted does."""
    calls = kernel_calls(view) if target.regime == "lazy" else ()
    return segments(view, calls) + len(calls) if calls else 1


def _elsewhere(before: FusedGraph, after: FusedGraph, sites: Sequence[Site]) -> tuple[tuple[str, str], ...]:
    """Pairs that are no longer fused though neither end is in a site.

    A call that comes between them on another path parts them: a kernel with both would run before and after the call.
    """
    inside = {n for s in sites for n in (*s.interior, *s.outputs)}
    return tuple(
        (p.name, c.name)
        for p, c in edges(before.view)
        if p not in inside
        and c not in inside
        and before.prediction.fusion.fused(p.name, c.name)
        and not after.prediction.fusion.fused(p.name, c.name)
    )
