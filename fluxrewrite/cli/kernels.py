"""`fluxrewrite kernels`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from .shared import show

if TYPE_CHECKING:
    from ..kernel import Kernel

__all__ = ["app"]

app = typer.Typer(help="The kernels: what each takes, and within which limits.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def kernels(context: typer.Context) -> None:
    """List the kernels, what each takes, and the limits within which it is used, by provider and version."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from ..kernel import load_kernels
    from ..plan import Selection

    selection = Selection.of(None)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in ("kernel", "provider", "limits", "forms found", "what it does"):
        table.add_column(name, overflow="fold")
    for kernel in load_kernels().values():
        forms = [f for p in selection.passes.values() if p.kernel == kernel.name for f in p.forms]
        what = ", ".join(forms), kernel.summary
        for provider, limits in _offers(kernel):
            table.add_row(kernel.name, provider, limits, *what)
            what = "", ""
    show(table)


def _offers(kernel: Kernel) -> Iterator[tuple[str, str]]:
    """Provider (with the versions for which the same limits hold) and limits."""
    from ..kernel import load_plugins

    yield "reference", "; ".join(map(str, kernel.limits)) or "none"
    for provider in load_plugins("fluxrewrite.providers").values():
        versions: dict[str, list[str]] = {}
        for version in provider.versions or ("",):
            found = provider.implementations(version).get(kernel.name)
            if found is not None:
                versions.setdefault("; ".join(map(str, (*kernel.limits, *found.limits))), []).append(version)
        for limits, names in versions.items():
            span = names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}"
            yield f"{provider.name} {span}".strip(), limits
