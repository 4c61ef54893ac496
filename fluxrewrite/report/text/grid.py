"""The tables of reports in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

__all__ = ["grid"]


def grid(*columns: str, left: Sequence[str] = (), gap: int = 2) -> Table:
    """A table without lines; columns named in `left` are text, with `gap` blanks between columns."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return table
