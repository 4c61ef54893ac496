"""`fluxrewrite kernels`: the listing. `fluxrewrite kernels profile` is in `kernels_profile.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Format, show, write
from .kernels_profile import profile

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..kernel import Kernel, Limit

__all__ = ["app"]

app = typer.Typer(help="List the kernels, their limits, and what a call costs.", rich_markup_mode=None)
app.command(
    epilog="Exit codes: 0 success, 2 bad input. Example: "
    "fluxrewrite kernels profile attention --shape heads=6,sequence=4608 --cores 2"
)(profile)


@app.callback(invoke_without_command=True)
def kernels(
    context: typer.Context,
    format: Annotated[
        Format, typer.Option(help="text: a table for each kernel; json: one object per kernel, provider and version.")
    ] = Format.TEXT,
) -> None:
    """List the kernels, the forms of site that each replaces, and its limits by provider and version."""
    if context.invoked_subcommand is not None:
        return
    from ..kernel import load_kernels

    found = load_kernels().values()
    if format is Format.JSON:
        write(json.dumps([_record(k, *offer) for k in found for offer in _offers(k)], indent=2) + "\n", None)
        return
    from rich.console import Group

    show(Group(*(part for k in found for part in _listed(k))))


def _forms(kernel: Kernel) -> list[str]:
    """The forms of site that passes find for the kernel."""
    from ..rewrite.selection import Selection

    return [f for p in Selection.of(None).passes.values() if p.kernel == kernel.name for f in p.forms]


def _offers(kernel: Kernel) -> Iterator[tuple[str, str, tuple[Limit, ...], str]]:
    """Provider, version, the limits that it adds, and its entry. The op's own limits come first, under "reference"."""
    from ..kernel import load_plugins

    yield "reference", "", kernel.limits, ""
    for name, provider in load_plugins("fluxrewrite.providers").items():
        for version in provider.versions or ("",):
            implementation = provider.implementations(version).get(kernel.name)
            if implementation is not None:
                yield name, version, implementation.limits, implementation.entry


def _record(kernel: Kernel, provider: str, version: str, limits: tuple[Limit, ...], entry: str) -> dict[str, Any]:
    """One object of the JSON listing. The limits of a provider apply in addition to those of "reference"."""
    return {
        "kernel": kernel.name,
        "summary": kernel.summary,
        "forms": _forms(kernel),
        "provider": provider,
        "version": version,
        "entry": entry,
        "limits": [{"text": str(limit), **asdict(limit)} for limit in limits],
    }


def _listed(kernel: Kernel) -> Iterator[RenderableType]:
    """A heading, and a row for each provider and each range of versions with the same limits."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    yield Text(kernel.name, style="bold")
    yield Padding(f"{kernel.summary}\nfound as: {', '.join(_forms(kernel)) or 'nothing finds it'}", (0, 0, 0, 2))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    spans: dict[tuple[str, str], list[str]] = {}
    for provider, version, limits, _ in _offers(kernel):
        spans.setdefault((provider, "; ".join(map(str, limits)) or "no further limit"), []).append(version)
    for (provider, text), versions in spans.items():
        span = versions[0] if len(versions) == 1 else f"{versions[0]}-{versions[-1]}"
        table.add_row(f"{provider} {span}".strip(), Text(text))
    yield Padding(table, (0, 0, 1, 2))
