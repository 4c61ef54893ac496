"""The boundary map as SVG: of one block, as the page shows it, and of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from ..format import bytes_text, time_text
from ..model import PartInfo, Report
from .layout import HEIGHT, LETTER, Bar, MapRow, MapSection, MapTile, Mark, sections

__all__ = ["KINDS", "counts", "element", "map_svg", "named", "part_text", "style", "tile_svg"]

KINDS = {
    "fused": "fused by the compiler",
    "library": "library call",
    "opaque": "kernel call",
    "copy": "layout copy",
}
"""Kinds of compiled kernel in words."""

_PAGE = 1240  # pixels of the whole map's width
_EDGE = 20
_BETWEEN = 22


def element(name: str, attributes: dict[str, object], *content: str) -> str:
    """An SVG element. Attributes are escaped; `content` must be markup. "_" in an attribute name becomes "-"."""
    given = "".join(f' {k.rstrip("_").replace("_", "-")}="{escape(_text(v))}"' for k, v in attributes.items())
    return f"<{name}{given}>{''.join(content)}</{name}>" if content else f"<{name}{given}/>"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def style() -> str:
    """The style sheet of all pictures: light, dark and print."""
    return (files(__package__) / "templates" / "map.css").read_text(encoding="utf-8")


def part_text(part: PartInfo) -> str:
    """A kernel in words: "fused by the compiler: layer_norm, add; reads 1.59 MB, writes 1.57 MB, 5.7 us"."""
    ops = ", ".join(part.ops) or "of an operand"
    moved = f"reads {bytes_text(part.reads)}, writes {bytes_text(part.writes)}"
    return f"{KINDS[part.kind]}: {ops}; {moved}, {time_text(part.us)}"


def named(mark: Mark) -> str:
    """A mark in words, for screen readers: "kernel call qkv:triple, barrier, 1.57 MB now through memory"."""
    s = mark.site
    what = f"{s.kind}:{s.form}" if s.form else s.kind
    if not mark.borders:
        how = {"missed": "near miss", "ineligible": "not eligible"}.get(s.status, "left alone")
        return f"{what}, {'written as plain operations' if s.choice == 'inline' else how}"
    size = sum(b.bytes for b in mark.borders)
    kinds = ", ".join(dict.fromkeys("layout copy" if b.kind == "layout" else b.kind for b in mark.borders))
    return f"kernel call {what}, {kinds}, {bytes_text(size)} now through memory"


def tile_svg(tile: MapTile) -> str:
    """The picture of one block. It has no accessible name: the page has buttons and tables with the same content."""
    size = {"width": tile.width, "height": tile.height, "viewBox": f"0 0 {tile.width:g} {tile.height:g}"}
    return element("svg", {**size, "class_": "map", "aria_hidden": "true", "focusable": "false"}, *_tile(tile, False))


def _tile(tile: MapTile, name: bool) -> Iterator[str]:
    if name:
        yield element("text", {"x": 0, "y": 8, "class_": "name"}, escape(tile.name))
    for row in (tile.before, tile.after):
        yield from _row(row)
    for mark in tile.marks:
        yield _mark(mark)
    if tile.note:
        yield element("text", {"x": 0, "y": tile.note_y}, escape(tile.note))


def _row(row: MapRow) -> Iterator[str]:
    yield element("text", {"x": 0, "y": row.y}, escape(row.caption))
    for bar in row.bars:
        yield _bar(bar)
    for x, y, width in row.taken:
        yield element("path", {"class_": "taken", "d": f"M{x:g} {y:g}h{width:g}"})


def _bar(bar: Bar) -> str:
    part = bar.part
    band = {"class_": "band", "x": bar.x, "y": bar.y, "width": bar.width, "height": HEIGHT}
    if part.kind == "fused":
        band["rx"] = 3
    full = {"class_": "bar", "x": bar.x, "y": round(bar.y + HEIGHT - bar.filled, 1), "width": bar.width}
    return element(
        "g",
        {"class_": part.kind, "data_bytes": part.reads + part.writes},
        element("title", {}, escape(part_text(part))),
        element("rect", dict(band)),
        element("rect", {**full, "height": bar.filled}),
    )


def _mark(mark: Mark) -> str:
    attributes: dict[str, object] = {"data_site": mark.site.id}
    title = element("title", {}, escape(f"{mark.site.id}: {named(mark)}"))
    if not mark.borders:
        look = "inline" if mark.site.choice == "inline" else mark.site.status
        box = {"x": mark.x + 5, "y": mark.y + 5, "width": mark.width - 10, "height": mark.height - 10, "rx": 3}
        return element("g", attributes, title, element("rect", {"class_": f"loose {look}", **box}))
    attributes["data_new"] = sum(b.bytes for b in mark.borders)
    shapes = [title]
    for kind in dict.fromkeys(b.kind for b in mark.borders):
        if kind == "layout":
            middle = mark.x + mark.width / 2
            shapes.append(element("path", {"class_": kind, "d": f"M{middle - 5:g} {mark.y - 5:g}h10l-5 6z"}))
        else:
            ends = "".join(f"M{x:g} {mark.y - 3:g}v{mark.height + 6:g}" for x in (mark.x, mark.x + mark.width))
            shapes.append(element("path", {"class_": kind, "d": ends}))
    if mark.drop:
        drop = {"class_": "drop", "x": mark.x + 4, "y": mark.y + mark.height + 3, "width": mark.width - 8}
        shapes.append(element("rect", {**drop, "height": mark.drop}))
    return element("g", attributes, *shapes)


def map_svg(report: Report) -> str:
    """The boundary map of a report as a file of its own, 1240 pixels wide. Raises InputError as `sections` does."""
    y = 62.0
    body: list[str] = []
    for section in sections(report):
        drawn, y = _section(section, y)
        body += drawn
    head = f"{report.model.name}: boundary map"
    size = {"width": _PAGE, "height": round(y), "viewBox": f"0 0 {_PAGE} {round(y)}"}
    about = {"xmlns": "http://www.w3.org/2000/svg", **size, "class_": "map", "role": "img", "aria_label": head}
    return (
        element(
            "svg",
            about,
            element("title", {}, escape(head)),
            element("style", {}, style()),
            element("rect", {"class_": "paper", "width": "100%", "height": "100%"}),
            element("text", {"x": _EDGE, "y": 24, "class_": "head"}, escape(f"{head}, {_headline(report)}")),
            *_legend(),
            *body,
        )
        + "\n"
    )


def _headline(report: Report) -> str:
    e = report.effect
    if e is None:
        return "nothing predicted"
    return (
        f"{e.kernels_before} kernels before, {e.kernels_after} after; "
        f"{bytes_text(e.bytes_before)} a step before, {bytes_text(e.bytes_after)} after (predicted for {e.device})"
    )


def _legend() -> Iterator[str]:
    x = float(_EDGE)
    for kind, words in KINDS.items():
        yield element(
            "g", {"class_": kind}, element("rect", {"class_": "bar", "x": x, "y": 36, "width": 12, "height": 10})
        )
        yield element("text", {"x": x + 17, "y": 45}, words)
        x += 17 + LETTER * len(words) + 16
    for cls, words in (("barrier", "barrier"), ("split", "split"), ("taken", "taken in by one call")):
        line = f"M{x:g} 41h14" if cls == "taken" else f"M{x + 6:g} 35v13"
        yield element("path", {"class_": cls, "d": line})
        yield element("text", {"x": x + 19, "y": 45}, words)
        x += 19 + LETTER * len(words) + 16
    yield element("rect", {"class_": "drop", "x": x, "y": 36, "width": 12, "height": 10})
    yield element("text", {"x": x + 17, "y": 45}, "bytes that now go through memory; heights: square root of bytes")


def _section(section: MapSection, y: float) -> tuple[Sequence[str], float]:
    """A heading and tiles in lines of the page's width, from `y` on, and where they end."""
    drawn = [element("text", {"x": _EDGE, "y": y + 14, "class_": "name"}, escape(section.title))]
    x, y, tallest = float(_EDGE), y + 28, 0.0
    for tile in section.tiles:
        if x + tile.width > _PAGE - _EDGE and x > _EDGE:
            x, y, tallest = float(_EDGE), y + tallest + 10, 0.0
        group = {"transform": f"translate({x:g} {y:g})", **counts(tile)}
        drawn.append(element("g", group, *_tile(tile, section.is_blocks)))
        x, tallest = x + tile.width + _BETWEEN, max(tallest, tile.height)
    return drawn, y + tallest + 12


def counts(tile: MapTile) -> dict[str, object]:
    """The figures of a block as attributes, for programs."""
    found: dict[str, object] = {"data_block": tile.block.path}
    for when, parts in (("before", tile.block.before), ("after", tile.block.after)):
        found[f"data_kernels_{when}"] = len(parts)
        found[f"data_bytes_{when}"] = sum(p.reads + p.writes for p in parts)
    return found
