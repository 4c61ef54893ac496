"""Boundaries, collectives and graph breaks as rows: equal blocks share one. The terminal and the page show the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .format import bytes_text, folded
from .model import AbsorptionInfo, Boundary, CollectiveInfo, Report

__all__ = [
    "BoundaryRow",
    "BreakRow",
    "CollectiveRow",
    "absorption_lines",
    "boundary_rows",
    "break_rows",
    "collective_rows",
]


@dataclass(frozen=True)
class BoundaryRow:
    """The boundaries of equal blocks.

    Attributes:
        kind: "barrier", "split" or "layout".
        kernel: kind and form of the site, as "qkv:packed".
        path: the module, with `*` for block numbers; "" for the top of the model.
        basis: where the cost comes from.
        members: the boundaries, in the order of the report.
    """

    kind: str
    kernel: str
    path: str
    basis: str
    members: tuple[Boundary, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the tensors that now go through memory; each is written once and read once more."""
        return sum(b.bytes for b in self.members)

    @property
    def lost(self) -> int:
        """Pairs of operations that are no longer fused."""
        return sum(len(b.lost_fusions) for b in self.members)

    @property
    def cost_us(self) -> float | None:
        """Microseconds a step of all members together; None where no cost is known."""
        known = [b.cost_us for b in self.members if b.cost_us is not None]
        return sum(known) if known else None


def boundary_rows(report: Report) -> list[BoundaryRow]:
    """The boundaries of kernel calls by kind, kernel, folded path and basis, most expensive first; without graph breaks."""
    kernels = {s.id: f"{s.kind}:{s.form}" for s in report.sites}
    groups: dict[tuple[str, str, str, str], list[Boundary]] = {}
    for b in report.boundaries:
        if b.site:
            groups.setdefault((b.kind, kernels.get(b.site, b.site), folded(b.path), b.basis), []).append(b)
    rows = [BoundaryRow(*key, tuple(members)) for key, members in groups.items()]
    return sorted(rows, key=lambda r: (-(r.cost_us or 0.0), -r.bytes, -r.lost))


def absorption_lines(rows: Sequence[BoundaryRow]) -> list[str]:
    """A line for each group of operations that a kernel could take in, the largest saving first."""
    saved: dict[tuple[str, str, tuple[str, ...]], list[AbsorptionInfo]] = {}
    for row in rows:
        for a in (a for b in row.members for a in b.absorptions):
            saved.setdefault((row.kernel, a.side, a.ops), []).append(a)
    return [
        _absorption(*key, found)
        for key, found in sorted(saved.items(), key=lambda item: -sum(a.bytes for a in item[1]))
    ]


def _absorption(kernel: str, side: str, ops: tuple[str, ...], found: Sequence[AbsorptionInfo]) -> str:
    which = {"before": "preceding", "after": "following"}[side]
    total = bytes_text(sum(a.bytes for a in found))
    calls = "1 call" if len(found) == 1 else f"{len(found)} calls"
    return f"{kernel}: take the {which} {' + '.join(ops)} into the kernel: saves {total} of traffic a step in {calls}"


@dataclass(frozen=True)
class CollectiveRow:
    """Collectives that differ in their block number only: the first of them, how many, and their bytes on one rank."""

    path: str
    first: CollectiveInfo
    count: int
    bytes: int


def collective_rows(report: Report) -> list[CollectiveRow]:
    """The collectives by operation, folded path, ranks and tensor, the most bytes first."""
    groups: dict[object, list[CollectiveInfo]] = {}
    for c in report.collectives:
        groups.setdefault((c.op, folded(c.path), c.ranks, c.shape, c.dtype), []).append(c)
    rows = [CollectiveRow(folded(g[0].path), g[0], len(g), sum(c.bytes for c in g)) for g in groups.values()]
    return sorted(rows, key=lambda r: -r.bytes)


@dataclass(frozen=True)
class BreakRow:
    """Graph breaks at one line of the model for one reason: how many, and their cost in microseconds a step."""

    path: str
    reason: str
    count: int
    cost_us: float
    basis: str


def break_rows(report: Report) -> list[BreakRow]:
    """The graph breaks by line and reason, in the order of the report."""
    groups: dict[tuple[str, str], list[Boundary]] = {}
    for b in report.boundaries:
        if not b.site:
            groups.setdefault((b.path, b.reason), []).append(b)
    return [
        BreakRow(path, reason, len(found), sum(b.cost_us or 0.0 for b in found), found[0].basis)
        for (path, reason), found in groups.items()
    ]
