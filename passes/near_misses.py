"""Near misses of a pattern in regions that were probed too: one finding with both results.

Not a pass: passes that probe share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from fluxrewrite.site import Code, Miss

__all__ = ["with_notes"]

T = TypeVar("T")


def with_notes(findings: Iterable[T], notes: Mapping[str, str]) -> list[T]:
    """The findings, with the probe's result from `notes` added to pattern mismatches at the nodes it names."""
    return [_noted(f, notes) for f in findings]


def _noted(finding: T, notes: Mapping[str, str]) -> T:
    if not isinstance(finding, Miss) or finding.reason.code != Code.PATTERN or finding.reason.node not in notes:
        return finding
    message = f"{finding.reason.message}; run on random inputs, {notes[finding.reason.node]}"
    return replace(finding, reason=replace(finding.reason, message=message))
