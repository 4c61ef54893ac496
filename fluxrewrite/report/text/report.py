"""The report for a terminal: fits 80 columns, readable without colour, the summary first and then the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..advice import next_step, this_plan
from ..format import folded, sizes_text
from ..model import Report, SiteInfo
from ..site_rows import reason_rows
from ..summary import highlights
from .artifacts import artifact_section
from .boundaries import boundary_sections
from .grid import grid
from .predicted import choice_section, prediction_section, verdict_section
from .runs import runs_section
from .section import Fitted, Rank, Section
from .summary import SummaryText
from .timelines import timeline_section

if TYPE_CHECKING:
    from ...cost.runs import Runs

__all__ = ["Details", "render", "rendered"]

Details = Literal["none", "summary", "full"]
_LINES = {"none": 0, "summary": 60}


def render(report: Report, console: Console, details: Details = "full") -> None:
    """Print the report on `console`."""
    console.print(rendered(report, details=details))


def rendered(report: Report, runs: Runs | None = None, details: Details = "full") -> RenderableType:
    """The report as something that rich prints.

    Args:
        report: the report.
        runs: a bench to show with it.
        details: "none" for the summary alone, "summary" for as many tables as fit in 60 lines with it, "full" for all of them.
    """
    head = SummaryText(highlights(report))
    sections = [s for s in _sections(report, runs) if s.parts]
    if details == "full":
        return Group(head, *sections, *_next(report))
    return Fitted(head, sections, _LINES[details])


def _sections(report: Report, runs: Runs | None) -> Iterator[Section]:
    yield artifact_section(report)
    yield prediction_section(report)
    yield verdict_section(report.verdicts)
    if runs is not None:
        yield runs_section(report, runs)
    yield from boundary_sections(report)
    yield timeline_section(report)
    yield choice_section(report)
    yield Section("What was found", tuple(_found(report)), Rank.FOUND)
    kernels = _sites(s for s in report.sites if s.choice == "kernel")
    yield Section("Sites taken by kernels", tuple(kernels), Rank.SITES_REWRITTEN)
    inline = _sites(s for s in report.sites if s.choice == "inline")
    yield Section("Sites written as plain operations, on joined weights", tuple(inline), Rank.SITES_REWRITTEN)
    yield Section("Sites left alone", tuple(_reasons(report)), Rank.SITES_LEFT_ALONE)
    yield Section("Trace", tuple(_trace(report)), Rank.TRACE)


def _trace(report: Report) -> Iterator[RenderableType]:
    m, t = report.model, report.timing
    graphs = "1 graph" if m.graphs == 1 else f"{m.graphs} graphs"
    yield Text(f"{m.parameters / 1e9:.3f} G parameters, no weights read; {graphs} of {m.graph_nodes} nodes")
    yield Text(
        f"traced in {t.capture_s:.1f} s, matched and predicted in {t.match_s * 1e3:.0f} ms, peak {t.peak_rss_mb:.0f} MB"
    )
    for stop in m.graph_breaks:
        yield Text(f"graph break at {stop.location}: {stop.reason}", style="yellow")
    if m.dynamic_sizes:
        more = " …" if len(m.dynamic_sizes) > 6 else ""
        yield Text(f"dynamic: {', '.join(m.dynamic_sizes[:6])}{more}", style="yellow")
    if m.eager_fallback:
        yield Text("TorchNeuron may run graphs eagerly: set TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION=1", style="yellow")
    if m.graphs == 0:
        yield Text("Dynamo made no graph: the call runs no traceable operation.", style="yellow")


def _found(report: Report) -> Iterator[RenderableType]:
    kinds = report.summary.kinds
    yield _kinds(report)
    if any(s.covered for s in kinds.values()):
        yield Text("covered: part of a larger site that a kernel takes", style="dim")
    yield from _proofs(report)
    for kind, summary in kinds.items():
        if not summary.found and not summary.missed:
            yield Text(f"{kind}: nothing found. Looked for {summary.looks_for}.", style="yellow")


def _kinds(report: Report) -> Table:
    names = ("kind", "found", "eligible", "kernel", "inline", "covered", "missed", "forms")
    inline = any(s.inline for s in report.summary.kinds.values())
    table = grid(*(n for n in names if inline or n != "inline"), left=("kind", "forms"), gap=1)
    for kind, s in report.summary.kinds.items():
        forms = ", ".join(f"{n} {form}" for form, n in s.forms.items())
        of = f" of {report.inventory['attention']}" if kind == "attention" else ""
        counts = (s.eligible, s.rewritten, *([s.inline] if inline else []), s.covered, s.missed)
        table.add_row(kind, f"{s.found}{of}", *map(str, counts), forms)
    return table


def _proofs(report: Report) -> Iterator[RenderableType]:
    """How many rewritten sites are proved; for sites left alone the reasons say it."""
    taken = [s for s in report.sites if s.choice != "keep"]
    if not taken:
        return
    proved = [s for s in taken if s.proof and s.proof.status == "proved"]
    if not proved:
        yield Text("No site was proved: each was matched by its structure only.", style="yellow")
        return
    yield Text(f"{len(proved)} of {len(taken)} rewritten sites are proved on random inputs.")


def _sites(sites: Iterable[SiteInfo]) -> Iterator[RenderableType]:
    """Sites that differ in their block number only share an entry."""
    rows: Counter[tuple[str, str, str]] = Counter()
    for s in sites:
        kernel = s.kernel.name if s.kernel else s.kind
        rows[f"{kernel}:{s.form}", folded(s.path) or "model", sizes_text(s.shapes)] += 1
    entries: dict[str, list[str]] = {}
    for (what, path, sizes), count in rows.items():
        entries.setdefault(sizes, []).append(f"{count:4} x {what} at {path}")
    yield from _entries(entries)


def _reasons(report: Report) -> Iterator[RenderableType]:
    rows = reason_rows(report.sites)
    yield from _entries({f"{r.code}: {r.message}": [f"{n:4} x {where}" for where, n in r.sites] for r in rows})


def _entries(entries: Mapping[str, list[str]]) -> Iterator[RenderableType]:
    """Lines, and what they have in common once, below them."""
    for shared, lines in entries.items():
        yield Text("\n".join(lines))
        yield Padding(Text(shared, style="dim"), (0, 0, 0, 5))


def _next(report: Report) -> Iterator[RenderableType]:
    """The next step again, because the end of a long text is what a terminal shows; and the call that takes this plan."""
    step, call = next_step(report), this_plan(report)
    yield Text("")
    yield Text.assemble("Next: ", (step.command, "bold"), f"\n  {step.why}")
    if call and call != step.command:
        yield Text.assemble("Or take this plan: ", (call, "bold"))
