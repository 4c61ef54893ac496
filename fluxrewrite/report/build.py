"""From plans to the report: the same records for `inspect` and for a compile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ..cost import Case
from ..fusion.boundary.planned_graph import PlannedGraph
from ..fusion.boundary.target import Target
from ..graph.fake_values import value_of
from ..graph.shapes import size_of
from ..graph.view import GraphView
from ..models.capture import Break
from ..rewrite.plan import Choice, Decision, Policy
from ..rewrite.selection import Selection
from ..site import Code, Miss, Proof, Reason, Site, SiteKey
from .build_blocks import blocks_of, calls_of
from .build_predicted import boundaries_of, breaks_of, collectives_of, effect_info, segments_of, verdicts_of
from .model import KernelInfo, KindSummary, ModelInfo, ProofInfo, ReasonInfo, Report, SiteInfo, Summary, Timing

__all__ = ["PredictionContext", "build_report", "dynamic_sizes", "policy_name"]


@dataclass(frozen=True)
class PredictionContext:
    """What predictions are made for: the target, the case that evidence is looked up by, and the graph breaks of the trace."""

    target: Target
    case: Case
    breaks: tuple[Break, ...] = ()


def build_report(
    graphs: Sequence[PlannedGraph],
    selection: Selection,
    policy: Policy,
    model: ModelInfo,
    *,
    timing: Timing,
    context: PredictionContext | None = None,
) -> Report:
    """The report on some graphs of one model.

    Args:
        graphs: the graphs with their plans; those without a predicted change are left out of the predictions.
        selection: which kinds of site were looked for.
        policy: what chose among the sites.
        model: what was traced.
        timing: how long that took.
        context: what to predict for; without it the report has no predictions.
    """
    sites: list[SiteInfo] = []
    ids: list[dict[SiteKey, str]] = []
    numbers: Counter[tuple[str, str]] = Counter()
    for index, analysed in enumerate(graphs):
        infos = [_site(decision, index, numbers) for decision in analysed.plan.decisions]
        sites += infos
        ids.append(_ids(analysed.plan.decisions, infos))
    inventory: Counter[str] = Counter({"attention": 0})
    for analysed in graphs:
        inventory.update(_inventory(analysed.view))
    return Report(
        model=model,
        timing=timing,
        inventory=dict(sorted(inventory.items())),
        sites=tuple(sites),
        summary=_summary(sites, selection, policy),
        **({} if context is None else _predicted(graphs, ids, context)),
    )


def _ids(decisions: Sequence[Decision], infos: Sequence[SiteInfo]) -> dict[SiteKey, str]:
    """The ids of one graph's sites. A pass that finds a site twice gets the id of the one that is rewritten."""
    pairs = [(d, i.id) for d, i in zip(decisions, infos, strict=True) if isinstance(d.finding, Site)]
    ordered = sorted(pairs, key=lambda pair: pair[0].choice != Choice.KEEP)
    return {d.finding.key: name for d, name in ordered if isinstance(d.finding, Site)}


def _predicted(
    graphs: Sequence[PlannedGraph], ids: Sequence[Mapping[SiteKey, str]], context: PredictionContext
) -> dict[str, Any]:
    """The fields of the report that are predictions."""
    target, case = context.target, context.case
    known = [(i, g.change) for i, g in enumerate(graphs) if g.change is not None]
    planned = [g for g in graphs if g.change is not None]
    borders = [b for i, change in known for b in boundaries_of(change, i, ids[i], target, case)]
    return {
        "boundaries": (*borders, *breaks_of(context.breaks, target)),
        "collectives": tuple(c for i, change in known for c in collectives_of(change, i)),
        "segments": segments_of(planned),
        "effect": effect_info(planned, target, case),
        "verdicts": verdicts_of(planned, target, case),
        "blocks": tuple(b for i, change in known for b in blocks_of(change, i, ids[i])),
        "calls": tuple(c for i, change in known for c in calls_of(change, i, ids[i])),
    }


def _site(decision: Decision, graph: int, numbers: Counter[tuple[str, str]]) -> SiteInfo:
    finding = decision.finding
    number = numbers[finding.path, finding.kind]
    numbers[finding.path, finding.kind] += 1
    missed = isinstance(finding, Miss)
    details = {} if isinstance(finding, Miss) else {k: v for k, v in finding.details.items() if _plain(v)}
    return SiteInfo(
        id=f"{finding.path or 'model'}.{finding.kind}.{number}",
        kind=finding.kind,
        form=finding.form,
        path=finding.path,
        graph=graph,
        status=decision.status,  # type: ignore[arg-type]
        reasons=_reasons(decision.reasons),
        shapes={} if isinstance(finding, Miss) else dict(finding.shapes),
        choice=decision.choice,  # type: ignore[arg-type]
        kernel=None
        if missed or decision.kernel is None
        else KernelInfo(name=decision.kernel.name, provider=decision.kernel.provider),
        details=details,
        proof=None if isinstance(finding, Miss) else _proof(finding.proof),
    )


def _proof(proof: Proof | None) -> ProofInfo | None:
    return None if proof is None else ProofInfo(**vars(proof))


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float)) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _reasons(reasons: Iterable[Reason]) -> tuple[ReasonInfo, ...]:
    return tuple(ReasonInfo(code=str(r.code), message=r.message, node=r.node) for r in reasons)


def _inventory(view: GraphView) -> Counter[str]:
    """Nodes by canonical name, and `attention`: fused calls and softmaxes that a product follows."""
    counts = view.inventory()
    spelled = sum(1 for node in view.with_op("softmax") if _feeds_product(view, node))
    counts["attention"] = counts["sdpa"] + counts["fluxrewrite.attention"] + spelled
    for name in ("placeholder", "output", "get_attr"):
        counts.pop(name, None)
    return counts


def _feeds_product(view: GraphView, node: Node) -> bool:
    pending = [node]
    while pending:
        for user in pending.pop().users:
            if view.op(user) == "matmul":
                return True
            if view.op(user) == "dropout" or view.source(user) is not None:
                pending.append(user)
    return False


def _summary(sites: Sequence[SiteInfo], selection: Selection, policy: Policy) -> Summary:
    kinds = {}
    for kind, rewriter in selection.passes.items():
        mine = [s for s in sites if s.kind == kind]
        found = [s for s in mine if s.status != "missed"]
        kinds[kind] = KindSummary(
            found=len(found),
            eligible=sum(s.status == "eligible" for s in found),
            rewritten=sum(s.choice == "kernel" for s in found),
            inline=sum(s.choice == "inline" for s in found),
            covered=sum(r.code == Code.COVERED for s in found for r in s.reasons),
            missed=len(mine) - len(found),
            forms=dict(sorted(Counter(s.form for s in found).items())),
            looks_for=rewriter.looks_for,
        )
    return Summary(kernels=selection.names(), policy=policy_name(policy), kinds=kinds)


def policy_name(policy: Policy) -> str:
    """A policy as text; a callable by its name."""
    return policy if isinstance(policy, str) else getattr(policy, "__name__", type(policy).__name__)


def dynamic_sizes(graphs: Iterable[torch.fx.GraphModule]) -> tuple[str, ...]:
    """The symbolic sizes of the graphs' tensor inputs, as "name[axis] = s0"."""
    found: dict[str, None] = {}
    for gm in graphs:
        for node in gm.graph.find_nodes(op="placeholder"):
            value = value_of(node)
            if isinstance(value, torch.Tensor):
                sizes = [size_of(n) for n in value.shape]
                found.update({f"{node.name}[{a}] = {n}": None for a, n in enumerate(sizes) if isinstance(n, str)})
    return tuple(found)
