"""The layout of the boundary map: positions of kernels, marks and labels in pixels, without markup."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import InputError
from ...graph.module_paths import block_path
from ...site import Code
from ..format import bytes_text, folded, time_text
from ..model import BlockInfo, Boundary, PartInfo, Report, SiteInfo

__all__ = ["Bar", "MapRow", "MapSection", "MapTile", "Mark", "sections"]

HEIGHT = 40
"""Pixels of a strip, and of the bar of the kernel that moves the most bytes."""
CALL = 24
"""Pixels of a kernel call and of a mark: large enough for a finger."""
WIDEST = 300
"""Pixels of the longest line of kernels: a tile fits a screen of 360."""
LEAST = 132
"""Pixels of the narrowest tile."""
LETTER = 5.7
"""Pixels of a letter of ten pixels' height, on average; text is not measured."""
_BAR, _GAP, _LINE, _TEXT = 7, 1, 52, 14
_DROP = 18  # of HEIGHT: the longest mark of bytes that now go through memory


@dataclass(frozen=True)
class Bar:
    """One kernel: its band from `x`, `y`, `width` x HEIGHT, and the height of the bar in it, the square root of its bytes."""

    x: float
    y: float
    width: float
    filled: float
    part: PartInfo


@dataclass(frozen=True)
class Mark:
    """A site that can be selected: a kernel call with its borders, or a site without a call.

    Attributes:
        x, y, width, height: the area.
        site: the site.
        borders: the boundaries of the call; none for a site without a call.
        drop: height of the mark below the area, for the bytes that now go through memory.
    """

    x: float
    y: float
    width: float
    height: float
    site: SiteInfo
    borders: tuple[Boundary, ...] = ()
    drop: float = 0.0


@dataclass(frozen=True)
class MapRow:
    """A strip: its caption at `y`, its kernels below, and the stretches of kernels that one call takes in, as (x, y, width)."""

    y: float
    caption: str
    bars: tuple[Bar, ...]
    taken: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class MapTile:
    """One block: the strip before over the strip after, and its marks.

    Attributes:
        name: what distinguishes the block from its neighbours, as "3".
        block: its record.
        note: the bytes that now go through memory, in words, at `note_y`; "" for none.
    """

    name: str
    block: BlockInfo
    width: float
    height: float
    before: MapRow
    after: MapRow
    marks: tuple[Mark, ...]
    note: str
    note_y: float


@dataclass(frozen=True)
class MapSection:
    """Neighbouring blocks of one kind."""

    title: str
    tiles: tuple[MapTile, ...]

    @property
    def is_blocks(self) -> bool:
        """Whether these are blocks, and not what lies between them."""
        return bool(self.tiles[0].block.path)


def sections(report: Report) -> tuple[MapSection, ...]:
    """The map of a report. Raises InputError for a report without predictions, or of a version that had no blocks."""
    if not report.blocks:
        raise InputError(
            f"the report on {report.model.name} has no blocks to draw; write it again with fluxrewrite inspect, which predicts them"
        )
    scale = _Scale.of(report)
    placed = _sites(report)
    found: list[MapSection] = []
    for (graph, kind), blocks in itertools.groupby(
        enumerate(report.blocks), key=lambda b: (b[1].graph, folded(b[1].path))
    ):
        tiles = tuple(_tile(block, placed[index], scale) for index, block in blocks)
        of = f", graph {graph}" if report.model.graphs > 1 else ""
        title = f"{kind}: {len(tiles)} block{'s' * (len(tiles) > 1)}" if kind else "between the blocks"
        found.append(MapSection(title + of, tiles))
    return tuple(_outer(found))


def _outer(found: Sequence[MapSection]) -> Iterator[MapSection]:
    """Titles that say what comes before the first block and after the last."""
    held = [i for i, s in enumerate(found) if s.is_blocks]
    for i, s in enumerate(found):
        words = "before the blocks" if held and i < held[0] else "after the blocks" if held and i > held[-1] else ""
        title = s.title if not words else s.title.replace("between the blocks", words)
        yield MapSection(title if held else title.replace("between the blocks", "the whole model"), s.tiles)


@dataclass(frozen=True)
class _Scale:
    """The most bytes that a kernel moves, and the most that a boundary sends through memory."""

    moved: int
    new: int

    @classmethod
    def of(cls, report: Report) -> _Scale:
        parts = [p for b in report.blocks for p in (*b.before, *b.after)]
        return cls(
            max((p.reads + p.writes for p in parts), default=1) or 1,
            max((b.bytes for b in report.boundaries), default=1) or 1,
        )

    def bar(self, size: int) -> float:
        return round(max(2.0, HEIGHT * math.sqrt(size / self.moved)), 1)

    def drop(self, size: int) -> float:
        return round(max(3.0, _DROP * math.sqrt(size / self.new)), 1) if size else 0.0


