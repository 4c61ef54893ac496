"""The neighbourhood of one site: operands, the call, and what reads its results, as a small graph."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from ...errors import InputError
from ..format import bytes_text
from ..model import Boundary, CallInfo, Report, SiteInfo, TensorInfo
from .svg import element, style

__all__ = ["Link", "Near", "near", "near_svg", "site_of"]

_INPUT = "placeholder"
_WIDTH, _BOX, _HIGH, _STEP = 490, 160, 34, 42
_CALL = (180, 130)  # x and width of the call
_LETTERS = 26  # of a name that fit a box


@dataclass(frozen=True)
class Link:
    """A neighbour and the edge to it.

    Attributes:
        op: what it does; "inputs" for inputs of the graph, which are one neighbour.
        name: its name, or how many there are.
        bytes: size of the tensor on the edge; None where that is not known.
        new: whether that tensor goes through memory because of the call, and did not before.
        lost: whether the two were fused before.
    """

    op: str
    name: str
    bytes: int | None
    new: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Near:
    """A site and its neighbours; a site without a call has none."""

    site: SiteInfo
    call: CallInfo | None
    before: tuple[Link, ...]
    after: tuple[Link, ...]
    results: int

    @property
    def label(self) -> str:
        """Kind and form."""
        return f"{self.site.kind}:{self.site.form}" if self.site.form else self.site.kind


def site_of(report: Report, name: str) -> SiteInfo:
    """The site with an id. Raises InputError, with similar ids, for an unknown one."""
    found = {s.id: s for s in report.sites}
    if name in found:
        return found[name]
    close = difflib.get_close_matches(name, found, n=3, cutoff=0.5) or list(found)[:3]
    hint = f"close ids: {', '.join(close)}" if close else "the report has no sites"
    raise InputError(f"no site {name!r} in the report on {report.model.name}; {hint}")


def near(report: Report, site: SiteInfo) -> Near:
    """The neighbours of a site, from its call and its boundaries."""
    call = next((c for c in report.calls if c.site == site.id), None)
    if call is None:
        return Near(site, None, (), (), 0)
    borders = [b for b in report.boundaries if b.site == site.id]
    results = sum(t.bytes for t in call.results)
    return Near(site, call, tuple(_before(call, borders)), tuple(_after(call, borders, results)), results)


def _before(call: CallInfo, borders: Sequence[Boundary]) -> Iterator[Link]:
    new = {t.name for b in borders if b.kind != "layout" for t in b.tensors if t.role == "operand"}
    lost = dict.fromkeys(f.producer for b in borders for f in b.lost_fusions)
    shown = set()
    computed = [t for t in call.operands if t.op != _INPUT]
    for t in computed:
        shown.add(t.name)
        yield Link(t.op.removeprefix("fluxrewrite."), t.name, t.bytes, t.name in new, t.name in lost)
    inputs = [t for t in call.operands if t.op == _INPUT]
    if inputs:
        yield Link("inputs", _count(inputs), sum(t.bytes for t in inputs))
    ends = {f.consumer for b in borders for f in b.lost_fusions}
    for name in lost:
        if name not in shown and name not in ends:
            yield Link("no longer fused", name, None, lost=True)


def _count(inputs: Sequence[TensorInfo]) -> str:
    return f"{len(inputs)} of the graph" if len(inputs) > 1 else inputs[0].name


def _after(call: CallInfo, borders: Sequence[Boundary], results: int) -> Iterator[Link]:
    new = any(t.role == "result" for b in borders for t in b.tensors)
    lost = {f.consumer for b in borders for f in b.lost_fusions}
    size = results if len(call.users) == 1 else None
    for user in call.users:
        yield Link(user.op.removeprefix("fluxrewrite."), user.name, size, new, user.name in lost)


def near_svg(found: Near, standalone: bool = True) -> str:
    """The neighbourhood as SVG: a file of its own, or a picture in the page, next to a table with the same content."""
    rows = max(len(found.before), len(found.after), 1)
    height = rows * _STEP + 22
    middle = height / 2
    size = {"viewBox": f"0 0 {_WIDTH} {height}", "width": _WIDTH, "height": height}
    title = f"{found.site.id}: {found.label} and its neighbours"
    body = [
        *_column(found.before, 0, middle, True),
        *_column(found.after, _WIDTH - _BOX, middle, False),
        _center(found, middle),
    ]
    if not standalone:
        return element("svg", {**size, "class_": "near", "aria_hidden": "true", "focusable": "false"}, *body)
    about = {"xmlns": "http://www.w3.org/2000/svg", **size, "class_": "near", "role": "img", "aria_label": title}
    paper = element("rect", {"class_": "paper", "width": "100%", "height": "100%"})
    return (
        element("svg", about, element("title", {}, escape(title)), element("style", {}, style()), paper, *body) + "\n"
    )


def _center(found: Near, middle: float) -> str:
    x, width = _CALL
    box = {"class_": "box", "x": x, "y": middle - 26, "width": width, "height": 52, "rx": 4}
    at = {"x": x + width / 2, "text_anchor": "middle"}
    lines = [element("text", {**at, "y": middle - 8, "class_": "name"}, escape(_cut(found.site.kind, 19)))]
    lines.append(element("text", {**at, "y": middle + 6}, escape(_cut(found.site.form, 22))))
    words = f"writes {bytes_text(found.results)}" if found.call else "no kernel call"
    lines.append(element("text", {**at, "y": middle + 19}, words))
    return element("g", {"class_": "call", "data_bytes": found.results}, element("rect", box), *lines)


def _column(links: Sequence[Link], x: float, middle: float, left: bool) -> Iterator[str]:
    top = middle - len(links) * _STEP / 2 + (_STEP - _HIGH) / 2
    inner, outer = (_CALL[0], x + _BOX) if left else (_CALL[0] + _CALL[1], x)
    for i, link in enumerate(links):
        y = top + i * _STEP
        half = (inner + outer) / 2
        cls = "edge" + " new" * link.new + " lost" * link.lost
        curve = f"M{outer:g} {y + _HIGH / 2:g}C{half:g} {y + _HIGH / 2:g} {half:g} {middle:g} {inner:g} {middle:g}"
        yield element("path", {"class_": cls, "d": curve})
        yield _neighbour(link, x, y)


def _neighbour(link: Link, x: float, y: float) -> str:
    size = "" if link.bytes is None else f", {bytes_text(link.bytes)}"
    words = element("text", {"x": x + 7, "y": y + 14, "class_": "name"}, escape(_cut(link.op, 22)))
    name = element("text", {"x": x + 7, "y": y + 27}, escape(_cut(link.name, _LETTERS - len(size)) + size))
    full = f"{link.op} {link.name}{size}{'; now through memory' * link.new}{'; no longer fused' * link.lost}"
    box = {"class_": "box", "x": x + 1, "y": y, "width": _BOX - 2, "height": _HIGH, "rx": 3}
    group: dict[str, object] = {"class_": "new"} if link.new else {}
    if link.bytes is not None:
        group["data_bytes"] = link.bytes
    return element("g", group, element("title", {}, escape(full)), element("rect", box), words, name)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
