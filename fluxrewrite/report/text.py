"""The report for a terminal: fits 80 columns, readable without colour, ends with what to do next."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..site import Code
from .model import Report, SiteInfo

__all__ = ["render", "rendered"]

_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def render(report: Report, console: Console) -> None:
    """Print the report on `console`."""
    console.print(rendered(report))


def rendered(report: Report) -> Group:
    """The report as something that rich prints."""
    return Group(*_parts(report))


def _parts(report: Report) -> Iterable[RenderableType]:
    yield from _head(report)
    yield _kinds(report)
    rewritten = [s for s in report.sites if s.choice == "kernel"]
    if rewritten:
        yield Text("\nSites taken by kernels", style="bold")
        yield _sites(rewritten)
    kept = [s for s in report.sites if s.choice == "keep" and not any(r.code == Code.COVERED for r in s.reasons)]
    if kept:
        yield Text("\nSites left alone", style="bold")
        yield _reasons(kept)
    for kind, summary in report.summary.kinds.items():
        if not summary.found and not summary.missed:
            yield Text(f"\n{kind}: nothing found. Looked for {summary.looks_for}.", style="yellow")
    yield Text("\nWhat these calls cost the compiler's fusion is not estimated yet.", style="dim")
    yield _next(report, rewritten, kept)


def _head(report: Report) -> Iterable[RenderableType]:
    m, t = report.model, report.timing
    sizes = f", batch {m.batch},\n{m.image_tokens} image + {m.text_tokens} text tokens" if m.image_tokens else ""
    yield Text.assemble((m.name, "bold"), f": {m.parameters / 1e9:.3f} G parameters, {m.dtype}{sizes}")
    graphs = "1 graph" if m.graphs == 1 else f"{m.graphs} graphs"
    yield Text(f"{graphs} of {m.graph_nodes} nodes, no weights; peak {t.peak_rss_mb:.0f} MB")
    yield Text(f"traced in {t.capture_s:.1f} s, matched in {t.match_s * 1e3:.0f} ms")
    for stop in m.graph_breaks:
        yield Text(f"graph break at {stop.location}: {stop.reason}", style="yellow")
    if m.dynamic_sizes:
        yield Text(
            f"dynamic: {', '.join(m.dynamic_sizes[:6])}{' …' if len(m.dynamic_sizes) > 6 else ''}", style="yellow"
        )
    if m.graphs == 0:
        yield Text("Dynamo made no graph: the call runs no traceable operation.", style="yellow")
    yield Text("")


def _kinds(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kind", "found", "eligible", "kernel", "covered", "missed"):
        table.add_column(name, justify="left" if name == "kind" else "right", no_wrap=True)
    table.add_column("forms", overflow="fold")
    for kind, s in report.summary.kinds.items():
        forms = ", ".join(f"{n} {form}" for form, n in s.forms.items())
        of = f" of {report.inventory['attention']}" if kind == "attention" else ""
        table.add_row(kind, f"{s.found}{of}", str(s.eligible), str(s.rewritten), str(s.covered), str(s.missed), forms)
    return table


def _sites(sites: Sequence[SiteInfo]) -> Table:
    """Sites that differ only in block numbers and are otherwise alike make one row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("calls", "kernel", "form", "where"):
        table.add_column(name, justify="right" if name == "calls" else "left", overflow="fold")
    rows: Counter[tuple[str, str, str, str]] = Counter()
    for s in sites:
        sizes = " ".join(f"{k}={v}" for k, v in s.shapes.items())
        rows[s.kernel.name if s.kernel else "", s.form, _NUMBER.sub(".*", s.path), sizes] += 1
    for (kernel, form, path, sizes), count in rows.items():
        table.add_row(str(count), kernel, form, f"{escape(path)}\n[dim]{escape(sizes)}[/dim]")
    return table


def _reasons(sites: Sequence[SiteInfo]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("sites", "kind", "where", "reason"):
        table.add_column(name, justify="right" if name == "sites" else "left", overflow="fold")
    rows: Counter[tuple[str, str, str]] = Counter()
    for s in sites:
        for reason in s.reasons:
            rows[s.kind, _NUMBER.sub(".*", s.path), f"{reason.code}: {reason.message}"] += 1
    for (kind, path, reason_text), count in rows.most_common():
        table.add_row(str(count), kind, escape(path), escape(reason_text))
    return table


def _next(report: Report, rewritten: Sequence[SiteInfo], kept: Sequence[SiteInfo]) -> Text:
    if rewritten:
        kernels = ",".join(report.summary.kernels)
        command = f'torch.compile(model, backend=fluxrewrite.backend(\n    kernels="{kernels}"))'
        return Text.assemble("Next: ", (command, "bold"))
    if kept:
        return Text("Next: read the reasons above; --format json names the node of each.")
    return Text("Next: fluxrewrite kernels lists what is looked for and within which limits.")
