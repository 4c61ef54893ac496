"""The runs of a bench for the page: a table, and the seconds of each step as curves, cold and warm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from ...cost.runs import Runs, Variant
from ..model import Report
from ..runs_table import cells, differences, notes, with_range
from .svg import element

__all__ = ["Bench", "Chart", "bench_of"]

_WIDTH, _HEIGHT = 380, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 6, 10, 24  # around the curves: figures of the axes
COLOURS = 8
"""Kinds of line that the style sheet has, by colour and dashes; further variants start again with the first."""
_LETTERS = 14  # pixels between two figures of an axis, at least
_STEEP = 4.0  # from this quotient of the greatest and the least time on, the axis counts powers of ten


@dataclass(frozen=True)
class Curve:
    """Seconds of each step of one variant, with the least and the most over its runs."""

    name: str
    kind: int
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """A picture with its caption, and what it shows in words."""

    caption: str
    words: str
    picture: Markup


@dataclass(frozen=True)
class Bench:
    """What the page shows of a file of runs.

    `rows` are `runs_table.cells` with the range and how close the latents are; `legend` has names and kinds of line.
    """

    runs: Runs
    rows: tuple[dict[str, str], ...]
    has_device: bool
    charts: tuple[Chart, ...]
    legend: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]


def bench_of(report: Report, runs: Runs) -> Bench:
    """A bench as the page of a report shows it; the notes say where model, sizes or dtype of the two differ."""
    rows = tuple(_row(runs, v) for v in runs.variants)
    finished = [v for v in runs.variants if v.runs]
    kinds = {v.name: i % COLOURS for i, v in enumerate(finished)}
    other = differences(report, runs)
    said = ([f"These runs are not of what the report is about: {other}."] if other else []) + list(notes(runs))
    return Bench(
        runs,
        rows,
        any(r["device_mb"] for r in rows),
        tuple(_charts(finished, kinds)),
        tuple(kinds.items()),
        tuple(said),
    )


def _row(runs: Runs, variant: Variant) -> dict[str, str]:
    row, base = with_range(cells(runs, variant)), runs.vanilla
    output, first = variant.output, base.output if base else None
    same = output is not None and first is not None and output.digest == first.digest
    latents = row["cosine"] or ("finite" if output else "")
    return {**row, "latents": f"{latents}, same bits" if same and variant is not base else latents}


def _charts(variants: Sequence[Variant], kinds: dict[str, int]) -> Iterator[Chart]:
    cold = [Curve(v.name, kinds[v.name], *(v.runs[0].steps_s,) * 3) for v in variants]
    warm = [_warm(v, kinds[v.name]) for v in variants if len(v.runs) > 1]
    for caption, curves in (("Cold: the first run, which compiles", cold), ("Warm: median of the other runs", warm)):
        if curves:
            words = "; ".join(f"{c.name} {' '.join(_seconds(s) for s in c.middle)}" for c in curves)
            yield Chart(caption, f"Seconds a step. {words}", Markup(_chart(curves)))


def _warm(variant: Variant, kind: int) -> Curve:
    steps = list(zip(*(run.steps_s for run in variant.runs[1:]), strict=True))
    return Curve(
        variant.name, kind, tuple(map(statistics.median, steps)), tuple(map(min, steps)), tuple(map(max, steps))
    )


def _chart(curves: Sequence[Curve]) -> str:
    low, high = min(min(c.low) for c in curves), max(max(c.high) for c in curves)
    marks, at = _axis(low, high)
    count = len(curves[0].middle)
    right = _WIDTH - _RIGHT

    def x(step: int) -> float:
        return round(_LEFT + 14 + (right - _LEFT - 28) * (step / (count - 1) if count > 1 else 0.5), 1)

    size = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "width": _WIDTH, "height": _HEIGHT, "class_": "chart"}
    body: list[str] = []
    for mark in marks:
        y = at(mark)
        body.append(element("path", {"class_": "grid", "d": f"M{_LEFT} {y:g}H{right}"}))
        body.append(element("text", {"x": _LEFT - 6, "y": y + 3.5, "text_anchor": "end"}, _seconds(mark)))
    for step in _some(count):
        body.append(element("text", {"x": x(step), "y": _HEIGHT - 6, "text_anchor": "middle"}, str(step + 1)))
    body.append(element("text", {"x": _LEFT - 6, "y": _HEIGHT - 6, "text_anchor": "end"}, "step"))
    for curve in curves:
        body += _curve(curve, x, at)
    return element("svg", {**size, "aria_hidden": "true", "focusable": "false"}, *body)


def _curve(curve: Curve, x: Callable[[int], float], at: Callable[[float], float]) -> Iterator[str]:
    """The range as a band, the middle as a line with a dot at each step."""
    kind, steps = f"c{curve.kind}", range(len(curve.middle))
    title = element("title", {}, escape(f"{curve.name}: {', '.join(f'{_seconds(s)} s' for s in curve.middle)}"))
    shapes = [title]
    if curve.low != curve.high and len(steps) > 1:
        there = [f"{x(i):g} {at(curve.high[i]):g}" for i in steps]
        back = [f"{x(i):g} {at(curve.low[i]):g}" for i in reversed(steps)]
        shapes.append(element("path", {"class_": "range", "d": f"M{'L'.join([*there, *back])}Z"}))
    elif curve.low != curve.high:
        shapes.append(element("path", {"class_": "line", "d": f"M{x(0):g} {at(curve.low[0]):g}V{at(curve.high[0]):g}"}))
    line = "L".join(f"{x(i):g} {at(s):g}" for i, s in enumerate(curve.middle))
    shapes.append(element("path", {"class_": "line", "d": f"M{line}"}))
    shapes += [element("circle", {"cx": x(i), "cy": at(s), "r": 2.5}) for i, s in enumerate(curve.middle)]
    yield element("g", {"class_": kind}, *shapes)


def _axis(low: float, high: float) -> tuple[list[float], Callable[[float], float]]:
    """Marks of an axis of seconds, and the position of a time on it; logarithmic where times are far apart."""
    steep = high / low >= _STEEP
    if steep:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        marks = [m * 10.0**e for e in range(first, last + 1) for m in ((1,) if last - first > 2 else (1, 2, 5))]
        inner = [m for m in marks if low <= m <= high]
        marks = [max([m for m in marks if m <= low], default=low), *inner]
        marks = sorted({*marks, min([m for m in marks if m >= high] or [high])})
        scale: Callable[[float], float] = math.log10
    else:
        marks, scale = _round_marks(low, high), float
    bottom, top = scale(min(marks[0], low)), scale(max(marks[-1], high))
    span = _HEIGHT - _TOP - _BOTTOM

    def at(seconds: float) -> float:
        return round(_TOP + span * (1 - (scale(seconds) - bottom) / ((top - bottom) or 1)), 1)

    return [m for m in marks if m == marks[-1] or at(m) - at(marks[-1]) >= _LETTERS], at


def _round_marks(low: float, high: float) -> list[float]:
    """Three to six round figures around low and high."""
    width = (high - low) or low * 0.1
    unit = 10.0 ** math.floor(math.log10(width / 3))
    step = next(unit * m for m in (1, 2, 5, 10) if width / (unit * m) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def _some(count: int) -> Iterator[int]:
    """Steps whose numbers are shown below the axis: at most ten, starting with the first."""
    yield from range(0, count, max(1, math.ceil(count / 10)))


def _seconds(value: float) -> str:
    return f"{value:.4g}"
