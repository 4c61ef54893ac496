"""Sites as rows: those that differ in their block number only share one. The terminal and the page show the same rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ..site import Code
from .format import folded
from .model import Report, SiteInfo

__all__ = ["ReasonRow", "covered_sites", "reason_rows", "taken_counts"]


@dataclass(frozen=True)
class ReasonRow:
    """Sites that are left alone for one reason: how many of each kind at which folded path, as ("rope at blocks.*.attn", 3)."""

    code: str
    message: str
    sites: tuple[tuple[str, int], ...]

    @property
    def count(self) -> int:
        """All of them."""
        return sum(n for _, n in self.sites)


def reason_rows(sites: Iterable[SiteInfo]) -> list[ReasonRow]:
    """Why sites and near misses are left alone, the most frequent reason first.

    Sites that a larger one covers are not included: nothing is to be done about them.
    """
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for s in sites:
        for r in s.reasons:
            if r.code != Code.COVERED and s.choice == "keep":
                found[r.code, r.message][f"{s.kind} at {folded(s.path) or 'model'}"] += 1
    rows = [ReasonRow(code, message, tuple(where.most_common())) for (code, message), where in found.items()]
    return sorted(rows, key=lambda r: -r.count)


def covered_sites(report: Report) -> int:
    """How many sites are inside a larger one that a kernel takes."""
    return sum(any(r.code == Code.COVERED for r in s.reasons) for s in report.sites)


def taken_counts(report: Report) -> Counter[str]:
    """Rewritten sites by kind; those written as plain operations as "inline qkv"."""
    return Counter(f"{'inline ' * (s.choice == 'inline')}{s.kind}" for s in report.sites if s.choice != "keep")
