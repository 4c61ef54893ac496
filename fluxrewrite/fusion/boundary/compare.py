"""What a plan does to a graph: boundaries, traffic, executables and time, before any compile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Graph as FxGraph

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

__all__ = ["RewriteEffect", "effect_of"]


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
    kernels = {r.site.kind: r.kernel for r in replacements if r.kernel is not None}
    taken = [r.site for r in replacements if r.kernel is not None]
    sites = sorted(taken, key=lambda s: view.order(s.outputs[0]))
    before = FusedGraph(view, fuse(view, target.rules))
    times = tuple(group_times(view, before.prediction, target, Calls()))
    if not replacements:
        return _unchanged(before, times, target)
    after_view = GraphView(rewritten)
    after = FusedGraph(after_view, fuse(after_view, target.rules))
    calls = {c: s for s, c in zip(sites, calls_of(after_view, sites), strict=True) if c is not None}
    work = calls_for(view, {c.name: s for c, s in calls.items()}, target, kernels)
    times_after = tuple(group_times(after_view, after.prediction, target, work))
    executables = _executables(view, target), _executables(after_view, target)
    return RewriteEffect(
        boundaries=tuple(find_boundaries(before, after, sites, target.regime)),
        elsewhere=_elsewhere(before, after, sites),
        bytes_before=before.prediction.fusion.bytes,
        bytes_after=after.prediction.fusion.bytes,
        kernels_before=len(times),
        kernels_after=len(times_after),
        segments_before=executables[0],
        segments_after=executables[1],
        before=total(times, target, executables[0]),
        after=total(times_after, target, executables[1]),
        sent_before=collectives(view),
        sent_after=collectives(after_view),
        strips=strips(before, after, (times, times_after), calls),
        calls=around(after_view, calls),
        graphs=(before, after),
        times=(times, times_after),
    )


def _unchanged(graph: FusedGraph, times: tuple[StepTime, ...], target: Target) -> RewriteEffect:
    size, sent, executables = graph.prediction.fusion.bytes, collectives(graph.view), _executables(graph.view, target)
    step = total(times, target, executables)
    return RewriteEffect(
        boundaries=(),
        elsewhere=(),
        bytes_before=size,
        bytes_after=size,
        kernels_before=len(times),
        kernels_after=len(times),
        segments_before=executables,
        segments_after=executables,
        before=step,
        after=step,
        sent_before=sent,
        sent_after=sent,
        strips=strips(graph, graph, (times, times), {}),
        graphs=(graph, graph),
        times=(times, times),
    )


def _executables(view: GraphView, target: Target) -> int:
    """How many executables a graph runs as. A call that the model makes itself splits it as one that was inserted does."""
    calls = kernel_calls(view) if target.regime == "lazy" else ()
    return segments(view, calls) + len(calls) if calls else 1


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
