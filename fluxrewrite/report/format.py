"""Numbers, places and sizes in the words that the text of reports uses."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

__all__ = ["bytes_text", "change_text", "folded", "sizes_text", "time_text", "trimmed"]

_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_ASIDE = re.compile(r" \([^()]{30,}\)")


def folded(path: str) -> str:
    """A module path without block numbers: what equal blocks have in common."""
    return _NUMBER.sub(".*", path)


def bytes_text(count: float) -> str:
    """Bytes in the unit (powers of 1000) that leaves up to three digits before the point: "9.44 MB"."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= factor:
            return f"{_short(count / factor)} {unit}"
    return f"{count:.0f} B"


def time_text(us: float) -> str:
    """Microseconds in the unit that leaves up to three digits before the point: "35.51 ms"."""
    for factor, unit in ((1e6, "s"), (1e3, "ms")):
        if abs(us) >= factor:
            return f"{us / factor:.2f} {unit}"
    return f"{us:.1f} us"


def change_text(before: float, after: float) -> str:
    """The change as a share of what was before: "-1.9%"; "x 2.27" for more than doubled, "" from nothing."""
    if before == 0:
        return ""
    ratio = after / before
    return f"x {ratio:.2f}" if ratio >= 2 else f"{ratio - 1:+.1%}"


def sizes_text(sizes: Mapping[str, int | str]) -> str:
    """Named sizes, equal neighbours together: "batch=1 heads=kv_heads=24"."""
    runs = itertools.groupby(sizes.items(), key=lambda item: item[1])
    return " ".join("=".join((*(name for name, _ in run), str(size))) for size, run in runs)


def trimmed(text: str, limit: int) -> str:
    """Without long asides in brackets, cut at a word where it is still longer than `limit` characters."""
    text = " ".join(_ASIDE.sub("", text).split())
    if len(text) <= limit:
        return text
    return text[: limit - 1].rsplit(" ", 1)[0].rstrip(",;:") + " …"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
