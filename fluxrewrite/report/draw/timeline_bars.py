"""Engine timelines of kernel calls for the page: a bar of how busy each engine is, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..format import folded, sizes_text, time_text
from ..model import EngineInfo, Report, TimelineInfo
from ..timelines import ranked
from .svg import element

__all__ = ["Lane", "ShownCall", "shown"]

_HIGH = 100


@dataclass(frozen=True)
class Lane:
    """One engine: its name, the share of the time that it is busy, and the picture of when."""

    name: str
    percent: int
    instructions: int
    picture: Markup


@dataclass(frozen=True)
class ShownCall:
    """One distinct call: heading, sizes, where it is called, and its engines; the ends of the axis of time in words."""

    title: str
    where: str
    sizes: str
    info: TimelineInfo
    lanes: tuple[Lane, ...]
    half: str
    end: str


def shown(report: Report) -> tuple[ShownCall, ...]:
    """The timelines of a report; those that take longest in a step first, then those that could not be modelled."""
    return tuple(_shown(t) for t in ranked(report.timelines))


def _shown(timeline: TimelineInfo) -> ShownCall:
    latency = timeline.latency_us or 0.0
    paths = dict.fromkeys(folded(s.rpartition(f".{timeline.kernel}.")[0]) or "model" for s in timeline.sites)
    return ShownCall(
        title=f"{timeline.kernel}:{timeline.form}",
        where=", ".join(paths),
        sizes=sizes_text(timeline.shapes),
        info=timeline,
        lanes=tuple(_lane(e) for e in timeline.engines),
        half=time_text(latency / 2),
        end=time_text(latency),
    )


def _lane(engine: EngineInfo) -> Lane:
    return Lane(engine.engine, round(100 * engine.busy), engine.instructions, Markup(_picture(engine.slices)))


def _picture(slices: Sequence[int]) -> str:
    """A strip over the time of the call, as high as the engine is busy; stretched by the page, so without text."""
    path = [f"M0 {_HIGH}"]
    last = 0
    for i, share in enumerate(slices):
        if share != last:
            path.append(f"H{i}V{_HIGH - share}")
            last = share
    path.append(f"H{len(slices)}V{_HIGH}Z")
    size = {"viewBox": f"0 0 {len(slices)} {_HIGH}", "preserveAspectRatio": "none"}
    body = element("path", {"d": "".join(path)})
    return element("svg", {**size, "class_": "lane", "aria_hidden": "true", "focusable": "false"}, body)
