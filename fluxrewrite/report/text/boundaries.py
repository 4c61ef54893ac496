"""The boundary table of the text: where kernel calls stand between operations, dearest first, equal blocks in one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ..model import AbsorptionInfo, Boundary, Report, TensorInfo
from .format import bytes_text, folded
from .grid import grid

__all__ = ["BoundaryRow", "absorption_lines", "boundary_table", "rows_of"]

_KINDS = {
    "barrier": "nothing is fused across the call",
    "split": "nothing is fused across the call, and it ends the executable",
    "layout": "a copy, for the kernel takes contiguous operands only",
}
_TENSORS = 3  # rows whose tensors are named
_EACH = 4  # tensors named of a row


@dataclass(frozen=True)
class BoundaryRow:
    """Boundaries of equal blocks: what they cost a step together. `cost_us` is None where no cost is known."""

    kind: str
    kernel: str
    path: str
    basis: str
    members: tuple[Boundary, ...]

    @property
    def bytes(self) -> int:
        """Bytes newly through memory, written once and read once more."""
        return sum(b.bytes for b in self.members)

    @property
    def lost(self) -> int:
        """Pairs of operations no longer fused."""
        return sum(len(b.lost_fusions) for b in self.members)

    @property
    def cost_us(self) -> float | None:
        """Microseconds a step."""
        known = [b.cost_us for b in self.members if b.cost_us is not None]
        return sum(known) if known else None


def rows_of(report: Report) -> list[BoundaryRow]:
    """The boundaries by kind, kernel, folded path and basis, dearest first; graph breaks are not among them."""
    kernels = {s.id: f"{s.kind}:{s.form}" for s in report.sites}
    groups: dict[tuple[str, str, str, str], list[Boundary]] = {}
    for b in report.boundaries:
        if b.site:
            groups.setdefault((b.kind, kernels.get(b.site, b.site), folded(b.path), b.basis), []).append(b)
    rows = [BoundaryRow(*key, tuple(members)) for key, members in groups.items()]
    return sorted(rows, key=lambda r: (-(r.cost_us or 0.0), -r.bytes, -r.lost))


def boundary_table(report: Report) -> Iterable[RenderableType]:
    """The table, the tensors of the dearest rows, what kernels could take in, and graph breaks."""
    rows = rows_of(report)
    if rows:
        yield Text("\nBoundaries: what the calls cost a step, dearest first", style="bold")
        table = grid(
            "calls",
            "kind",
            "kernel, where",
            "bytes",
            "lost",
            "us",
            "basis",
            left=("kind", "kernel, where", "basis"),
            gap=1,
        )
        for row in rows:
            cost = "" if row.cost_us is None else f"{row.cost_us:,.1f}"
            where = f"{row.kernel}\n {row.path or 'model'}"
            size = bytes_text(row.bytes) if row.bytes else "0"
            table.add_row(str(len(row.members)), row.kind, Text(where), size, str(row.lost), cost, row.basis)
        yield table
        yield Text("bytes: newly through memory; lost: pairs of operations no longer fused", style="dim")
        yield from (
            Text(f"{kind}: {what}", style="dim") for kind, what in _KINDS.items() if kind in {r.kind for r in rows}
        )
    if any(row.basis == "measured" and row.cost_us for row in rows):
        yield Text("us measured: as in the runs that the verdicts name, whose step took another time", style="dim")
    elsewhere = report.effect.lost_elsewhere if report.effect else 0
    if elsewhere:
        yield Text(f"Outside all calls {elsewhere} more pairs of operations are no longer fused.")
    yield from _tensors(rows)
    yield from _absorptions(rows)
    yield from _collectives(report)
    yield from _breaks(report)


def _collectives(report: Report) -> Iterable[RenderableType]:
    """What ranks send each other, equal blocks together, and whether the rewrite changed how often."""
    e = report.effect
    if not report.collectives or e is None:
        return
    same = (
        "with kernels and without" if e.collectives_before == e.collectives_after else f"{e.collectives_before} before"
    )
    total = bytes_text(sum(c.bytes for c in report.collectives))
    yield Text(
        f"\nCollectives: {e.collectives_after} a step ({same}), {total} a rank; nothing fuses across", style="bold"
    )
    groups: dict[tuple[str, int | None, str], list[int]] = {}
    for c in report.collectives:
        groups.setdefault((c.op, c.ranks, folded(c.path)), []).append(c.bytes)
    for (op, ranks, path), sizes in groups.items():
        among = "" if ranks is None else f" of {ranks} ranks"
        each = bytes_text(sizes[0]) if len(set(sizes)) == 1 else f"{bytes_text(min(sizes))} to {bytes_text(max(sizes))}"
        yield _item(f"{len(sizes)} x {op}{among} at {path or 'model'}, {each} each")


def _tensors(rows: Sequence[BoundaryRow]) -> Iterable[RenderableType]:
    for row in [r for r in rows if r.bytes][:_TENSORS]:
        dearest = max(row.members, key=lambda b: b.bytes)
        named = [_tensor(t) for t in dearest.tensors[:_EACH]]
        if len(dearest.tensors) > _EACH:
            named.append(f"{len(dearest.tensors) - _EACH} more")
        yield _item(f"{row.kernel}, {row.kind}, through memory at {dearest.path or 'model'}: {', '.join(named)}")


def _tensor(tensor: TensorInfo) -> str:
    shape = "x".join(map(str, tensor.shape))
    return f"{tensor.role} {tensor.name} ({tensor.op}, {tensor.dtype} {shape}, {bytes_text(tensor.bytes)})"


def _absorptions(rows: Sequence[BoundaryRow]) -> Iterable[RenderableType]:
    lines = absorption_lines(rows)
    if lines:
        yield Text("What kernels could take in", style="bold")
    yield from map(_item, lines)


def absorption_lines(rows: Sequence[BoundaryRow]) -> list[str]:
    """What kernels could take in, a line for each, what saves most first."""
    saved: dict[tuple[str, str, tuple[str, ...]], list[AbsorptionInfo]] = {}
    for row in rows:
        for a in (a for b in row.members for a in b.absorptions):
            saved.setdefault((row.kernel, a.side, a.ops), []).append(a)
    return [_advice(*k, found) for k, found in sorted(saved.items(), key=lambda item: -sum(a.bytes for a in item[1]))]


def _advice(kernel: str, side: str, ops: tuple[str, ...], found: Sequence[AbsorptionInfo]) -> str:
    which = {"before": "preceding", "after": "following"}[side]
    total = bytes_text(sum(a.bytes for a in found))
    calls = "1 call" if len(found) == 1 else f"{len(found)} calls"
    return f"{kernel}: take the {which} {' + '.join(ops)} into the kernel: saves {total} of traffic a step in {calls}"


def _breaks(report: Report) -> Iterable[RenderableType]:
    stops = [b for b in report.boundaries if not b.site]
    if stops:
        yield Text("Graph breaks: each ends an executable", style="bold")
    counted: dict[tuple[str, str], list[Boundary]] = {}
    for b in stops:
        counted.setdefault((b.path, b.reason), []).append(b)
    for (path, reason), found in counted.items():
        cost = sum(b.cost_us or 0.0 for b in found)
        yield _item(f"{len(found)} at {path}: {reason} ({cost:,.1f} us, {found[0].basis})")


def _item(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2))
