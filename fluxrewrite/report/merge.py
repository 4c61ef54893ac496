"""One report from the reports on several graphs of one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..cost.noise import NEUTRAL
from .model import (
    BlockInfo,
    Boundary,
    CallInfo,
    CompileInfo,
    Effect,
    KindSummary,
    ModelInfo,
    PartInfo,
    Report,
    Segments,
    SiteInfo,
    StepInfo,
    Timing,
    Verdict,
)

__all__ = ["merge"]


def merge(reports: Sequence[Report]) -> Report:
    """One report on all graphs that a model was compiled to, in the order of the compiles."""
    first = reports[0]
    if len(reports) == 1:
        return first
    inventory: Counter[str] = Counter()
    for report in reports:
        inventory.update(report.inventory)
    kinds = {k: _add([r.summary.kinds[k] for r in reports]) for k in first.summary.kinds}
    return first.model_copy(
        update={
            "model": _model([r.model for r in reports]),
            "timing": _timing([r.timing for r in reports]),
            "inventory": dict(sorted(inventory.items())),
            "summary": first.summary.model_copy(update={"kinds": kinds}),
            **_numbered(reports),
            **_predictions([r for r in reports if r.effect is not None]),
        }
    )


def _numbered(reports: Sequence[Report]) -> dict[str, tuple[Any, ...]]:
    """All records with the number of their graph, numbered across the reports."""
    found: dict[str, tuple[Any, ...]] = dict.fromkeys(("sites", "boundaries", "blocks", "calls", "collectives"), ())
    offset = 0
    for report in reports:
        for name in found:
            found[name] += tuple(_moved(item, offset) for item in getattr(report, name))
        offset += report.model.graphs
    return found


def _moved(item: Any, offset: int) -> Any:
    """The record as one of graph `graph + offset`, with that number in the ids of sites."""
    graph = item.graph + offset
    update: dict[str, Any] = {"graph": graph}
    if isinstance(item, SiteInfo):
        update["id"] = f"{item.id}@{graph}"
    elif isinstance(item, BlockInfo):
        update |= {"before": _named(item.before, graph), "after": _named(item.after, graph)}
    elif isinstance(item, Boundary | CallInfo) and item.site:
        update["site"] = f"{item.site}@{graph}"
    return item.model_copy(update=update)


def _named(parts: Sequence[PartInfo], graph: int) -> tuple[PartInfo, ...]:
    return tuple(p.model_copy(update={"site": f"{p.site}@{graph}"}) if p.site else p for p in parts)


def _model(models: Sequence[ModelInfo]) -> ModelInfo:
    return models[0].model_copy(
        update={
            "graphs": sum(m.graphs for m in models),
            "graph_nodes": sum(m.graph_nodes for m in models),
            "graph_breaks": tuple(b for m in models for b in m.graph_breaks),
            "dynamic_sizes": tuple(sorted({d for m in models for d in m.dynamic_sizes})),
        }
    )


def _timing(timings: Sequence[Timing]) -> Timing:
    seconds = {n: sum(getattr(t, n) for t in timings) for n in ("capture_s", "match_s", "analyse_s", "total_s")}
    proofs = {n: sum(getattr(t, n) for t in timings) for n in ("proof_s", "proofs_new", "proofs_cached")}
    return Timing(**seconds, **proofs, peak_rss_mb=max(t.peak_rss_mb for t in timings))


def _add(kinds: Sequence[KindSummary]) -> KindSummary:
    forms: Counter[str] = Counter()
    for kind in kinds:
        forms.update(kind.forms)
    counts = {
        n: sum(getattr(k, n) for k in kinds) for n in ("found", "eligible", "rewritten", "inline", "covered", "missed")
    }
    return KindSummary(**counts, forms=dict(sorted(forms.items())), looks_for=kinds[0].looks_for)


def _predictions(reports: Sequence[Report]) -> dict[str, Any]:
    """Segments, effect and verdicts of all graphs for which there are predictions."""
    if not reports:
        return {"segments": None, "effect": None, "verdicts": ()}
    found = [r.segments for r in reports if r.segments is not None]
    parts = [(r.effect.step_before.us, v) for r in reports if r.effect is not None for v in r.verdicts]
    step = sum(r.effect.step_before.us for r in reports if r.effect is not None)
    names = dict.fromkeys(v.kernel for _, v in parts)
    return {
        "segments": Segments(before=sum(s.before for s in found), after=sum(s.after for s in found)),
        "effect": _effect([r.effect for r in reports if r.effect is not None]),
        "verdicts": tuple(_verdict([(us, v) for us, v in parts if v.kernel == name], step) for name in names),
    }


_SENT = ("collectives_before", "collectives_after")


def _effect(effects: Sequence[Effect]) -> Effect:
    """Sums; seconds of a compile are known only if they are for every graph."""
    counts = ("bytes_before", "bytes_after", "kernels_before", "kernels_after", "lost_elsewhere", *_SENT)
    compiles = [e.compile for e in effects]
    seconds = {n: _sum([getattr(c, n) for c in compiles]) for n in ("seconds", "low_s", "high_s")}
    return effects[0].model_copy(
        update={
            **{n: sum(getattr(e, n) for e in effects) for n in counts},
            "step_before": _step([e.step_before for e in effects]),
            "step_after": _step([e.step_after for e in effects]),
            "measured": None,  # runs are of one graph's calls, and a sum of them was not run
            "compile": CompileInfo(
                specialisations=sum(c.specialisations for c in compiles),
                executables=sum(c.executables for c in compiles),
                **seconds,
                basis="assumed" if any(c.basis == "assumed" for c in compiles) else "measured",
                why=compiles[0].why,
            ),
            "choices": tuple(c for e in effects for c in e.choices),
        }
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def _step(steps: Sequence[StepInfo]) -> StepInfo:
    sums = {n: float(f"{sum(getattr(s, n) for s in steps):.6g}") for n in ("us", "low_us", "high_us")}
    return StepInfo(**sums, basis="assumed" if any(s.basis == "assumed" for s in steps) else "modelled")


def _verdict(parts: Sequence[tuple[float, Verdict]], step: float) -> Verdict:
    """The verdict on one kernel in all graphs: its changes of each graph's time, added up.

    A verdict without a ratio on one graph is that on all of them. A graph without such sites changes nothing.
    """
    judged = [(us, v) for us, v in parts if v.verdict != "not_applicable"]
    without = [v for _, v in judged or parts if v.ratio is None]
    if without:
        return without[0]
    ratio = 1 + sum(((v.ratio or 1) - 1) * us for us, v in judged) / step
    largest = max(judged, key=lambda part: part[0])[1]
    word = "slower" if ratio > 1 + NEUTRAL else "faster" if ratio < 1 - NEUTRAL else "neutral"
    bases = {v.basis for _, v in judged}
    basis = next(b for b in ("assumed", "modelled", "measured") if b in bases)
    why = f"in {len(judged)} graphs; the longest: {largest.why}" if len(judged) > 1 else largest.why
    return largest.model_copy(
        update={"verdict": word, "ratio": float(f"{ratio:.6g}"), "basis": basis, "why": why, "predicted_s": None}
    )
