"""`fluxrewrite diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import Format, show, writable, write

__all__ = ["diff"]


def diff(
    before: Annotated[Path, typer.Argument(help="A report: fluxrewrite inspect MODEL --format json -o FILE.")],
    after: Annotated[Path, typer.Argument(help="The report to compare with it.")],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 when the reports differ.")] = False,
    format: Annotated[Format, typer.Option(help="text for people, json for programs.")] = Format.TEXT,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.")] = None,
) -> None:  # fmt: skip
    """Say what changed between two reports: model, sites, boundaries, predictions, verdicts; timing is left out."""
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
