"""What the engines do in each distinct kernel call, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.text import Text

from ..model import Report
from .format import sizes_text, time_text
from .grid import grid

__all__ = ["timelines"]


def timelines(report: Report) -> Iterable[RenderableType]:
    """A row for each distinct call, the one that takes longest in a step first; nothing where none was modelled."""
    if not report.timelines:
        return
    yield Text("\nKernels on their engines (modelled by the emulator, no hardware)", style="bold")
    ranked = sorted(report.timelines, key=lambda t: -(t.latency_us or 0) * len(t.sites))
    names = list(dict.fromkeys(e.engine for t in ranked for e in t.engines))
    table = grid("calls", "kernel", "a call", *names, left=("kernel",), gap=1)
    for t in (t for t in ranked if t.latency_us is not None):
        busy = {e.engine: f"{e.busy:.0%}" for e in t.engines}
        table.add_row(
            str(len(t.sites)), f"{t.kernel}:{t.form}", time_text(t.latency_us or 0), *(busy.get(n, "") for n in names)
        )
    if table.row_count:
        yield table
        yield Text(f"share of the time of a call that an engine is busy, on {ranked[0].device}", style="dim")
    for t in ranked:
        if t.problem:
            yield Text(f"{t.kernel}:{t.form}, {sizes_text(t.shapes)}, not modelled: {t.problem}")
