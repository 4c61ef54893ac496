"""`fluxrewrite show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import writable
from .formats import ReportFormat, check_forms, emit, read_runs, timed

__all__ = ["show"]


def show(
    report: Annotated[Path, typer.Argument(help="A report: fluxrewrite inspect MODEL --format json -o FILE.")],
    format: Annotated[ReportFormat, typer.Option(help="text for people, html for a page in one file, svg and dot for the boundary "
                                                 "map as a picture, json for programs.")] = ReportFormat.TEXT,
    site: Annotated[str | None, typer.Option(help="With svg or dot: draw the neighbourhood of the site with this id.")] = None,
    runs: Annotated[Path | None, typer.Option(help="With text or html: a file of fluxrewrite bench --save, whose table and curves "
                                              "stand beside the predictions.")] = None,
    timelines: Annotated[bool, typer.Option("--timelines", help="With text, html or json: run each distinct kernel call in the "
                                            "emulator and show how busy its engines are; seconds a call.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.")] = None,
) -> None:  # fmt: skip
    """Show a saved report in another form, without tracing the model again."""
    check_forms(format, site, runs, timelines)
    writable(output)
    from ..report.load import load_report

    measured = read_runs(runs)
    found = load_report(report)
    emit(timed(found) if timelines else found, format, output, site, measured)
