"""The report for a terminal: fits 80 columns, readable without colour, answer first, ends with what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...site import Code
from ..advice import better as better_plan
from ..advice import call_text, command
from ..model import Report, SiteInfo
from .artifacts import artifacts
from .boundaries import boundary_table
from .format import folded, sizes_text
from .grid import grid
from .predicted import choices, prediction, verdict_list
from .runs_beside import measured
from .timelines import timelines

if TYPE_CHECKING:
    from ...cost.runs import Runs

__all__ = ["render", "rendered"]


def render(report: Report, console: Console) -> None:
    """Print the report on `console`."""
    console.print(rendered(report))


def rendered(report: Report, runs: Runs | None = None) -> Group:
    """The report, and the runs of a bench where there are some, as something that rich prints."""
    return Group(*_parts(report, runs))


def _parts(report: Report, runs: Runs | None) -> Iterable[RenderableType]:
    yield from _head(report)
    yield from artifacts(report)
    yield from prediction(report)
    yield from verdict_list(report.verdicts)
    if runs is not None:
        yield from measured(report, runs)
    yield from boundary_table(report)
    yield from timelines(report)
    yield from choices(report)
    yield Text("\nWhat was found", style="bold")
    yield _kinds(report)
    if any(s.covered for s in report.summary.kinds.values()):
        yield Text("covered: part of a larger site that a kernel takes", style="dim")
    yield from _proofs(report)
    rewritten = [s for s in report.sites if s.choice == "kernel"]
    if rewritten:
        yield Text("\nSites taken by kernels", style="bold")
        yield from _sites(rewritten)
    inline = [s for s in report.sites if s.choice == "inline"]
    if inline:
        yield Text("\nSites written as plain operations, on joined weights", style="bold")
        yield from _sites(inline)
    kept = [s for s in report.sites if s.choice == "keep" and not any(r.code == Code.COVERED for r in s.reasons)]
    if kept:
        yield Text("\nSites left alone", style="bold")
        yield from _reasons(kept)
    for kind, summary in report.summary.kinds.items():
        if not summary.found and not summary.missed:
            yield Text(f"\n{kind}: nothing found. Looked for {summary.looks_for}.", style="yellow")
    yield Text("")
    yield from _next(report, [*rewritten, *inline], kept)


def _head(report: Report) -> Iterable[RenderableType]:
    m, t = report.model, report.timing
    sizes = f", batch {m.batch},\n{m.image_tokens} image + {m.text_tokens} text tokens; " if m.image_tokens else "\n"
    graphs = "1 graph" if m.graphs == 1 else f"{m.graphs} graphs"
    yield Text.assemble(
        (m.name, "bold"),
        f": {m.parameters / 1e9:.3f} G parameters, {m.dtype}{sizes}{graphs} of {m.graph_nodes} nodes, no weights",
    )
    yield Text(
        f"traced in {t.capture_s:.1f} s, matched and predicted in {t.match_s * 1e3:.0f} ms, peak {t.peak_rss_mb:.0f} MB"
    )
    for stop in m.graph_breaks:
        yield Text(f"graph break at {stop.location}: {stop.reason}", style="yellow")
    if m.dynamic_sizes:
        yield Text(
            f"dynamic: {', '.join(m.dynamic_sizes[:6])}{' …' if len(m.dynamic_sizes) > 6 else ''}", style="yellow"
        )
    if m.eager_fallback:
        yield Text("TorchNeuron may run graphs eagerly: set TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION=1", style="yellow")
    if m.graphs == 0:
        yield Text("Dynamo made no graph: the call runs no traceable operation.", style="yellow")
    yield Text("")


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


def _proofs(report: Report) -> Iterable[RenderableType]:
    """What was proved of the sites that are rewritten; of others the reasons say it."""
    taken = [s for s in report.sites if s.choice != "keep"]
    if not taken:
        return
    proved = [s for s in taken if s.proof and s.proof.status == "proved"]
    if not proved:
        yield Text("No site was proved: only its structure stands for each.", style="yellow")
        return
    yield Text(f"{len(proved)} of {len(taken)} rewritten sites are proved on random inputs.")


def _sites(sites: Sequence[SiteInfo]) -> Iterable[RenderableType]:
    """Sites that differ only in block numbers and are otherwise alike make one entry."""
    rows: Counter[tuple[str, str, str]] = Counter()
    for s in sites:
        kernel = s.kernel.name if s.kernel else s.kind
        rows[f"{kernel}:{s.form}", folded(s.path) or "model", sizes_text(s.shapes)] += 1
    yield from _entries(rows)


def _reasons(sites: Sequence[SiteInfo]) -> Iterable[RenderableType]:
    rows: Counter[tuple[str, str, str]] = Counter()
    for s in sites:
        for reason in s.reasons:
            rows[s.kind, folded(s.path) or "model", f"{reason.code}: {reason.message}"] += 1
    yield from _entries(dict(rows.most_common()))


def _entries(rows: Mapping[tuple[str, str, str], int]) -> Iterable[RenderableType]:
    """A line for each row, and what rows have in common once, below them."""
    shared: dict[str, list[str]] = {}
    for (what, path, more), count in rows.items():
        shared.setdefault(more, []).append(f"{count:4} x {what} at {path}")
    for more, lines in shared.items():
        yield Text("\n".join(lines))
        yield Padding(Text(more, style="dim"), (0, 0, 0, 5))


def _next(report: Report, rewritten: Sequence[SiteInfo], kept: Sequence[SiteInfo]) -> Iterable[RenderableType]:
    better = better_plan(report)
    if better:
        whole = command(report, better[0])
        words = ("Next: ", (whole, "bold"), "\n  ") if whole else ("Next: add ", (better[0], "bold"), ": ")
        yield Text.assemble(*words, better[1])
    if rewritten:
        yield Text.assemble("Or take this plan: " if better else "Next: ", (call_text(report), "bold"))
    elif kept and not better:
        yield Text("Next: read the reasons above; --format json names the node of each.")
    elif not better:
        yield Text("Next: fluxrewrite kernels lists what is looked for and within which limits.")
