"""The decision on each finding, and the rewrite that carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from torch.fx import Graph, GraphModule

from ..errors import InputError
from ..graph.modules import as_module
from ..kernel import Kernel
from ..site import Code, Finding, Miss, Reason, Site
from .apply import rewritten_graph
from .base import Replacement
from .search import BlockChoice
from .selection import Selection

__all__ = ["CHOOSING", "Choice", "Decision", "Plan", "Policy", "apply", "apply_graph", "check_policy", "kept"]

Policy = str | Callable[[Site], bool | str]
CHOOSING = ("auto", "measure")
"""Policies that compare times."""


def check_policy(policy: Policy) -> None:
    """Raise InputError for an unknown policy."""
    if not callable(policy) and policy not in ("all", "none", *CHOOSING):
        raise InputError(f"unknown policy {policy!r}; known: auto, measure, all, none, or a callable on sites")


class Choice(StrEnum):
    """What a site becomes: a kernel call, plain operations on joined weights, or the model's own operations."""

    KERNEL = "kernel"
    INLINE = "inline"
    KEEP = "keep"


@dataclass(frozen=True)
class Decision:
    """A finding and the decision on it; `reasons` say why it is kept."""

    finding: Finding
    choice: Choice
    reasons: tuple[Reason, ...] = ()
    kernel: Kernel | None = None

    @property
    def status(self) -> str:
        """ "missed" for a near miss, "ineligible" for a site that no kernel may take, else "eligible"."""
        if isinstance(self.finding, Miss):
            return "missed"
        return "eligible" if self.finding.eligible else "ineligible"


@dataclass(frozen=True)
class Plan:
    """Every finding of one graph with its decision, in graph order within a kind; `choices` of the policy "auto"."""

    decisions: tuple[Decision, ...]
    selection: Selection
    choices: tuple[BlockChoice, ...] = ()

    def replacements(self) -> list[Replacement]:
        """The sites that become kernel calls or are written inline."""
        return [
            Replacement(self.selection.passes[d.finding.kind], d.finding, d.kernel)
            for d in self.decisions
            if isinstance(d.finding, Site)
            and (d.choice == Choice.INLINE or (d.choice == Choice.KERNEL and d.kernel is not None))
        ]

    def keeping(self, left: Iterable[tuple[Site, Reason]]) -> Plan:
        """The plan in which these sites are kept, because rewriting them failed."""
        late = {site.key: reason for site, reason in left}
        changed = []
        for d in self.decisions:
            reason = late.get(d.finding.key) if isinstance(d.finding, Site) else None
            if reason is not None and isinstance(d.finding, Site):
                d = Decision(replace(d.finding, reasons=(reason,)), Choice.KEEP, (reason,))
            changed.append(d)
        return Plan(tuple(changed), self.selection, self.choices)

    def kept(self, why: str) -> Plan:
        """The plan in which every site is kept, for this reason."""
        changed = [
            kept(d.finding, why) if d.choice != Choice.KEEP and isinstance(d.finding, Site) else d
            for d in self.decisions
        ]
        return Plan(tuple(changed), self.selection, self.choices)


def kept(site: Site, why: str) -> Decision:
    """The decision of a policy to leave a site alone."""
    return Decision(site, Choice.KEEP, (Reason(Code.POLICY, why, site.outputs[0].name),))


def apply(gm: GraphModule, plan: Plan) -> tuple[GraphModule, Plan]:
    """The rewritten module, which is `gm` itself if there is nothing to rewrite, and the plan as it was carried out."""
    graph, carried_out = apply_graph(gm, plan)
    return as_module(gm, graph), carried_out


def apply_graph(gm: GraphModule, plan: Plan) -> tuple[Graph, Plan]:
    """Like `apply`, but returns only the graph: that of `gm` itself if there is nothing to rewrite."""
    replacements = plan.replacements()
    if not replacements:
        return gm.graph, plan
    graph, left = rewritten_graph(gm, replacements)
    return graph, plan.keeping(left)
