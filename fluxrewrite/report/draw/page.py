"""The report as one HTML file: no network, readable without a mouse, light, dark and on paper."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from ...cost.runs import Runs
from ...errors import InputError
from ..advice import this_plan
from ..boundary_rows import absorption_lines, boundary_rows, break_rows, collective_rows
from ..figures import choice_rows, compile_seconds, figure_rows
from ..format import bytes_text, folded, sizes_text, time_text
from ..model import BlockInfo, Boundary, PartInfo, Report
from ..site_rows import covered_sites, reason_rows
from ..summary import highlights
from .layout import MapSection, MapTile, Mark, sections
from .neighbourhood import Near, near, near_svg
from .run_charts import bench_of
from .svg import KINDS, named, style, tile_svg
from .timeline_bars import shown

__all__ = ["frame", "page"]


def page(report: Report, runs: Runs | None = None) -> str:
    """The page of a report: the summary, the boundary map, and tables of everything else. Equal reports give the same bytes.

    With the runs of a bench, the page also has their table and the seconds of each step.
    """
    environment, rows = _environment(), boundary_rows(report)
    script = (files(__package__) / "templates" / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        report=report,
        summary=highlights(report),
        this_plan=this_plan(report),
        figures=figure_rows(report),
        cold_compile=compile_seconds(report.effect) if report.effect else "",
        map=_map(report),
        bench=None if runs is None else bench_of(report, runs),
        timelines=shown(report),
        rows=rows,
        absorptions=absorption_lines(rows),
        breaks=break_rows(report),
        collectives=collective_rows(report),
        choices=choice_rows(report),
        reasons=reason_rows(report.sites),
        covered=covered_sites(report),
        style=Markup(style() + (files(__package__) / "templates" / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def frame(report: Report) -> str:
    """The page in a frame, as a notebook shows it: apart from the notebook's own style, names and scripts."""
    title = escape(f"fluxrewrite report on {report.model.name}")
    return (
        f'<iframe title="{title}" sandbox="allow-scripts" style="width:100%;height:640px;border:1px solid #888" '
        f'srcdoc="{escape(page(report))}"></iframe>'
    )


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    environment.filters.update(
        bytes=bytes_text,
        time=time_text,
        sizes=sizes_text,
        folded=folded,
        moved=_moved,
        us=_us,
        named=named,
    )
    environment.globals.update(KINDS=KINDS)
    return environment


def _moved(parts: Iterable[PartInfo]) -> int:
    return sum(p.reads + p.writes for p in parts)


def _us(parts: Iterable[PartInfo]) -> float:
    return sum(p.us for p in parts)


@dataclass(frozen=True)
class ShownTile:
    """A tile as the page shows it: its picture, its marks with the number of the panel of each, and that of the block."""

    tile: MapTile
    picture: Markup
    marks: tuple[tuple[Mark, int], ...]
    panel: int


@dataclass(frozen=True)
class SitePanel:
    """What the page shows of a site when it is selected."""

    number: int
    near: Near
    borders: tuple[Boundary, ...]
    picture: Markup


@dataclass(frozen=True)
class Map:
    """The boundary map, or the `error` that says why there is none. Blocks with the same kernels share a panel."""

    sections: tuple[tuple[MapSection, tuple[ShownTile, ...]], ...] = ()
    sites: tuple[SitePanel, ...] = ()
    blocks: tuple[tuple[int, BlockInfo], ...] = ()
    error: str = ""


def _map(report: Report) -> Map:
    try:
        found = sections(report)
    except InputError as error:
        return Map(error=str(error))
    panels: list[SitePanel] = []
    blocks: dict[Any, tuple[int, BlockInfo]] = {}
    shown = []
    for section in found:
        tiles = []
        for tile in section.tiles:
            number, _ = blocks.setdefault(_alike(tile.block), (len(blocks), tile.block))
            marks = []
            for mark in tile.marks:
                marks.append((mark, len(panels)))
                panels.append(_panel(len(panels), report, mark))
            tiles.append(ShownTile(tile, Markup(tile_svg(tile)), tuple(marks), number))
        shown.append((section, tuple(tiles)))
    return Map(tuple(shown), tuple(panels), tuple(blocks.values()))


def _alike(block: BlockInfo) -> object:
    """Equal for blocks whose panels say the same."""
    return tuple(tuple(p.model_copy(update={"site": ""}) for p in parts) for parts in (block.before, block.after))


def _panel(number: int, report: Report, mark: Mark) -> SitePanel:
    found = near(report, mark.site)
    return SitePanel(number, found, mark.borders, Markup(near_svg(found, standalone=False)) if found.call else Markup())
