"""What a plan does to a graph: boundaries, traffic, executables and time, before any compile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Graph as FxGraph

from ...graph.collectives import Collective, collectives
from ...graph.edges import edges
from ...graph.view import GraphView
from ...rewrite.plan import Plan
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
    """A rewritten graph beside the original one.

    Attributes:
        boundaries: one for each kernel call, and layout copies, in graph order.
        elsewhere: pairs whose fusion is lost though neither end is in a kernel call.
        bytes_before, bytes_after: what all kernels of the graph read and write.
        kernels_before, kernels_after: compiled kernels and calls.
        segments_before, segments_after: executables.
        before, after: predicted time of a step; what collectives take on the way between ranks is not in it.
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


def effect_of(view: GraphView, rewritten: FxGraph, plan: Plan, target: Target) -> RewriteEffect:
    """Compare a graph with its rewritten form.

    Args:
        view: the original graph.
        rewritten: what `plan.apply_graph` made of it; the original graph when nothing was rewritten.
        plan: the plan as it was carried out.
        target: device, regime and compiler.
    """
    taken = [d.finding for d in plan.decisions if d.choice == "kernel" and isinstance(d.finding, Site)]
    sites = sorted(taken, key=lambda s: view.order(s.outputs[0]))
    before = FusedGraph(view, fuse(view, target.rules))
    times = tuple(group_times(view, before.prediction, target, Calls()))
    if not plan.replacements():
        return unchanged(before, times, target)
    after_view = GraphView(rewritten)
    after = FusedGraph(after_view, fuse(after_view, target.rules))
    calls = {c: s for s, c in zip(sites, calls_of(after_view, sites), strict=True) if c is not None}
    work = calls_for(view, {c.name: s for c, s in calls.items()}, target, plan.selection.kernels)
    times_after = tuple(group_times(after_view, after.prediction, target, work))
    executables = segments(after_view, list(calls)) + len(calls) if target.regime == "lazy" else 1
    return RewriteEffect(
        boundaries=tuple(find_boundaries(before, after, sites, target.regime)),
        elsewhere=_elsewhere(before, after, sites),
        bytes_before=before.prediction.fusion.bytes,
        bytes_after=after.prediction.fusion.bytes,
        kernels_before=len(times),
        kernels_after=len(times_after),
        segments_before=1,
        segments_after=executables,
        before=total(times, target),
        after=total(times_after, target, executables),
        sent_before=collectives(view),
        sent_after=collectives(after_view),
        strips=strips(before, after, (times, times_after), calls),
        calls=around(after_view, calls),
        graphs=(before, after),
        times=(times, times_after),
    )


def unchanged(graph: FusedGraph, times: tuple[StepTime, ...], target: Target) -> RewriteEffect:
    """The effect of rewriting nothing in a graph whose kernels take `times`."""
    size, count, step = graph.prediction.fusion.bytes, len(times), total(times, target)
    sent, blocks = collectives(graph.view), strips(graph, graph, (times, times), {})
    pair, twice = (graph, graph), (times, times)
    return RewriteEffect(
        (), (), size, size, count, count, 1, 1, step, step, sent, sent, blocks, graphs=pair, times=twice
    )


def _elsewhere(before: FusedGraph, after: FusedGraph, sites: Sequence[Site]) -> tuple[tuple[str, str], ...]:
    inside = {n for s in sites for n in (*s.interior, *s.outputs)}
    return tuple(
        (p.name, c.name)
        for p, c in edges(before.view)
        if p not in inside
        and c not in inside
        and before.prediction.fusion.fused(p.name, c.name)
        and not after.prediction.fusion.fused(p.name, c.name)
    )
