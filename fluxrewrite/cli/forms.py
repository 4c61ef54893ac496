"""The forms of a report: what `inspect` and `show` write."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .shared import show, write

if TYPE_CHECKING:
    from ..report.build import Analysed
    from ..report.model import Report

__all__ = ["InspectFormat", "ReportFormat", "check_site", "emit", "emit_graphs"]


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


def check_site(format: StrEnum, site: str | None) -> None:
    """Raise InputError when a site is given with a format that shows the whole report."""
    if site is not None and format not in (ReportFormat.SVG, ReportFormat.DOT):
        raise InputError(f"--site {site} goes with --format svg or dot, not with {format.value}")


def emit(report: Report, format: StrEnum, output: Path | None, site: str | None = None) -> None:
    """Write a report in a format, to a file or the terminal; with `site`, the neighbourhood of that site.

    Raises InputError for an unknown site, and for a picture of a report that has no blocks.
    """
    if format == ReportFormat.TEXT:
        from ..report.text import rendered

        show(rendered(report), output)
    else:
        write(_text(report, ReportFormat(format.value), site), output)


def _text(report: Report, format: ReportFormat, site: str | None) -> str:
    from ..draw import dot, near, page, svg

    if format is ReportFormat.JSON:
        return report.to_json()
    if format is ReportFormat.HTML:
        return page.page(report)
    if site is not None:
        found = near.near(report, near.site_of(report, site))
        return near.near_svg(found) if format is ReportFormat.SVG else dot.near_dot(found)
    return svg.map_svg(report) if format is ReportFormat.SVG else dot.map_dot(report)


def emit_graphs(report: Report, graphs: Sequence[Analysed], output: Path | None) -> None:
    """Write the graphs for Model Explorer; to a file with files of node data beside it, "x.bytes.json" and "x.us.json"."""
    from ..draw.explorer import collection, node_data

    write(collection(report, graphs), output)
    if output is not None:
        for what, text in node_data(graphs).items():
            write(text, output.with_suffix(f".{what}.json"))
