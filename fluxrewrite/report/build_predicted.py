"""The part of the report that is predicted: boundaries with their costs, the effect of the plan, verdicts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ..cost import Case, Work, estimate
from ..cost.compile_cost import compile_cost
from ..cost.deltas import applied
from ..cost.verdicts import Candidate, ModelledStep, on_plan, verdicts
from ..fusion.boundary.boundaries import CallBoundary as Border
from ..fusion.boundary.boundaries import Materialised
from ..fusion.boundary.compare import RewriteEffect as Change
from ..fusion.boundary.step_time import StepTime
from ..fusion.boundary.target import Target
from ..models.capture import Break
from ..rewrite.plan import Plan
from ..rewrite.search import BlockChoice
from ..site import Site
from .model import (
    AbsorptionInfo,
    Boundary,
    ChoiceInfo,
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
    "Forecast",
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


@dataclass(frozen=True)
class Forecast:
    """One graph with its plan and what the plan does to it."""

    plan: Plan
    change: Change


def boundaries_of(forecast: Forecast, graph: int, ids: Mapping[int, str], target: Target, case: Case) -> list[Boundary]:
    """The borders of one graph; `ids` names sites by their identity."""
    return [_boundary(b, graph, ids[id(b.site)], target, case) for b in forecast.change.boundaries]


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


def collectives_of(forecast: Forecast, graph: int) -> list[CollectiveInfo]:
    """What ranks send each other in one rewritten graph."""
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
        for c in forecast.change.sent_after
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
    """What was measured for such a call in this very case; else each tensor written once and read once more, and the call."""
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


def segments_of(forecasts: Sequence[Forecast]) -> Segments:
    """Executables of all graphs."""
    changes = [f.change for f in forecasts]
    return Segments(
        before=sum(c.segments_before for c in changes),
        after=sum(c.segments_after for c in changes),
    )


def effect_info(forecasts: Sequence[Forecast], target: Target, case: Case) -> Effect:
    """The effects on all graphs added up."""
    changes = [f.change for f in forecasts]
    keys: dict[str, list[object]] = defaultdict(list)
    for site in _rewritten(forecasts):
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
        measured=_measured(forecasts, target, case),
        compile=CompileInfo(
            specialisations=cost.specialisations,
            executables=cost.executables,
            seconds=cost.seconds,
            low_s=cost.low_s,
            high_s=cost.high_s,
            basis=cost.basis,
            why=cost.why,
        ),
        choices=tuple(_choice(c) for f in forecasts for c in f.plan.choices),
    )


def _measured(forecasts: Sequence[Forecast], target: Target, case: Case) -> Verdict | None:
    """Nothing where sites are written inline: no run is of that program."""
    if any(d.choice == "inline" for f in forecasts for d in f.plan.decisions):
        return None
    calls: dict[str, Counter[str]] = defaultdict(Counter)
    for site in _rewritten(forecasts):
        calls[site.kind][site.form] += 1
    found = on_plan([Candidate(kind, forms) for kind, forms in calls.items()], case, target.evidence)
    return None if found is None else Verdict(**asdict(found))


def _rewritten(forecasts: Sequence[Forecast]) -> list[Site]:
    return [
        d.finding for f in forecasts for d in f.plan.decisions if d.choice == "kernel" and isinstance(d.finding, Site)
    ]


def _step(steps: Iterable[StepTime]) -> StepInfo:
    found = list(steps)
    return StepInfo(
        us=rounded(sum(s.us for s in found)),
        low_us=rounded(sum(s.low_us for s in found)),
        high_us=rounded(sum(s.high_us for s in found)),
        basis="assumed" if any(s.basis == "assumed" for s in found) else "modelled",
    )


def _choice(choice: BlockChoice) -> ChoiceInfo:
    times = {name: rounded(us) for name, us in sorted(choice.times.items(), key=lambda item: item[1]) if us < 1e18}
    return ChoiceInfo(
        block=choice.block, blocks=choice.blocks, chosen=choice.chosen, times_us=times, basis=choice.basis
    )


def verdicts_of(forecasts: Sequence[Forecast], target: Target, case: Case) -> tuple[Verdict, ...]:
    """A verdict for each kind of kernel, and one for all kinds that the plan uses together."""
    step = sum(f.change.before.us for f in forecasts)
    assumed = any("assumed" in (f.change.before.basis, f.change.after.basis) for f in forecasts)
    candidates = [_candidate(kind, forecasts, step, assumed) for kind in _kinds(forecasts)]
    used = [kind for kind in _kinds(forecasts) if any(s.kind == kind for s in _rewritten(forecasts))]
    found = verdicts(candidates, case, target.evidence, [used] if len(used) > 1 else [])
    return tuple(Verdict(**asdict(v)) for v in found)


def _kinds(forecasts: Sequence[Forecast]) -> list[str]:
    return list(dict.fromkeys(kind for f in forecasts for kind in f.plan.selection.passes))


def _candidate(kind: str, forecasts: Sequence[Forecast], step: float, assumed: bool) -> Candidate:
    forms: Counter[str] = Counter()
    refusals: list[str] = []
    for forecast in forecasts:
        selected = forecast.plan.selection.forms.get(kind)
        for d in forecast.plan.decisions:
            if d.finding.kind != kind:
                continue
            if d.status == "eligible" and isinstance(d.finding, Site):
                forms[d.finding.form] += selected is None or d.finding.form in selected
            else:
                refusals += [r.message for r in d.reasons]
    choices = [c for f in forecasts for c in f.plan.choices]
    added = sum(c.single_kernel_delta.get(kind, 0.0) * c.blocks for c in choices)
    if any(
        c.basis == "measured" for c in choices
    ):  # compared with what was measured beside it, never with a prediction
        step = sum(c.times["none"] * c.blocks for c in choices)
    modelled = None
    if step > 0 and 0 < step + added < 1e18:
        modelled = ModelledStep(step, step + added, "assumed" if assumed else "modelled")
    return Candidate(kind, {f: n for f, n in forms.items() if n}, tuple(refusals), modelled)


def rounded(value: float) -> float:
    """Six digits: more is not known, and reports stay the same bytes."""
    return float(f"{value:.6g}")
