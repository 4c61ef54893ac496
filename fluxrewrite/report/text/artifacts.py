"""The part of the text on what a compiler kept, beside what was predicted."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.text import Text

from ...provider.custom_call import TARGET
from ..model import Report
from .grid import grid

__all__ = ["artifacts"]


def artifacts(report: Report) -> Iterable[RenderableType]:
    """A row for each process under a row of predictions, and whether they agree; nothing without artifacts."""
    info = report.artifacts
    if info is None:
        return
    yield Text("\nWhat was compiled", style="bold")
    table = grid("process", "graphs", "StableHLO", "NEFFs", "kernel calls", left=("process",), gap=2)
    table.add_row("predicted", "", "", str(info.predicted_neffs), str(info.predicted_kernel_calls), style="dim")
    for p in info.processes:
        table.add_row(p.name, *map(str, (p.fx_graphs, p.stablehlo_modules, p.neffs, p.kernel_calls)))
    yield table
    others = sorted({name for p in info.processes for name in p.custom_calls} - {TARGET})
    if others:
        yield Text(f"other custom calls: {', '.join(others)}")
    if not info.agree:
        yield Text(
            "These differ. More NEFFs than predicted are graph breaks, other inputs compiled\n"
            "too, or parts run eagerly; other calls are kernels that were not the ones\n"
            "inspected: give inspect the options, sizes and dtype of the compile.",
            style="yellow",
        )
