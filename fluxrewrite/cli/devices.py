"""`fluxrewrite devices`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from .common import show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..cost.devices import Device, Figure

__all__ = ["devices", "profile"]


def devices(
    name: Annotated[str | None, typer.Argument(help="Show this profile and its sources: a device, or a file (*.json).")] = None,
) -> None:  # fmt: skip
    """List the device profiles: bandwidth and compute rates of a core, fixed costs of a launch, and the source of each figure."""
    from ..cost.devices import device_names, load_device

    if name is not None:
        show(profile(load_device(name)))
        return
    show(_listing([load_device(n) for n in device_names()]))


def _listing(found: list[Device]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("a core", no_wrap=True)
    for device in found:
        table.add_column(device.name, justify="right", overflow="fold")
    figures = [d.figures for d in found]
    for name in dict.fromkeys(n for f in figures for n in f):
        unit = next(f[name].unit for f in figures if name in f)
        table.add_row(f"{name}, {unit}", *(_short(f[name]) if name in f else "" for f in figures))
    legend = "\nd documented, m modelled from documents, a assumed (range), * measured"
    titles = [Text(f"{d.name}: {d.title}; a core: {d.core}", style="dim") for d in found]
    more = Text("\nfluxrewrite devices NAME shows the source of each figure.", style="dim")
    return Group(table, Text(legend, style="dim"), *titles, more)


def _short(figure: Figure) -> str:
    mark = {"documented": "d", "modelled": "m", "assumed": "a", "measured": "*"}[figure.basis]
    span = f" ({figure.low:g}-{figure.high:g})" if figure.low and figure.high else ""
    return f"{figure.value:g} {mark}{span}"


def profile(device: Device) -> RenderableType:
    """One profile as a table, with the basis, range and source of each figure."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from ..report.format import sizes_text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in ("a core", "figure", "basis", "source"):
        table.add_column(name, overflow="fold", justify="right" if name == "figure" else "left")
    calls = ((f"{c.kernel}:{c.form}\n{c.dtype} {sizes_text(c.shapes)}", c.us) for c in device.calls)
    for row in _rows((*device.figures.items(), *calls)):
        table.add_row(*row)
    head = Text.assemble((device.name, "bold"), f": {device.title}; a core: {device.core}\n")
    return Group(head, table)


def _rows(figures: Iterable[tuple[str, Figure]]) -> Iterable[tuple[str, ...]]:
    last = ""
    for name, f in figures:
        span = f"\n{f.low:g} - {f.high:g}" if f.low and f.high else ""
        yield name, f"{f.value:g} {f.unit}{span}", f.basis, "as above" if f.source == last else f.source
        last = f.source
