"""What changed between two reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .model import Boundary, Report, SiteInfo, Verdict

__all__ = ["DIFF_SCHEMA", "BoundaryChange", "Changed", "Difference", "SiteChange", "diff_reports"]

DIFF_SCHEMA = "fluxrewrite.diff/1"

How = Literal["added", "removed", "changed"]


@dataclass(frozen=True)
class Changed:
    """A field or figure, before and after; None where one of the reports has none."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class SiteChange:
    """A site in one report only, or one that differs in `fields`; a `missed` site is a near miss.

    Attributes:
        reasons: why it is kept, in the report where it is kept (the second, if in both).
    """

    id: str
    how: How
    kind: str
    form: str
    path: str
    fields: tuple[Changed, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class BoundaryChange:
    """A kernel call's boundary, or the graph breaks of a line, in one report only or with other figures.

    Attributes:
        site: id of the site; "" for graph breaks.
        call: "qkv:triple", "layout of qkv:triple", or "graph break".
    """

    site: str
    how: How
    call: str
    path: str
    fields: tuple[Changed, ...]


@dataclass(frozen=True)
class Difference:
    """Everything but `timing` in which two reports differ.

    Attributes:
        model: what was traced: name, sizes, graphs, graph breaks, numbers of operations.
        setup: options: policy, kernels, device, regime, compiler.
        figures: predictions: step, traffic, executables, cost of compiling.
        verdicts: by kernel, as "slower 1.075 (measured)".
        equal: whether the reports are the same but for `timing`. Reports with no listed difference may still differ, as in names
            of nodes.
    """

    equal: bool = True
    model: tuple[Changed, ...] = ()
    setup: tuple[Changed, ...] = ()
    sites: tuple[SiteChange, ...] = ()
    boundaries: tuple[BoundaryChange, ...] = ()
    figures: tuple[Changed, ...] = ()
    verdicts: tuple[Changed, ...] = ()

    @property
    def listed(self) -> bool:
        """Whether any difference is listed."""
        return self != Difference(equal=self.equal)

    def as_dict(self) -> dict[str, Any]:
        """The difference for JSON."""
        return {"schema": DIFF_SCHEMA, **asdict(self)}


def diff_reports(a: Report, b: Report) -> Difference:
    """How `b` differs from `a`; sites are paired by their ids, boundaries by site."""
    return Difference(
        equal=a.model_copy(update={"timing": b.timing}) == b,
        model=_changed(_model(a), _model(b)),
        setup=_changed(_setup(a), _setup(b)),
        sites=tuple(_sites(a, b)),
        boundaries=tuple(_boundaries(a, b)),
        figures=_changed(_figures(a), _figures(b)),
        verdicts=_changed(_verdicts(a), _verdicts(b)),
    )


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Changed, ...]:
    names = dict.fromkeys((*before, *after))
    pairs = ((n, before.get(n), after.get(n)) for n in names)
    return tuple(Changed(*p) for p in pairs if p[1] != p[2])


def _model(r: Report) -> dict[str, Any]:
    breaks = [f"{s.location}: {s.reason}" for s in r.model.graph_breaks]
    fields = {**r.model.model_dump(), "graph_breaks": breaks, "dynamic_sizes": list(r.model.dynamic_sizes)}
    return {**fields, **{f"operations.{op}": n for op, n in r.inventory.items()}}


def _setup(r: Report) -> dict[str, Any]:
    target = {} if r.effect is None else {n: getattr(r.effect, n) for n in ("device", "regime", "compiler")}
    return {"policy": r.summary.policy, "kernels": ",".join(r.summary.kernels), **target}


def _figures(r: Report) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if r.segments is not None:
        found.update({"executables before": r.segments.before, "executables after": r.segments.after})
    if r.effect is None:
        return found
    e = r.effect.model_dump(exclude={"device", "regime", "compiler", "choices"})
    for name, value in e.items():
        parts = value if isinstance(value, dict) else {}
        found.update({f"{name}.{n}": v for n, v in parts.items()} if parts else {name: value})
    found.update({f"auto in {c.block or 'the rest'}": f"{c.chosen} x {c.blocks}" for c in r.effect.choices})
    return found


def _verdicts(r: Report) -> dict[str, str]:
    return {v.kernel: _verdict(v) for v in r.verdicts}


def _verdict(v: Verdict) -> str:
    return f"{v.verdict}{'' if v.ratio is None else f' {v.ratio:g}'} ({v.basis})"


def _site_fields(s: SiteInfo) -> dict[str, Any]:
    """Without names of nodes, which any change of the model shifts."""
    return {
        "status": s.status,
        "choice": s.choice,
        "form": s.form,
        "graph": s.graph,
        "kernel": None if s.kernel is None else f"{s.kernel.name} ({s.kernel.provider})",
        "shapes": dict(s.shapes),
        "details": dict(s.details),
        "reasons": list(_reasons(s)),
    }


def _reasons(s: SiteInfo) -> tuple[str, ...]:
    return tuple(f"{r.code}: {r.message}" for r in s.reasons)


def _sites(a: Report, b: Report) -> Iterable[SiteChange]:
    before, after = ({s.id: s for s in r.sites} for r in (a, b))
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        there = new or old
        assert there is not None
        fields = _changed(_site_fields(old) if old else {}, _site_fields(new) if new else {})
        if fields:
            how: How = "added" if old is None else "removed" if new is None else "changed"
            reasons = _reasons(there) or (_reasons(old) if old else ())
            yield SiteChange(name, how, there.kind, there.form, there.path, fields, reasons)


def _boundaries(a: Report, b: Report) -> Iterable[BoundaryChange]:
    before, after = _at(a), _at(b)
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        fields = _changed(_cost(old) if old else {}, _cost(new) if new else {})
        if fields:
            how: How = "added" if old is None else "removed" if new is None else "changed"
            yield BoundaryChange(key[0], how, key[1], key[2], fields)


def _at(r: Report) -> dict[tuple[str, str, str], list[Boundary]]:
    """Boundaries by site, call and place; a place may have several graph breaks."""
    kernels = {s.id: f"{s.kind}:{s.form}" for s in r.sites}
    found: dict[tuple[str, str, str], list[Boundary]] = defaultdict(list)
    for b in r.boundaries:
        call = kernels.get(b.site, b.site) if b.site else "graph break"
        found[b.site, f"layout of {call}" if b.kind == "layout" else call, b.path].append(b)
    return found


def _cost(found: list[Boundary]) -> dict[str, Any]:
    known = [b.cost_us for b in found if b.cost_us is not None]
    return {
        "kind": found[0].kind,
        "count": len(found),
        "bytes": sum(b.bytes for b in found),
        "lost_fusions": sum(len(b.lost_fusions) for b in found),
        "cost_us": float(f"{sum(known):.6g}") if known else None,
        "basis": found[0].basis,
        "absorptions": [f"{a.side} {'+'.join(a.ops)} {a.bytes} B" for b in found for a in b.absorptions],
        "reasons": [b.reason for b in found if b.reason],
    }
