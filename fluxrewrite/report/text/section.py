"""The text of a report in sections, and which of them fit in a number of lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

__all__ = ["Fitted", "Rank", "Section"]


class Rank(IntEnum):
    """Which sections come first where not all fit. What an option asks for precedes what every report has."""

    COMPILED = 1
    RUNS = 2
    ENGINES = 3
    PREDICTION = 4
    FOUND = 5
    GRAPH_BREAKS = 6
    SITES_LEFT_ALONE = 7
    BOUNDARIES = 8
    VERDICTS = 9
    CHOICES = 10
    ABSORPTIONS = 11
    COLLECTIVES = 12
    TENSORS = 13
    TRACE = 14
    SITES_REWRITTEN = 15


@dataclass(frozen=True)
class Section:
    """A part of the text with a heading of its own; one without parts is empty."""

    title: str
    parts: tuple[RenderableType, ...]
    rank: Rank

    def __rich__(self) -> RenderableType:
        return Group(Text(f"\n{self.title}", style="bold"), *self.parts)

    @property
    def name(self) -> str:
        """What a line on sections that are left out calls it."""
        return self.rank.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Fitted:
    """A text that begins with `head`, goes on with the sections that fit, and ends with a line on those that do not.

    Attributes:
        head: always shown in full.
        sections: in the order in which they are shown.
        lines: how many the whole text may take, unless `head` alone takes more.
    """

    head: RenderableType
    sections: Sequence[Section]
    lines: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Whole sections only, because half a table misleads; heights are those at the width of the console."""
        heights = [len(console.render_lines(s, options, pad=False)) for s in self.sections]
        free = self.lines - len(console.render_lines(self.head, options, pad=False))
        shown = range(len(self.sections)) if sum(heights) <= free else self._chosen(heights, free - 2)
        yield self.head
        yield from (self.sections[i] for i in sorted(shown))
        left = [s.name for i, s in enumerate(self.sections) if i not in set(shown)]
        if left:
            yield Text(f"\n{_left_out(left, options.max_width)}", style="dim")

    def _chosen(self, heights: Sequence[int], free: int) -> list[int]:
        """By rank, each section that still fits: a short one may take the place of a long one before it."""
        chosen = []
        for i in sorted(range(len(heights)), key=lambda i: self.sections[i].rank):
            if heights[i] <= free:
                chosen.append(i)
                free -= heights[i]
        return chosen


def _left_out(names: Sequence[str], width: int) -> str:
    """One line: as many names as it holds."""
    for count in range(len(names), 0, -1):
        more = f" and {len(names) - count} more" if count < len(names) else ""
        text = f"Left out: {', '.join(names[:count])}{more}; --details full shows all."
        if len(text) <= width:
            return text
    return f"{len(names)} sections left out; --details full shows all."
