"""The predicted effect of a plan on the whole step, and the last decision of the policy "auto": no plan that loses there."""

from __future__ import annotations

from torch.fx import Graph

from ...cost import Case
from ...cost.deltas import applied
from ...graph.view import GraphView
from ...rewrite.plan import Plan
from .compare import effect_of, unchanged
from .planned_graph import PlannedGraph
from .target import Target

__all__ = ["SLOWER", "predicted"]

SLOWER = "the whole step would be slower than without kernels, as predicted"
"""Why sites are kept that "auto" had chosen block by block."""


def predicted(view: GraphView, plan: Plan, rewritten: Graph, *, target: Target, case: Case, auto: bool) -> PlannedGraph:
    """A plan with its predicted effect.

    Args:
        view: the original graph.
        plan: the plan as it was carried out.
        rewritten: what it made of the graph.
        target, case: what the prediction is made for, and what evidence is looked up by.
        auto: the plan follows predicted times. If the whole step is then predicted to be slower than without kernels, the
            result is the plan that keeps every site: blocks are priced one by one, and what a call does to its neighbours
            across the border of a block shows in the whole graph only.
    """
    effect = effect_of(view, rewritten, plan.replacements(), target)
    if not auto or effect.after.us <= effect.before.us or _has_runs(plan, target, case):
        return PlannedGraph(view, plan, effect)
    return PlannedGraph(view, plan.kept(SLOWER), unchanged(effect, target))


def _has_runs(plan: Plan, target: Target, case: Case) -> bool:
    """Whether runs were measured of a kernel that the plan uses: the model of the step does not overrule them."""
    names = {f"{r.site.kind}:{r.site.form}" for r in plan.replacements() if r.kernel is not None}
    return case.model is not None and any(applied(target.evidence, case, name) for name in names)
