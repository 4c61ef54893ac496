"""The section of the text on what a compiler kept, next to what was predicted."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from ...provider.custom_call import TARGET
from ..model import ArtifactsInfo, Report
from .grid import grid
from .section import Rank, Section

__all__ = ["artifact_section"]


def artifact_section(report: Report) -> Section:
    """A row for each process below a row of predictions, and whether they agree; empty without artifacts."""
    parts = () if report.artifacts is None else tuple(_parts(report.artifacts))
    return Section("What was compiled", parts, Rank.COMPILED)


def _parts(info: ArtifactsInfo) -> Iterator[RenderableType]:
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
            "These differ. More NEFFs than predicted come from graph breaks, from other inputs\n"
            "that were compiled too, or from parts that run eagerly. Other calls come from\n"
            "kernels that were not inspected: give inspect the options, sizes and dtype of\n"
            "the compile.",
            style="yellow",
        )
