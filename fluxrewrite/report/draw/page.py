"""The report as one HTML file: no network, readable without a mouse, light, dark and on paper."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from ...cost.runs import Runs
from ...errors import InputError
from ...site import Code
from ..advice import better, call_text, command
from ..format import bytes_text, folded, sizes_text, time_text
from ..model import BlockInfo, Boundary, CollectiveInfo, PartInfo, Report, SiteInfo
from ..text.boundaries import absorption_lines, rows_of
from ..text.predicted import figures, said_of, times_of
from .layout import MapTile, Mark, Section, sections
from .neighbourhood import Near, near, near_svg
from .run_charts import bench_of
from .svg import KINDS, named, style, tile_svg
from .timeline_bars import shown

__all__ = ["frame", "page"]


def page(report: Report, runs: Runs | None = None) -> str:
    """The page of a report: the answer, the boundary map, and tables of all that is in it. The same bytes for equal reports.

    With the runs of a bench, their table and the seconds of each step stand there too.
    """
    environment, advice = _environment(), better(report)
    script = (files(__package__) / "templates" / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        report=report,
        answer=_answer(report),
        figures=figures(report),
        said=said_of(report.effect) if report.effect else "",
        better=advice,
        next=command(report, advice[0]) if advice else "",
        call=call_text(report) if any(s.choice == "kernel" for s in report.sites) else "",
        map=_map(report),
        bench=None if runs is None else bench_of(report, runs),
        timelines=shown(report),
        rows=rows_of(report),
        absorptions=absorption_lines(rows_of(report)),
        breaks=[b for b in report.boundaries if not b.site],
        collectives=_collectives(report),
        reasons=_reasons(report.sites),
        covered=sum(any(r.code == Code.COVERED for r in s.reasons) for s in report.sites),
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
        times_of=times_of,
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


def _answer(report: Report) -> str:
    """What the plan does, in a sentence or two."""
    taken: dict[str, int] = defaultdict(int)
    for s in report.sites:
        if s.choice != "keep":
            taken[f"{'inline ' * (s.choice == 'inline')}{s.kind}"] += 1
    e = report.effect
    if not taken:
        return "No site is rewritten: the graph stays as it is. The reasons stand below, site by site."
    what = ", ".join(f"{n} x {kind}" for kind, n in taken.items())
    if e is None:
        return f"Rewritten: {what}. What these calls cost was not predicted."
    before, after = e.step_before.us, e.step_after.us
    word = "faster" if after < before * 0.98 else "slower" if after > before * 1.02 else "neutral"
    if e.measured is not None:
        word = e.measured.verdict
    _, old, new, change, _ = figures(report)[0]
    how = f"{'about as fast as before' if word == 'neutral' else word}{', by runs of this very case' if e.measured else ''}"
    return f"Rewriting {what} is predicted to make a step {how}: {old} to {new} ({change or 'nothing'})."


@dataclass(frozen=True)
class ShownReason:
    """Sites that are left alone for one reason: how many of each kind at which folded path."""

    code: str
    message: str
    sites: tuple[tuple[str, int], ...]

    @property
    def count(self) -> int:
        """All of them."""
        return sum(n for _, n in self.sites)


def _reasons(sites: Sequence[SiteInfo]) -> list[ShownReason]:
    """Reasons but that a larger site covers one, the most frequent first."""
    found: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for s in sites:
        for r in s.reasons:
            if r.code != Code.COVERED and s.choice == "keep":
                found[r.code, r.message][f"{s.kind} at {folded(s.path) or 'model'}"] += 1
    reasons = [ShownReason(*key, tuple(where.items())) for key, where in found.items()]
    return sorted(reasons, key=lambda r: -r.count)


@dataclass(frozen=True)
class Sent:
    """Collectives that differ in the number of their block only: the first of them, how many, and their bytes."""

    path: str
    first: CollectiveInfo
    count: int
    bytes: int


def _collectives(report: Report) -> list[Sent]:
    groups: dict[object, list[CollectiveInfo]] = defaultdict(list)
    for c in report.collectives:
        groups[c.op, folded(c.path), c.ranks, c.shape, c.dtype].append(c)
    found = [Sent(folded(g[0].path), g[0], len(g), sum(c.bytes for c in g)) for g in groups.values()]
    return sorted(found, key=lambda s: -s.bytes)


@dataclass(frozen=True)
class ShownTile:
    """A tile as the page shows it: its picture, its marks with the number of the panel of each, and that of the block."""

    tile: MapTile
    picture: Markup
    marks: tuple[tuple[Mark, int], ...]
    panel: int


@dataclass(frozen=True)
class SitePanel:
    """What is told of a site when it is asked about."""

    number: int
    near: Near
    borders: tuple[Boundary, ...]
    picture: Markup


@dataclass(frozen=True)
class Map:
    """The boundary map; `error` says why there is none. Blocks with the same kernels share a panel."""

    sections: tuple[tuple[Section, tuple[ShownTile, ...]], ...] = ()
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
    return SitePanel(number, found, mark.borders, Markup(near_svg(found, alone=False)) if found.call else Markup())
