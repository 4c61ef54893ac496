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
from ..rewrite.plan import Decision, Policy
from ..rewrite.selection import Selection
from ..site import Code, Miss, Proof, Reason
from .build_blocks import blocks_of, calls_of
from .build_predicted import Forecast, boundaries_of, breaks_of, collectives_of, effect_info, segments_of, verdicts_of
from .model import KernelInfo, KindSummary, ModelInfo, ProofInfo, ReasonInfo, Report, SiteInfo, Summary, Timing

__all__ = ["PredictionContext", "build_report", "dynamic_sizes", "policy_name"]


@dataclass(frozen=True)
class PredictionContext:
    """What predictions are made for: the target, and the case that evidence is looked up by."""

    target: Target
    case: Case
    breaks: tuple[Break, ...] = ()


def build_report(
    graphs: Sequence[PlannedGraph],
    selection: Selection,
    policy: Policy,
    model: ModelInfo,
    timing: Timing,
    foresight: PredictionContext | None = None,
) -> Report:
    """The report on some graphs of one model; with predictions if it is told what for."""
    sites: list[SiteInfo] = []
    ids: dict[int, str] = {}
    numbers: Counter[tuple[str, str]] = Counter()
    for index, analysed in enumerate(graphs):
        for decision in analysed.plan.decisions:
            sites.append(_site(decision, index, numbers))
            ids[id(decision.finding)] = sites[-1].id
    inventory: Counter[str] = Counter({"attention": 0})
    for analysed in graphs:
        inventory.update(_inventory(analysed.view))
    return Report(
        model=model,
        timing=timing,
        inventory=dict(sorted(inventory.items())),
        sites=tuple(sites),
        summary=_summary(sites, selection, policy),
        **({} if foresight is None else _predicted(graphs, ids, foresight)),
    )


def _predicted(graphs: Sequence[PlannedGraph], ids: Mapping[int, str], foresight: PredictionContext) -> dict[str, Any]:
    """The fields of the report that are predictions."""
    target, case = foresight.target, foresight.case
    known = [(i, Forecast(a.plan, a.change)) for i, a in enumerate(graphs) if a.change is not None]
    forecasts = [f for _, f in known]
    sent = [c for i, f in known for c in collectives_of(f, i)]
    borders = [b for i, f in known for b in boundaries_of(f, i, ids, target, case)]
    return {
        "boundaries": (*borders, *breaks_of(foresight.breaks, target)),
        "collectives": tuple(sent),
        "segments": segments_of(forecasts),
        "effect": effect_info(forecasts, target, case),
        "verdicts": verdicts_of(forecasts, target, case),
        "blocks": tuple(b for i, f in known for b in blocks_of(f.change, i, ids)),
        "calls": tuple(c for i, f in known for c in calls_of(f.change, i, ids)),
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
