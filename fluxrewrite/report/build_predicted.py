"""The predicted part of the report: boundaries with their costs, the effect of the plan, verdicts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

from ..cost import Case, Work, estimate
from ..cost.compile_cost import compile_cost
from ..cost.deltas import applied
from ..cost.verdicts import Candidate, ModelledStep, on_plan, verdicts
from ..fusion.boundary.boundaries import CallBoundary as Border
from ..fusion.boundary.boundaries import Materialised
from ..fusion.boundary.compare import RewriteEffect
from ..fusion.boundary.planned_graph import PlannedGraph
from ..fusion.boundary.step_time import StepTime
from ..fusion.boundary.target import Target
from ..models.capture import Break
from ..rewrite.search import BlockChoice
from ..site import Site, SiteKey
from .model import (
    AbsorptionInfo,
    Boundary,
    ChoiceInfo,
    ChosenKind,
    CollectiveInfo,
    CompileInfo,
    Effect,
    LostFusion,
    Segments,
    StepInfo,
    TensorInfo,
    Verdict,
)

__all__ = [
    "boundaries_of",
    "breaks_of",
    "collectives_of",
    "effect_info",
    "rounded",
    "segments_of",
    "tensor_info",
    "verdicts_of",
]

Basis = Literal["measured", "modelled", "assumed"]


def boundaries_of(
    change: RewriteEffect, graph: int, ids: Mapping[SiteKey, str], target: Target, case: Case
) -> list[Boundary]:
    """The boundaries of one graph, with their costs; `ids` are the ids of its sites in the report."""
    return [_boundary(b, graph, ids[b.site.key], target, case) for b in change.boundaries]


def breaks_of(breaks: Sequence[Break], target: Target) -> list[Boundary]:
    """Graph breaks: each ends an executable."""
    cost = estimate(target.device, Work(launches=1))
    return [
        Boundary(
            site="",
            graph=index,
            kind="split",
            path=stop.location,
            bytes=0,
            tensors=(),
            lost_fusions=(),
            cost_us=rounded(cost.us),
            basis=cost.basis,
            reason=stop.reason,
        )
        for index, stop in enumerate(breaks)
    ]


def collectives_of(change: RewriteEffect, graph: int) -> list[CollectiveInfo]:
    """What ranks exchange in one rewritten graph."""
    return [
        CollectiveInfo(
            name=c.name,
            op=c.op,
            graph=graph,
            path=c.path,
            ranks=c.ranks,
            shape=c.shape,
            dtype=str(c.dtype).removeprefix("torch."),
            bytes=c.bytes,
        )
        for c in change.sent_after
    ]


def _boundary(border: Border, graph: int, site: str, target: Target, case: Case) -> Boundary:
    cost, basis = _cost(border, target, case)
    return Boundary(
        site=site,
        graph=graph,
        kind=border.kind,
        path=border.site.path,
        bytes=border.bytes,
        tensors=tuple(map(tensor_info, border.tensors)),
        lost_fusions=tuple(LostFusion(producer=p, consumer=c) for p, c in border.lost),
        absorptions=tuple(
            AbsorptionInfo(side=a.side, ops=a.ops, nodes=a.nodes, path=a.path, bytes=a.bytes)
            for a in border.absorptions
        ),
        cost_us=rounded(cost),
        basis=basis,
    )


def _cost(border: Border, target: Target, case: Case) -> tuple[float, Basis]:
    """The cost measured for such a call in this very case; else that of the call and of writing and reading each tensor."""
    found = applied(target.evidence, case, f"{border.site.kind}:{border.site.form}")
    if found is not None and found.exact and border.kind != "layout":
        return (0.0 if found.neutral else found.us_per_call), found.basis
    split = border.kind == "split"
    work = Work(bytes=2 * border.bytes, calls=int(border.kind != "layout"), launches=int(split))
    time = estimate(target.device, work)
    return time.us, time.basis


def tensor_info(tensor: Materialised) -> TensorInfo:
    """The record of a tensor."""
    return TensorInfo(
        name=tensor.name,
        op=tensor.op,
        role=tensor.role,
        shape=tensor.shape,
        dtype=str(tensor.dtype).removeprefix("torch."),
        bytes=tensor.bytes,
    )


def segments_of(graphs: Sequence[PlannedGraph]) -> Segments:
    """Executables of all graphs that predictions were made for."""
    changes = _changes(graphs)
    return Segments(
        before=sum(c.segments_before for c in changes),
        after=sum(c.segments_after for c in changes),
    )


def effect_info(graphs: Sequence[PlannedGraph], target: Target, case: Case) -> Effect:
    """The effects on all graphs that predictions were made for, added up."""
    changes = _changes(graphs)
    keys: dict[str, list[object]] = defaultdict(list)
    for site in _rewritten(graphs):
        keys[f"{site.kind}:{site.form}"].append((tuple(site.shapes.items()), site.dtype, tuple(site.facts.items())))
    cost = compile_cost(target.evidence, case, keys, sum(c.segments_after for c in changes))  # type: ignore[arg-type]
    return Effect(
        device=target.device.name,
        regime=target.regime,  # type: ignore[arg-type]
        compiler=target.rules.name,
        bytes_before=sum(c.bytes_before for c in changes),
        bytes_after=sum(c.bytes_after for c in changes),
        kernels_before=sum(c.kernels_before for c in changes),
        kernels_after=sum(c.kernels_after for c in changes),
        lost_elsewhere=sum(len(c.elsewhere) for c in changes),
        collectives_before=sum(len(c.sent_before) for c in changes),
        collectives_after=sum(len(c.sent_after) for c in changes),
        step_before=_step([c.before for c in changes]),
        step_after=_step([c.after for c in changes]),
        measured=_measured(graphs, target, case),
        compile=CompileInfo(
            specialisations=cost.specialisations,
            executables=cost.executables,
            seconds=cost.seconds,
            low_s=cost.low_s,
            high_s=cost.high_s,
            basis=cost.basis,
            why=cost.why,
        ),
        choices=tuple(_choice(c) for g in graphs for c in g.plan.choices),
    )


def _changes(graphs: Sequence[PlannedGraph]) -> list[RewriteEffect]:
    return [g.change for g in graphs if g.change is not None]


def _measured(graphs: Sequence[PlannedGraph], target: Target, case: Case) -> Verdict | None:
    """What runs of this very case say of the plan; None where sites are written inline, because no run is of that program."""
    if any(d.choice == "inline" for g in graphs for d in g.plan.decisions):
        return None
    calls: dict[str, Counter[str]] = defaultdict(Counter)
    for site in _rewritten(graphs):
        calls[site.kind][site.form] += 1
    found = on_plan([Candidate(kind, forms) for kind, forms in calls.items()], case, target.evidence)
    return None if found is None else Verdict(**asdict(found))


def _rewritten(graphs: Sequence[PlannedGraph]) -> list[Site]:
    return [d.finding for g in graphs for d in g.plan.decisions if d.choice == "kernel" and isinstance(d.finding, Site)]


def _step(steps: Iterable[StepTime]) -> StepInfo:
    found = list(steps)
    return StepInfo(
        us=rounded(sum(s.us for s in found)),
        low_us=rounded(sum(s.low_us for s in found)),
        high_us=rounded(sum(s.high_us for s in found)),
        basis="assumed" if any(s.basis == "assumed" for s in found) else "modelled",
    )


def _choice(choice: BlockChoice) -> ChoiceInfo:
    timed = {name: us for name, us in choice.times.items() if math.isfinite(us)}
    kinds = (ChosenKind(kind=k.kind, form=k.form, shapes=dict(k.shapes), inline=k.inline) for k in choice.taken)
    return ChoiceInfo(
        block=choice.block,
        blocks=choice.blocks,
        chosen=choice.chosen,
        # A set has no order, and equal reports have equal bytes.
        taken=tuple(sorted(kinds, key=lambda k: k.model_dump_json())),
        times_us={name: rounded(us) for name, us in sorted(timed.items(), key=lambda item: item[1])},
        basis=choice.basis,
    )


def verdicts_of(graphs: Sequence[PlannedGraph], target: Target, case: Case) -> tuple[Verdict, ...]:
    """A verdict for each kind of kernel, and one for all kinds that the plan uses together."""
    changes = _changes(graphs)
    step = sum(c.before.us for c in changes)
    assumed = any("assumed" in (c.before.basis, c.after.basis) for c in changes)
    candidates = [_candidate(kind, graphs, step, assumed) for kind in _kinds(graphs)]
    used = [kind for kind in _kinds(graphs) if any(s.kind == kind for s in _rewritten(graphs))]
    found = verdicts(candidates, case, target.evidence, [used] if len(used) > 1 else [])
    return tuple(Verdict(**asdict(v)) for v in found)


def _kinds(graphs: Sequence[PlannedGraph]) -> list[str]:
    return list(dict.fromkeys(kind for g in graphs for kind in g.plan.selection.passes))


def _candidate(kind: str, graphs: Sequence[PlannedGraph], step: float, assumed: bool) -> Candidate:
    forms: Counter[str] = Counter()
    refusals: list[str] = []
    for graph in graphs:
        selected = graph.plan.selection.forms.get(kind)
        for d in graph.plan.decisions:
            if d.finding.kind != kind:
                continue
            if d.status == "eligible" and isinstance(d.finding, Site):
                forms[d.finding.form] += selected is None or d.finding.form in selected
            else:
                refusals += [r.message for r in d.reasons]
    choices = [c for g in graphs for c in g.plan.choices]
    added = sum(c.single_kernel_delta.get(kind, 0.0) * c.blocks for c in choices)
    # A measured difference is compared with the step that was measured with it, never with a predicted one.
    if any(c.basis == "measured" for c in choices):
        step = sum(c.times["none"] * c.blocks for c in choices)
    modelled = None
    if step > 0 and 0 < step + added < math.inf:
        modelled = ModelledStep(step, step + added, "assumed" if assumed else "modelled")
    return Candidate(kind, {f: n for f, n in forms.items() if n}, tuple(refusals), modelled)


def rounded(value: float) -> float:
    """Six significant digits: more are not known, and sums in another order keep the same bytes."""
    return float(f"{value:.6g}")
