"""The sections of the text on what kernel calls cost at their borders: boundaries, tensors, collectives, graph breaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ..boundary_rows import BoundaryRow, CollectiveRow, absorption_lines, boundary_rows, break_rows, collective_rows
from ..format import bytes_text
from ..model import Report, TensorInfo
from .grid import grid
from .section import Rank, Section

__all__ = ["boundary_sections"]

_KINDS = {
    "barrier": "nothing is fused across the call",
    "split": "nothing is fused across the call, and it ends the executable",
    "layout": "a copy, because the kernel takes contiguous operands only",
}
_COLUMNS = ("calls", "kind", "kernel, where", "bytes", "lost", "us", "basis")
_TENSORS = 3  # rows whose tensors are named
_EACH = 4  # tensors named of a row


def boundary_sections(report: Report) -> Iterator[Section]:
    """Boundaries, their tensors, what kernels could take in, collectives and graph breaks; none that would be empty."""
    rows = boundary_rows(report)
    found = [
        Section(
            "Boundaries: what the calls cost a step, most expensive first", tuple(_table(report, rows)), Rank.BOUNDARIES
        ),
        Section("Tensors that now go through memory", tuple(_tensors(rows)), Rank.TENSORS),
        Section("What kernels could take in", tuple(map(_item, absorption_lines(rows))), Rank.ABSORPTIONS),
        _collectives(report),
        Section("Graph breaks: each ends an executable", tuple(_breaks(report)), Rank.GRAPH_BREAKS),
    ]
    yield from (section for section in found if section.parts)


def _table(report: Report, rows: Sequence[BoundaryRow]) -> Iterator[RenderableType]:
    if rows:
        table = grid(*_COLUMNS, left=("kind", "kernel, where", "basis"), gap=1)
        for row in rows:
            cost = "" if row.cost_us is None else f"{row.cost_us:,.1f}"
            where = Text(f"{row.kernel}\n {row.path or 'model'}")
            size = bytes_text(row.bytes) if row.bytes else "0"
            table.add_row(str(len(row.members)), row.kind, where, size, str(row.lost), cost, row.basis)
        yield table
        yield Text("bytes: now through memory, not before; lost: pairs of operations no longer fused", style="dim")
        shown = {r.kind for r in rows}
        yield from (Text(f"{kind}: {what}", style="dim") for kind, what in _KINDS.items() if kind in shown)
    if any(row.basis == "measured" and row.cost_us for row in rows):
        yield Text("us measured: from the runs that the verdicts name, whose step took another time", style="dim")
    elsewhere = report.effect.lost_elsewhere if report.effect else 0
    if elsewhere:
        yield Text(f"Outside all calls {elsewhere} more pairs of operations are no longer fused.")


def _tensors(rows: Sequence[BoundaryRow]) -> Iterable[RenderableType]:
    for row in [r for r in rows if r.bytes][:_TENSORS]:
        largest = max(row.members, key=lambda b: b.bytes)
        named = [_tensor(t) for t in largest.tensors[:_EACH]]
        if len(largest.tensors) > _EACH:
            named.append(f"{len(largest.tensors) - _EACH} more")
        yield _item(f"{row.kernel}, {row.kind} at {largest.path or 'model'}: {', '.join(named)}")


def _tensor(tensor: TensorInfo) -> str:
    shape = "x".join(map(str, tensor.shape))
    return f"{tensor.role} {tensor.name} ({tensor.op}, {tensor.dtype} {shape}, {bytes_text(tensor.bytes)})"


def _collectives(report: Report) -> Section:
    """What ranks exchange, and whether the rewrite changes how often."""
    e, rows = report.effect, collective_rows(report)
    if not rows or e is None:
        return Section("Collectives", (), Rank.COLLECTIVES)
    same = e.collectives_before == e.collectives_after
    often = "with kernels and without" if same else f"{e.collectives_before} before"
    total = bytes_text(sum(row.bytes for row in rows))
    title = f"Collectives: {e.collectives_after} a step ({often}), {total} a rank; nothing is fused across them"
    return Section(title, tuple(_item(_collective(row)) for row in rows), Rank.COLLECTIVES)


def _collective(row: CollectiveRow) -> str:
    among = "" if row.first.ranks is None else f" of {row.first.ranks} ranks"
    return f"{row.count} x {row.first.op}{among} at {row.path or 'model'}, {bytes_text(row.first.bytes)} each"


def _breaks(report: Report) -> Iterator[RenderableType]:
    for row in break_rows(report):
        yield _item(f"{row.count} at {row.path}: {row.reason} ({row.cost_us:,.1f} us, {row.basis})")


def _item(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2))
