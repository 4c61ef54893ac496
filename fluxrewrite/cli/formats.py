"""The forms of a report: what `inspect` and `show` write."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .common import counted, show, write

if TYPE_CHECKING:
    from ..cost.devices import Device
    from ..cost.runs import Runs
    from ..fusion.boundary.planned_graph import PlannedGraph
    from ..report.model import Report

__all__ = ["InspectFormat", "ReportFormat", "check_forms", "emit", "read_runs", "timed"]


class ReportFormat(StrEnum):
    """Output formats of a report."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"
    SVG = "svg"
    DOT = "dot"


class InspectFormat(StrEnum):
    """Output formats of `inspect`: those of a report, and one that needs the graphs too."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"
    SVG = "svg"
    DOT = "dot"
    MODEL_EXPLORER = "model-explorer"


def check_forms(format: StrEnum, site: str | None, runs: Path | None, timelines: bool) -> None:
    """Raise InputError when an option is given with a format that shows nothing of it."""
    if site is not None and format not in (ReportFormat.SVG, ReportFormat.DOT):
        raise InputError(f"--site {site} goes with --format svg or dot, not with {format.value}")
    if runs is not None and format not in (ReportFormat.TEXT, ReportFormat.HTML):
        raise InputError(
            f"--runs {runs} goes with --format text or html, not with {format.value}: the file is for programs"
        )
    if timelines and format not in (ReportFormat.TEXT, ReportFormat.HTML, ReportFormat.JSON):
        raise InputError(f"--timelines goes with --format text, html or json, not with {format.value}")


def read_runs(path: Path | None) -> Runs | None:
    """The runs in a file. Raises InputError, naming file and field, when there are none."""
    from ..cost.runs import load_runs

    return None if path is None else load_runs(path)


def timed(report: Report, device: Device | None = None) -> Report:
    """The report with the timelines of its kernel calls, a bar meanwhile; arguments and errors as those of `with_timelines`."""
    from ..report.timelines import distinct, with_timelines

    with counted("modelling kernel calls", len(distinct(report))) as step:
        return with_timelines(report, step, device)


def emit(
    report: Report,
    format: StrEnum,
    output: Path | None,
    site: str | None = None,
    runs: Runs | None = None,
    graphs: Sequence[PlannedGraph] = (),
) -> None:
    """Write a report in a format, to a file or the terminal; with `site`, the neighbourhood of that site, with `runs`, them too.

    `graphs` are those that the report is about: Model Explorer shows them.

    Raises InputError for an unknown site, and for a picture of a report that has no blocks.
    """
    if format == InspectFormat.MODEL_EXPLORER:
        _emit_graphs(report, graphs, output)
    elif format == ReportFormat.TEXT:
        from ..report.text.report import rendered

        show(rendered(report, runs), output)
    else:
        write(_text(report, ReportFormat(format.value), site, runs), output)


def _text(report: Report, format: ReportFormat, site: str | None, runs: Runs | None) -> str:
    from ..report.draw import dot, neighbourhood, page, svg

    if format is ReportFormat.JSON:
        return report.to_json()
    if format is ReportFormat.HTML:
        return page.page(report, runs)
    if site is not None:
        found = neighbourhood.near(report, neighbourhood.site_of(report, site))
        return neighbourhood.near_svg(found) if format is ReportFormat.SVG else dot.near_dot(found)
    return svg.map_svg(report) if format is ReportFormat.SVG else dot.map_dot(report)


def _emit_graphs(report: Report, graphs: Sequence[PlannedGraph], output: Path | None) -> None:
    """Write the graphs for Model Explorer; to a file with files of node data beside it, "x.bytes.json" and "x.us.json"."""
    from ..report.draw.model_explorer import collection, node_data

    write(collection(report, graphs), output)
    if output is not None:
        for what, text in node_data(graphs).items():
            write(text, output.with_suffix(f".{what}.json"))
