"""The section of the text on what the engines do in each distinct kernel call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from ..format import sizes_text, time_text
from ..model import Report, TimelineInfo
from ..timelines import ranked
from .grid import grid
from .section import Rank, Section

__all__ = ["timeline_section"]


def timeline_section(report: Report) -> Section:
    """A row for each distinct call, the one that takes longest in a step first; empty where none was modelled."""
    title = "Kernels on their engines (modelled by the emulator, no hardware)"
    return Section(title, tuple(_parts(ranked(report.timelines))), Rank.ENGINES)


def _parts(timelines: Sequence[TimelineInfo]) -> Iterator[RenderableType]:
    names = list(dict.fromkeys(e.engine for t in timelines for e in t.engines))
    table = grid("calls", "kernel", "a call", *names, left=("kernel",), gap=1)
    for t in (t for t in timelines if t.latency_us is not None):
        busy = {e.engine: f"{e.busy:.0%}" for e in t.engines}
        figures = (time_text(t.latency_us or 0), *(busy.get(n, "") for n in names))
        table.add_row(str(len(t.sites)), f"{t.kernel}:{t.form}", *figures)
    if table.row_count:
        yield table
        yield Text(f"percent of the time of a call in which an engine is busy, on {timelines[0].device}", style="dim")
    for t in timelines:
        if t.problem:
            yield Text(f"{t.kernel}:{t.form}, {sizes_text(t.shapes)}, not modelled: {t.problem}")