@dataclass
class _Held:
    """The sites of one block."""

    sites: Mapping[str, SiteInfo]
    borders: Mapping[str, Sequence[Boundary]]
    loose: list[SiteInfo]


def _sites(report: Report) -> list[_Held]:
    """The sites of each block. A site without a call that no other covers is shown at the first block of its path."""
    sites = {s.id: s for s in report.sites}
    borders: dict[str, list[Boundary]] = defaultdict(list)
    for b in report.boundaries:
        borders[b.site].append(b)
    held = [_Held(sites, borders, []) for _ in report.blocks]
    first: dict[tuple[int, str], int] = {}
    for index, block in enumerate(report.blocks):
        first.setdefault((block.graph, block.path), index)
        first.setdefault((block.graph, ""), index)
    for s in report.sites:
        if s.choice != "kernel" and not any(r.code == Code.COVERED for r in s.reasons):
            at = first.get((s.graph, block_path(s.path)), first.get((s.graph, "")))
            if at is not None:
                held[at].loose.append(s)
    return held


def _tile(block: BlockInfo, held: _Held, scale: _Scale) -> MapTile:
    before, y = _row(block.before, 20, scale, True)
    after, bottom = _row(block.after, y + 6, scale, False)
    calls = [_call(bar, held, scale) for bar in after.bars if bar.part.kind == "opaque" and bar.part.site in held.sites]
    bottom += max((m.drop for m in calls), default=0.0)
    note = _note([b for m in calls for b in m.borders])
    note_y = bottom + (12 if note else 0)
    y = note_y + 6
    loose, y = _loose(held.loose, y)
    right = max((bar.x + bar.width for bar in (*before.bars, *after.bars)), default=0)
    words = LETTER * max(len(before.caption), len(after.caption), len(note))
    width = math.ceil(max(LEAST, right, words, *(m.x + m.width for m in loose)))
    return MapTile(_name(block), block, width, round(y, 1), before, after, (*calls, *loose), note, round(note_y, 1))


def _name(block: BlockInfo) -> str:
    return block.path.rpartition(".")[2] or "its kernels"


def _row(parts: Sequence[PartInfo], y: float, scale: _Scale, show_taken: bool) -> tuple[MapRow, float]:
    """A strip with its caption at `y`, and where it ends."""
    count = f"{len(parts)} kernel{'s' * (len(parts) != 1)}"
    caption = f"{'before' if show_taken else 'after'}: {count}, {time_text(sum(p.us for p in parts))}"
    bars: list[Bar] = []
    x, line = 0.0, y + _TEXT - 6
    for part in parts:
        width = CALL if part.kind == "opaque" else _BAR + min(max(part.nodes, 1) - 1, 6)
        gap = 2 if part.kind == "opaque" else 0  # room for the lines of its borders
        if x + width + 2 * gap > WIDEST:
            x, line = 0.0, line + _LINE
        bars.append(Bar(x + gap, line, width, scale.bar(part.reads + part.writes), part))
        x += width + 2 * gap + _GAP
    return MapRow(y, caption, tuple(bars), tuple(_taken(bars)) if show_taken else ()), line + HEIGHT + 8


def _taken(bars: Sequence[Bar]) -> Iterator[tuple[float, float, float]]:
    for (site, y), run in itertools.groupby(bars, key=lambda b: (b.part.site, b.y)):
        members = list(run)
        if site:
            yield members[0].x, y + HEIGHT + 2, members[-1].x + members[-1].width - members[0].x


def _call(bar: Bar, held: _Held, scale: _Scale) -> Mark:
    borders = tuple(held.borders.get(bar.part.site, ()))
    drop = scale.drop(sum(b.bytes for b in borders))
    return Mark(bar.x, bar.y, bar.width, HEIGHT, held.sites[bar.part.site], borders, drop)


def _note(borders: Sequence[Boundary]) -> str:
    """ "3 barriers, +4.72 MB"."""
    kinds = {k: sum(b.kind == k for b in borders) for k in ("split", "barrier", "layout")}
    words = {"split": "split", "barrier": "barrier", "layout": "layout copy"}
    counts = [
        f"{n} {words[k][:-1] + 'ies' if n > 1 and k == 'layout' else words[k] + 's' * (n > 1)}"
        for k, n in kinds.items()
        if n
    ]
    size = sum(b.bytes for b in borders)
    return ", ".join([*counts, *([f"+{bytes_text(size)}"] if size else [])])


def _loose(sites: Sequence[SiteInfo], y: float) -> tuple[list[Mark], float]:
    """Marks of sites without a call, in lines of their own."""
    each = int(WIDEST // CALL)
    marks = [Mark((i % each) * CALL, y + (i // each) * CALL, CALL, CALL, s) for i, s in enumerate(sites)]
    return marks, y + CALL * math.ceil(len(sites) / each)
