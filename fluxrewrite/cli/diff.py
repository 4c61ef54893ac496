"""`fluxrewrite diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import Format, show, writable, write
from .formats import OutputOption

__all__ = ["diff"]


_Before = Annotated[Path, typer.Argument(help="A report: fluxrewrite inspect MODEL --format json -o FILE.")]
_After = Annotated[Path, typer.Argument(help="The report to compare with it.")]
_ExitCode = Annotated[bool, typer.Option("--exit-code", help="Exit with 1 when the reports differ.")]
_Format = Annotated[Format, typer.Option(help="text for people, json for programs.")]


def diff(
    before: _Before,
    after: _After,
    exit_code: _ExitCode = False,
    format: _Format = Format.TEXT,
    output: OutputOption = None,
) -> None:
    """Show what changed between two reports: model, sites, boundaries, predictions and verdicts, but not timing."""
    from ..report.diff import diff_reports
    from ..report.load import load_report

    writable(output)
    difference = diff_reports(load_report(before), load_report(after))
    if format is Format.JSON:
        write(json.dumps(difference.as_dict(), indent=2) + "\n", output)
    else:
        from ..report.text.diff import rendered_diff

        show(rendered_diff(difference, str(before), str(after)), output)
    if exit_code and not difference.equal:
        raise typer.Exit(1)
