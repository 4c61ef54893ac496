"""The difference of two reports for a terminal: fits 80 columns, what was compared first, equal changes in one entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from ..diff import BoundaryChange, Changed, Difference, SiteChange
from ..format import bytes_text, change_text, folded, sizes_text, time_text, trimmed
from .grid import grid

__all__ = ["rendered_diff"]

_CELL = 30  # characters of a value in the table
_WHY = 300  # of a longer one below it
_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def rendered_diff(difference: Difference, before: str, after: str) -> Group:
    """The difference as something that rich prints; `before` and `after` name the reports."""
    return Group(*_parts(difference, before, after))


def _parts(d: Difference, before: str, after: str) -> Iterable[RenderableType]:
    yield Text(f"- {before}\n+ {after}", style="bold")
    if d.equal:
        yield Text("The reports are equal but for timing.")
        return
    if not d.listed:
        yield Text("They differ only in what is not listed, such as names of nodes and times of other plans.")
    for title, fields in (
        ("Model", d.model),
        ("Options", d.setup),
        ("Predicted", d.figures),
        ("Verdicts", d.verdicts),
    ):
        if fields:
            yield Text(f"\n{title}", style="bold")
            yield from _fields(fields)
    if d.sites:
        yield Text(f"\nSites: {_counts(d.sites)}", style="bold")
        yield from _entries((_site_key(s), s.kind, s.path) for s in d.sites)
    if d.boundaries:
        yield Text(f"\nBoundaries: {_counts(d.boundaries)}", style="bold")
        yield from _entries((_boundary_key(b), b.call, b.path) for b in d.boundaries)
        yield from _sum(d.boundaries)


def _fields(fields: Sequence[Changed]) -> Iterable[RenderableType]:
    known = {f.name: (f.before, f.after) for f in fields}
    table = grid("", "before", "after", "change", left=("",))
    long = []
    for f in fields:
        step, _, end = f.name.rpartition(".")
        if end in ("low_us", "high_us") and known.get(f"{step}.us") == (f.before, f.after):
            continue  # no range
        before, after = _value(f, f.before), _value(f, f.after)
        if max(len(before), len(after)) > _CELL:
            long.append((f.name, before, after))
        else:
            table.add_row(Text(f.name), Text(before), Text(after), _change(f))
    if table.row_count:
        yield table
    for name, before, after in long:
        yield Text(f"{name}")
        yield Padding(Text(f"- {trimmed(before, _WHY)}\n+ {trimmed(after, _WHY)}"), (0, 0, 0, 2))


def _value(field: Changed, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if "bytes" in field.name:
            return bytes_text(value)
        return (
            time_text(value) if field.name.endswith("us") else f"{value:g}" if isinstance(value, float) else str(value)
        )
    if isinstance(value, dict):
        return sizes_text(value) or "none"
    return "; ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


def _change(field: Changed) -> str:
    numbers = [v for v in (field.before, field.after) if isinstance(v, (int, float))]
    return change_text(numbers[0], numbers[1]) if len(numbers) == 2 else ""


def _counts(changes: Sequence[SiteChange] | Sequence[BoundaryChange]) -> str:
    counted = {how: sum(c.how == how for c in changes) for how in _SIGNS}
    return ", ".join(f"{n} {how}" for how, n in counted.items() if n)


def _entries(found: Iterable[tuple[tuple[str, str], str, str]]) -> Iterable[RenderableType]:
    """Changes that differ only in block numbers make one entry."""
    rows: dict[tuple[str, str, str, str], int] = {}
    for (sign, more), what, path in found:
        key = (sign, what, folded(path) or "model", more)
        rows[key] = rows.get(key, 0) + 1
    for (sign, what, path, more), count in rows.items():
        yield Text(f"{sign}{count:4} x {what} at {path}")
        if more:
            yield Padding(Text(more, style="dim"), (0, 0, 0, 6))


def _site_key(s: SiteChange) -> tuple[str, str]:
    if s.how == "changed":
        return _SIGNS[s.how], _several(s.fields)
    at = 1 if s.how == "added" else 0
    values = {f.name: (f.before, f.after)[at] for f in s.fields}
    parts = [f"{s.form}, {values['status']}, {values['choice']}"]
    return _SIGNS[s.how], "; ".join((*parts, *s.reasons))


def _several(fields: Sequence[Changed]) -> str:
    return "; ".join(f"{f.name}: {_value(f, f.before)} -> {_value(f, f.after)}" for f in fields)


def _boundary_key(b: BoundaryChange) -> tuple[str, str]:
    if b.how == "changed":
        return _SIGNS[b.how], _several(b.fields)
    at = 1 if b.how == "added" else 0
    values = [f"{f.name} {_value(f, v)}" for f in b.fields if (v := (f.before, f.after)[at]) and f.name != "count"]
    return _SIGNS[b.how], ", ".join(values)


def _sum(changes: Sequence[BoundaryChange]) -> Iterable[RenderableType]:
    for name in ("bytes", "cost_us"):
        parts = [(f.after or 0) - (f.before or 0) for c in changes for f in c.fields if f.name == name]
        total = sum(parts)
        if total:
            value = bytes_text(total) if name == "bytes" else time_text(total)
            yield Text(f"together: {'+' if total > 0 else ''}{value} at boundaries")
