"""The forms of a report that `inspect` and `show` write, and the options for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .common import counted, show, write

if TYPE_CHECKING:
    from ..cost.devices import Device
    from ..cost.runs import Runs
    from ..fusion.boundary.planned_graph import PlannedGraph
    from ..report.model import Report

__all__ = [
    "Details",
    "DetailsOption",
    "InspectFormat",
    "OutputOption",
    "ReportFormat",
    "RunsOption",
    "SiteOption",
    "TimelinesOption",
    "View",
    "emit",
    "timed",
]


class ReportFormat(StrEnum):
    """Output formats of a report."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"
    SVG = "svg"
    DOT = "dot"


class InspectFormat(StrEnum):
    """Output formats of `inspect`: those of a report, and one that also needs the graphs."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"
    SVG = "svg"
    DOT = "dot"
    MODEL_EXPLORER = "model-explorer"


class Details(StrEnum):
    """How much of the text of a report is shown."""

    NONE = "none"
    SUMMARY = "summary"
    FULL = "full"


# fmt: off
DetailsOption = Annotated[Details | None, typer.Option(
    help="With text: none for the summary alone, summary for the tables that fit in 60 lines with it, full for all of them. "
         "Default: summary.")]
SiteOption = Annotated[str | None, typer.Option(help="With svg or dot: draw the neighbourhood of the site with this id.")]
RunsOption = Annotated[Path | None, typer.Option(
    help="With text or html: a file of fluxrewrite bench --save; its table and curves are added to the report.")]
TimelinesOption = Annotated[bool, typer.Option("--timelines",
    help="With text, html or json: run each distinct kernel call in the emulator and show how busy its engines are; takes "
         "seconds for each call.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.")]
# fmt: on


@dataclass(frozen=True)
class View:
    """The form in which a report is shown, and what else it shows.

    Attributes:
        format: one of `ReportFormat` or `InspectFormat`.
        details: how much of the text.
        site: the id of the site whose neighbourhood is drawn, instead of the map.
        runs: a bench that is shown with the report.
    """

    format: StrEnum
    details: Details = Details.SUMMARY
    site: str | None = None
    runs: Runs | None = None

    @classmethod
    def checked(
        cls, format: StrEnum, *, details: Details | None, site: str | None, runs: Path | None, timelines: bool
    ) -> View:
        """The view that options ask for.

        Raises InputError for an option that the format ignores, and for a file of runs that cannot be read.
        """
        from ..cost.runs import load_runs

        if details is not None and format != ReportFormat.TEXT:
            raise InputError(f"--details {details.value} goes with --format text, not with {format.value}")
        if site is not None and format not in (ReportFormat.SVG, ReportFormat.DOT):
            raise InputError(f"--site {site} goes with --format svg or dot, not with {format.value}")
        if runs is not None and format not in (ReportFormat.TEXT, ReportFormat.HTML):
            raise InputError(f"--runs {runs} goes with --format text or html, not with {format.value}")
        if timelines and format not in (ReportFormat.TEXT, ReportFormat.HTML, ReportFormat.JSON):
            raise InputError(f"--timelines goes with --format text, html or json, not with {format.value}")
        return cls(format, details or Details.SUMMARY, site, None if runs is None else load_runs(runs))


def timed(report: Report, device: Device | None = None) -> Report:
    """The report with the timelines of its kernel calls; a bar shows the progress. Arguments and errors as for `with_timelines`."""
    from ..report.timelines import distinct, with_timelines

    with counted("modelling kernel calls", len(distinct(report))) as step:
        return with_timelines(report, step, device)


def emit(report: Report, view: View, output: Path | None, graphs: Sequence[PlannedGraph] = ()) -> None:
    """Write a report to a file or the terminal. `graphs` are those of the report, for Model Explorer.

    Raises InputError for an unknown site, and for a picture of a report that has no blocks.
    """
    if view.format == InspectFormat.MODEL_EXPLORER:
        _emit_graphs(report, graphs, output)
    elif view.format == ReportFormat.TEXT:
        from ..report.text.report import rendered

        show(rendered(report, view.runs, view.details.value), output)
    else:
        write(_text(report, view), output)


def _text(report: Report, view: View) -> str:
    from ..report.draw import dot, neighbourhood, page, svg

    if view.format == ReportFormat.JSON:
        return report.to_json()
    if view.format == ReportFormat.HTML:
        return page.page(report, view.runs)
    if view.site is not None:
        found = neighbourhood.near(report, neighbourhood.site_of(report, view.site))
        return neighbourhood.near_svg(found) if view.format == ReportFormat.SVG else dot.near_dot(found)
    return svg.map_svg(report) if view.format == ReportFormat.SVG else dot.map_dot(report)


def _emit_graphs(report: Report, graphs: Sequence[PlannedGraph], output: Path | None) -> None:
    """Write the graphs for Model Explorer; with a file "x.json", also its node data, "x.bytes.json" and "x.us.json"."""
    from ..report.draw.model_explorer import collection, node_data

    write(collection(report, graphs), output)
    if output is not None:
        for what, text in node_data(graphs).items():
            write(text, output.with_suffix(f".{what}.json"))
