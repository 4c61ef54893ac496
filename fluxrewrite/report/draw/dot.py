"""The boundary map and the neighbourhood of a site in the DOT language. Graphviz itself is not needed to write it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..format import bytes_text, time_text
from ..model import Report
from .layout import MapTile, sections
from .neighbourhood import Link, Near
from .svg import counts

__all__ = ["map_dot", "near_dot"]


def quoted(text: object) -> str:
    """A quoted DOT string, in which Graphviz finds no escapes and no markup."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _attributes(given: dict[str, object]) -> str:
    return "[" + ", ".join(f"{k}={quoted(v)}" for k, v in given.items()) + "]"


def map_dot(report: Report) -> str:
    """Blocks in order as clusters, with their kernel calls; edges into calls have the bytes that now go through memory.

    The figures of blocks and edges are attributes too (kernels_before, bytes_after, bytes ...), which Graphviz ignores.
    Raises InputError as `sections` does.
    """
    tiles = [tile for section in sections(report) for tile in section.tiles]
    lines = [f"digraph {quoted(report.model.name)} {{", "  rankdir=LR; compound=true; node [shape=box, fontname=sans];"]
    lines.append("  graph [fontname=sans]; edge [fontname=sans, fontsize=10];")
    for index, tile in enumerate(tiles):
        lines += (f"  {line}" for line in _block(index, tile))
    for index in range(len(tiles) - 1):
        same = tiles[index].block.graph == tiles[index + 1].block.graph
        style = "solid" if same else "dashed"
        lines.append(
            f"  b{index} -> b{index + 1} "
            + _attributes({"style": style, "label": "" if same else "split: graph break"})
            + ";"
        )
    return "\n".join([*lines, "}"]) + "\n"


def _block(index: int, tile: MapTile) -> Iterator[str]:
    size = [sum(p.reads + p.writes for p in parts) for parts in (tile.block.before, tile.block.after)]
    calls = [m for m in tile.marks if m.borders]
    label = f"{tile.block.path or 'outside blocks'}\n{tile.before.caption}, {bytes_text(size[0])}"
    label += f"\n{tile.after.caption}, {bytes_text(size[1])}"
    yield f"subgraph cluster_{index} {{"
    yield f"  label={quoted(label)};"
    for key, value in counts(tile).items():
        yield f"  {key.removeprefix('data_')}={quoted(value)};"
    others = len(tile.block.after) - len(calls)
    yield f"  b{index} " + _attributes({"label": f"{others} compiled kernels", "style": "rounded"}) + ";"
    for number, mark in enumerate(calls):
        cost = sum(b.cost_us or 0.0 for b in mark.borders)
        what = f"{mark.site.kind}:{mark.site.form}\n{time_text(cost)} at its border"
        yield f"  c{index}_{number} " + _attributes({"label": what, "site": mark.site.id, "color": "#b4490f"}) + ";"
        for b in mark.borders:
            size_words = f", {bytes_text(b.bytes)}" if b.bytes else ""
            edge = {"label": b.kind + size_words, "kind": b.kind, "bytes": b.bytes, "color": "#b00020"}
            yield f"  b{index} -> c{index}_{number} " + _attributes(edge) + ";"
    yield "}"


def near_dot(found: Near) -> str:
    """The neighbourhood of one site: operands, the call, and what reads its results."""
    lines = [
        f"digraph {quoted(found.site.id)} {{",
        "  rankdir=LR; node [shape=box, fontname=sans]; edge [fontname=sans, fontsize=10];",
    ]
    words = f"{found.label}\nwrites {bytes_text(found.results)}" if found.call else f"{found.label}\nno kernel call"
    call = {"label": words, "site": found.site.id, "bytes": found.results, "color": "#b4490f"}
    lines.append(f"  call {_attributes(call)};")
    lines += _links(found.before, "o")
    lines += _links(found.after, "u")
    return "\n".join([*lines, "}"]) + "\n"


def _links(links: Sequence[Link], letter: str) -> Iterator[str]:
    for i, link in enumerate(links):
        name = f"{letter}{i}"
        yield f"  {name} {_attributes({'label': link.op + chr(10) + link.name})};"
        edge: dict[str, object] = {}
        if link.bytes is not None:
            edge |= {"label": bytes_text(link.bytes), "bytes": link.bytes}
        if link.new or link.lost:
            edge |= {"color": "#b00020", "style": "dashed" if link.lost else "solid"}
        ends = f"{name} -> call" if letter == "o" else f"call -> {name}"
        yield f"  {ends} {_attributes(edge)};"
