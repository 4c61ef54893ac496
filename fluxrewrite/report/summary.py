"""The summary that a report starts with, as facts: the terminal and the page show the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..cost.noise import NEUTRAL
from ..rewrite.plan import CHOOSING
from ..site import Code
from .advice import NextStep, next_step
from .boundary_rows import boundary_rows, break_rows
from .figures import figure_rows, source_of
from .format import bytes_text
from .model import Effect, Report
from .site_rows import reason_rows, taken_counts

__all__ = ["Highlights", "SummaryFact", "highlights"]


@dataclass(frozen=True)
class SummaryFact:
    """One line of the summary: what it is about, as "Found", and a sentence of any length."""

    label: str
    text: str


@dataclass(frozen=True)
class Highlights:
    """What a reader needs to know first.

    Attributes:
        title: the model, its sizes, and the device and regime that it is planned for.
        facts: what was found, what the plan takes, what that changes with its basis, and the largest boundary.
        warnings: what needs attention, the most serious first.
        next: what to run next.
    """

    title: str
    facts: tuple[SummaryFact, ...]
    warnings: tuple[str, ...]
    next: NextStep


def highlights(report: Report) -> Highlights:
    """The summary of any report, with or without sites, predictions and graph breaks."""
    facts = [
        SummaryFact("Found", _found(report)),
        SummaryFact("Plan", _plan(report)),
        SummaryFact("Expected", _expected(report)),
    ]
    facts += [] if report.effect is None else [SummaryFact("Basis", source_of(report.effect))]
    facts += [SummaryFact("Boundary", text) for text in _largest_boundary(report)]
    return Highlights(_title(report), tuple(facts), tuple(_warnings(report)), next_step(report))


def _title(report: Report) -> str:
    m, e = report.model, report.effect
    sizes = [] if m.dtype == "None" else [m.dtype]  # a model without parameters has no dtype
    sizes += [f"{m.graphs} graphs"] if m.graphs != 1 else []
    sizes += [f"tp {m.tp}"] if m.tp > 1 else []
    if m.image_tokens is not None:
        sizes += [f"batch {m.batch}", f"{m.image_tokens} image + {m.text_tokens} text tokens"]
    target = f"; {e.device}, {e.regime}" if e is not None else ""
    return f"{m.name}: {', '.join(sizes) or '1 graph'}{target}"


def _found(report: Report) -> str:
    kinds = report.summary.kinds
    counts = {kind: s.found for kind, s in kinds.items() if kind != "attention" and s.found}
    parts = []
    if "attention" in kinds and report.inventory.get("attention"):
        parts.append(f"{kinds['attention'].found} of {report.inventory['attention']} attention calls")
    if counts:
        parts.append(", ".join(f"{n} {kind}" for kind, n in counts.items()))
    if not parts:
        parts.append(f"no site of any kind; looked for {_listed(kinds)}")
    missed = sum(s.missed for s in kinds.values())
    if missed:
        parts.append(_counted(missed, "near miss", "near misses"))
    return "; ".join(parts)


def _plan(report: Report) -> str:
    taken, policy = taken_counts(report), report.summary.policy
    if not taken:
        return f"policy {policy}: no site is rewritten, the graph stays as it is"
    kernels = {kind: n for kind, n in taken.items() if not kind.startswith("inline ")}
    inline = {kind.removeprefix("inline "): n for kind, n in taken.items() if kind.startswith("inline ")}
    parts = [f"kernels take {_sites(kernels)}"] if kernels else []
    parts += [f"{_sites(inline)} as plain operations"] if inline else []
    return f"policy {policy}: {', '.join(parts)}"


def _sites(counts: Mapping[str, int]) -> str:
    words = _listed(f"{n} {kind}" for kind, n in counts.items())
    return f"{words} site" if sum(counts.values()) == 1 else f"{words} sites"


def _expected(report: Report) -> str:
    e = report.effect
    if e is None:
        return "not predicted: the report has no device to predict for"
    time, *others = figure_rows(report)
    if not taken_counts(report):
        return f"no change: a step takes {time.after} ({time.basis})"
    (traffic,) = (row for row in others if row.name == "memory traffic")
    by = " by runs of this very case" if e.measured is not None else ""
    shown = (f"{r.before} to {r.after} ({r.change or 'no change'}, {r.basis})" for r in (time, traffic))
    return f"a step is {_step_word(e)}{by}: {next(shown)}; memory traffic {next(shown)}"


def _step_word(effect: Effect) -> str:
    if effect.measured is not None:
        verdict = effect.measured.verdict
        return verdict if verdict in ("faster", "slower") else "about as fast as before"
    before, after = effect.step_before.us, effect.step_after.us
    if after < before * (1 - NEUTRAL):
        return "faster"
    return "slower" if after > before * (1 + NEUTRAL) else "about as fast as before"


def _largest_boundary(report: Report) -> Iterator[str]:
    for row in boundary_rows(report)[:1]:
        cost = "cost unknown" if row.cost_us is None else f"{row.cost_us:,.1f} us a step ({row.basis})"
        size = f", {bytes_text(row.bytes)} through memory" if row.bytes else ""
        yield f"largest: {len(row.members)} x {row.kernel} at {row.path or 'model'}, {cost}{size}"


def _warnings(report: Report) -> Iterator[str]:
    """What needs attention. What may make the whole report wrong comes first, what only limits it last."""
    m, e = report.model, report.effect
    if m.graphs == 0:
        yield "Dynamo made no graph: the call runs no traceable operation"
    if report.artifacts is not None and not report.artifacts.agree:
        yield "what was compiled differs from what was predicted: see What was compiled"
    if m.eager_fallback:
        yield "TorchNeuron may run graphs eagerly: set TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION=1"
    if e is not None and _step_word(e) == "slower":
        yield "the plan makes a step slower: see Boundaries for what the calls cost"
    yield from _break_warnings(report)
    yield from _slower_verdicts(report)
    if report.segments is not None and report.segments.after > report.segments.before:
        yield f"kernel calls split the graph: {report.segments.before} executables become {report.segments.after}"
    yield from _kept_warnings(report)
    taken = [s for s in report.sites if s.choice != "keep"]
    if taken and not any(s.proof and s.proof.status == "proved" for s in taken):
        yield "no rewritten site was proved: --proof numeric runs each on random inputs"
    if m.tp > 1:
        yield f"tp {m.tp}: figures are those of one rank, without the time of collectives"
    if m.dynamic_sizes:
        yield f"dynamic sizes: {', '.join(m.dynamic_sizes)}"


def _break_warnings(report: Report) -> Iterator[str]:
    breaks, priced = report.model.graph_breaks, break_rows(report)
    if not breaks:
        return
    cost = sum(row.cost_us for row in priced)
    costs = f", {cost:,.1f} us a step ({priced[0].basis})" if priced else ""
    count = (
        "1 graph break ends an executable"
        if len(breaks) == 1
        else f"{len(breaks)} graph breaks, each ends an executable"
    )
    first = "" if len(breaks) == 1 else "the first "
    yield f"{count}{costs}: {first}at {breaks[0].location}: {breaks[0].reason}"


def _slower_verdicts(report: Report) -> Iterator[str]:
    """Verdicts on kernels that the plan calls at all their sites. A policy that compares times chose its sites block by block."""
    if report.summary.policy in CHOOSING:
        return
    taken = {s.kind for s in report.sites if s.choice == "kernel"}
    slower = [v for v in report.verdicts if v.verdict == "slower" and set(v.kernel.split("+")) <= taken]
    for v in slower:
        ratio = "" if v.ratio is None else f", {v.ratio:.3f} times a step without it"
        yield f"verdict on {v.kernel}: slower{ratio} ({v.basis})"


def _kept_warnings(report: Report) -> Iterator[str]:
    """Sites that nobody chose to leave alone, and near misses; the most frequent reason."""
    left = [s for s in report.sites if s.choice == "keep" and any(r.code not in _WANTED for r in s.reasons)]
    missed = sum(s.status == "missed" for s in left)
    counts = [
        _counted(len(left) - missed, "site left alone", "sites left alone"),
        _counted(missed, "near miss", "near misses"),
    ]
    for row in [row for row in reason_rows(left) if row.code not in _WANTED][:1]:
        yield f"{_listed(c for c in counts if c)}; most often {row.code} ({row.count}): {row.message}"


_WANTED = (Code.COVERED, Code.POLICY, Code.NOT_SELECTED)
"""Reasons that follow from the options or the plan: nothing needs to be done about them."""


def _counted(count: int, one: str, many: str) -> str:
    """ "1 call", "20 calls"; "" for none."""
    return f"{count} {one if count == 1 else many}" if count else ""


def _listed(words: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
