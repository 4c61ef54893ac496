"""The runs of a bench beside a report, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from ..model import Report

if TYPE_CHECKING:  # the bench imports the backend, which imports reports
    from ...cost.runs import Runs

__all__ = ["measured", "unlike"]


def measured(report: Report, runs: Runs) -> Iterable[RenderableType]:
    """The tables of a bench, and in what it is not of what the report is about."""
    from .runs import rendered

    yield Text("\nMeasured runs", style="bold")
    other = unlike(report, runs)
    if other:
        yield Text(f"These runs are not of what the report is about: {other}.", style="yellow")
    yield rendered(runs)


def unlike(report: Report, runs: Runs) -> str:
    """In what the runs and the report differ, as "model flux2-klein-mini, not flux2-klein-4b"; "" for nothing."""
    m, case = report.model, runs.case
    pairs = {
        "model": (case.model, m.name),
        "dtype": (case.dtype, m.dtype),
        "tp": (case.tp, m.tp),
        "batch": (case.batch, m.batch),
        "image tokens": (case.image_tokens, m.image_tokens),
        "text tokens": (case.text_tokens, m.text_tokens),
    }
    return ", ".join(f"{what} {a}, not {b}" for what, (a, b) in pairs.items() if None not in (a, b) and a != b)
