"""The predicted sections of the text: a step before and after, verdicts, and what "auto" takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ...rewrite.plan import CHOOSING
from ..advice import as_chosen
from ..figures import choice_rows, compile_seconds, figure_rows, has_range
from ..format import time_text, trimmed
from ..model import Report, Verdict
from .grid import grid
from .section import Rank, Section

__all__ = ["choice_section", "prediction_section", "verdict_section"]

_WHY = 150  # characters: two lines


def prediction_section(report: Report) -> Section:
    """What the plan changes, with the basis of each figure."""
    e = report.effect
    if e is None:
        text = Text("What these calls cost was not predicted.", style="dim")
        return Section("Predicted", (text,), Rank.PREDICTION)
    title = f"Predicted for {e.device}, {e.regime}; fusion by {e.compiler}; policy {report.summary.policy}"
    return Section(title, tuple(_prediction(report)), Rank.PREDICTION)


def _prediction(report: Report) -> Iterator[RenderableType]:
    e = report.effect
    assert e is not None
    table = grid("a step", "before", "after", "change", "basis", left=("a step", "basis"))
    for row in figure_rows(report):
        table.add_row(*astuple(row))
    yield table
    for when, step in (("before", e.step_before), ("after", e.step_after)):
        if has_range(step):
            yield Text(f"step {when}: {time_text(step.low_us)} to {time_text(step.high_us)} at the ends of the ranges")
    c = e.compile
    yield Text(f"cold compile: {compile_seconds(e)}, {c.basis}; distinct kernel calls: {c.specialisations}")
    yield Padding(Text(trimmed(c.why.rpartition("; ")[2], _WHY), style="dim"), (0, 0, 0, 2))
    if report.model.tp > 1:
        yield Text(f"tp {report.model.tp}: all sizes, bytes and times are those of one rank, without collectives")


def verdict_section(verdicts: Sequence[Verdict]) -> Section:
    """A line for each verdict, and a shortened reason; empty without verdicts."""
    title = "Verdicts: a step with the kernel at all its sites, relative to one without it"
    return Section(title, tuple(_verdicts(verdicts)), Rank.VERDICTS)


def _verdicts(verdicts: Sequence[Verdict]) -> Iterator[RenderableType]:
    width = max((len(v.kernel) for v in verdicts), default=0)
    for v in verdicts:
        ratio = "" if v.ratio is None else f"{v.ratio:.3f}"
        yield Text(f"{v.kernel:{width}}  {v.verdict:14}  {ratio:>6}  {v.basis}")
        yield Padding(Text(trimmed(v.why, _WHY), style="dim"), (0, 0, 0, 2))


def choice_section(report: Report) -> Section:
    """What "auto" or "measure" takes in each kind of block, and the times behind it; empty without choices."""
    return Section(f"{_choice_title(report)} (predicted, us a block)", tuple(_choices(report)), Rank.CHOICES)


def _choice_title(report: Report) -> str:
    policy, found = report.summary.policy, report.effect.choices if report.effect else ()
    if policy not in CHOOSING:
        return "What --policy auto would take in each kind of block"
    if all(as_chosen(c, report) for c in found):
        return f"Plan: what {policy} took in each kind of block"
    return "Best for each kind of block, but not taken: see the reasons below"


def _choices(report: Report) -> Iterator[RenderableType]:
    for row in choice_rows(report):
        yield Text(f"{row.blocks} x {row.path}: {row.chosen}")
        yield Padding(Text(row.times, style="dim"), (0, 0, 0, 2))
