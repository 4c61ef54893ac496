"""A bench for people: tables of 80 columns, alone or as a section of a report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...cost.runs import Runs
from ..model import Report
from ..runs_table import WHERE_KNOWN, cells, differences, notes, with_range
from .section import Rank, Section

__all__ = ["rendered", "runs_section"]

_WARM = {
    "variant": "warm",
    "calls": "calls",
    "s_per_step": "s a step",
    "range": "min - max",
    "steps_per_s": "steps/s",
    "ratio": "ratio",
    "noise": "noise",
}
_COLD = {
    "variant": "cold, memory",
    "cold_step_s": "first step, s",
    "cold_growth": "growth",
    "peak_mb": "peak MB",
    "sum_mb": "all ranks MB",
    "device_mb": "device MB",
    "cosine": "cosine",
}


def runs_section(report: Report, runs: Runs) -> Section:
    """The tables of a bench, after a line on how it differs from what the report is about."""
    other = differences(report, runs)
    warning = (Text(f"These runs are not of what the report is about: {other}.", style="yellow"),) if other else ()
    return Section("Measured runs", (*warning, rendered(runs)), Rank.RUNS)


def rendered(runs: Runs) -> RenderableType:
    """What was run, warm figures, cold figures with memory and cosines, what failed, and notes."""
    s, rows = runs.setup, [with_range(cells(runs, v)) for v in runs.variants]
    head = Text.assemble((s.model, "bold"), str(runs.case).removeprefix(s.model))
    where = f"{s.inner} on {s.device}, {runs.machine.threads or s.threads or '?'} threads, torch {runs.versions.torch}"
    how = f"{s.runs} runs of {s.steps} steps, the first run cold{_order(runs) if s.runs > 1 else ''}"
    kernels = f"provider {s.provider}, execution {s.execution}"
    parts: list[RenderableType] = [head, Text(where), Text(how, style="dim"), Text(kernels, style="dim"), Text("")]
    if any(row["s_per_step"] for row in rows):
        parts += [_table(_WARM, [r for r in rows if r["s_per_step"]]), Text("")]
    if any(row["cold_step_s"] for row in rows):
        parts += [_table(_COLD, [r for r in rows if r["cold_step_s"]]), Text("")]
    parts += [Text.assemble((r["variant"], "bold"), f": {r['error']}", style="red") for r in rows if r["error"]]
    if not rows:
        parts.append(Text("nothing has run"))
    return Group(*parts, *(Text(note, style="yellow") for note in notes(runs)))


def _order(runs: Runs) -> str:
    if any(v.beside for v in runs.variants):
        return ", warm ones in turn, some at a time, each next to vanilla"
    return ", warm ones in turn" if runs.in_turn else ", one variant after the other"


def _table(columns: dict[str, str], rows: Sequence[dict[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    names = [n for n in columns if n not in WHERE_KNOWN or any(r[n] for r in rows)]
    for name in names:
        table.add_column(columns[name], justify="left" if name == "variant" else "right", no_wrap=name != "variant")
    for row in rows:
        table.add_row(*(Text(row[n], style="red" if row[n].endswith(" !") else "") for n in names))
    return table
