"""`fluxrewrite show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import writable
from .formats import (
    DetailsOption,
    OutputOption,
    ReportFormat,
    RunsOption,
    SiteOption,
    TimelinesOption,
    View,
    emit,
    timed,
)

__all__ = ["show"]

# fmt: off
_Report = Annotated[Path, typer.Argument(help="A report: fluxrewrite inspect MODEL --format json -o FILE.")]
_Format = Annotated[ReportFormat, typer.Option(
    help="text for people, html for a page in one file, svg and dot for the boundary map as a picture, json for programs.")]
# fmt: on


def show(
    report: _Report,
    *,
    format: _Format = ReportFormat.TEXT,
    details: DetailsOption = None,
    site: SiteOption = None,
    runs: RunsOption = None,
    timelines: TimelinesOption = False,
    output: OutputOption = None,
) -> None:
    """Show a saved report in another form, without tracing the model again."""
    from ..report.load import load_report

    view = View.checked(format, details=details, site=site, runs=runs, timelines=timelines)
    writable(output)
    found = load_report(report)
    emit(timed(found) if timelines else found, view, output)
