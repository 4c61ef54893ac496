"""The summary of a report for the terminal: never more than `LINES` lines at 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from ..summary import Highlights

__all__ = ["LINES", "SummaryText"]

LINES = 14
"""Lines of the summary; with the line on what is left out they are 15."""
_WIDTH = 80
_LABEL = 10  # columns of a label and the blanks after it
_COMMAND = 4  # lines of a command that is shown whole

Block = Callable[[int], list[Text]]
"""A part of the summary in as many lines as it is given; fewer where it needs fewer."""


@dataclass(frozen=True)
class SummaryText:
    """The summary as something that rich prints. What does not fit ends in "…", but a command is never cut."""

    found: Highlights

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Every part gets its least number of lines; those that need more share the rest, the first ones first."""
        width = min(_WIDTH, options.max_width)

        def fact(label: str, text: str, style: str = "") -> Block:
            return lambda lines: _labelled(label, _cut(text, width - _LABEL, lines, console, style))

        least: list[tuple[int, Block]] = [(1, lambda lines: _cut(self.found.title, width, lines, console, "bold"))]
        least += [(2 if f.label == "Expected" else 1, fact(f.label, f.text)) for f in self.found.facts]
        if self.found.warnings:
            warnings = self.found.warnings
            least.append((2, lambda lines: _labelled("Warning", _warned(warnings, width - _LABEL, lines, console))))
        command = self._command(width)
        least.append((1, fact("Next", self.found.next.why + ":" * bool(command))))
        limits = _limits([block for _, block in least], [lines for lines, _ in least], LINES - len(command))
        for (_, block), lines in zip(least, limits, strict=True):
            yield from block(lines)
        yield from command

    def _command(self, width: int) -> list[Text]:
        """The command in lines of its own, or a line on where to find it: a terminal would break or change a long or odd one."""
        lines = self.found.next.command.splitlines()
        longest = max((cell_len(line) for line in lines), default=0)
        indent = _LABEL if longest + _LABEL <= width else 0
        if len(lines) > _COMMAND or longest > width or not all(map(str.isprintable, lines)):
            return [Text(f"{'':{_LABEL}}(the command does not fit here: --details full shows it)")]
        return [Text(f"{'':{indent}}{line}", style="bold") for line in lines]


def _limits(blocks: Sequence[Block], least: Sequence[int], free: int) -> list[int]:
    """Lines for each part: first its least, then what it needs, in order, while lines are free."""
    needed = [len(block(free)) for block in blocks]
    limits = [min(a, b) for a, b in zip(least, needed, strict=True)]
    for i, wanted in enumerate(needed):
        limits[i] += max(0, min(wanted - limits[i], free - sum(limits)))
    return limits


def _labelled(label: str, lines: Sequence[Text]) -> list[Text]:
    return [Text.assemble((f"{'' if i else label:{_LABEL}}", "bold"), line) for i, line in enumerate(lines)]


def _cut(text: str, width: int, lines: int, console: Console, style: str = "") -> list[Text]:
    """The text wrapped at words, in at most `lines` lines; the last ends in "…" where it was cut."""
    wrapped = Text(" ".join(text.split()), style=style).wrap(console, width, overflow="fold")
    for line in wrapped:
        line.rstrip()
    if len(wrapped) <= lines:
        return list(wrapped)
    last = wrapped[lines - 1]
    last.truncate(width - 2)
    last.append(" …")
    return list(wrapped)[:lines]


def _warned(warnings: Sequence[str], width: int, lines: int, console: Console) -> list[Text]:
    """Warnings in two lines each where all fit so, else in one; the last line counts those that are not shown."""
    for each in (2, 1):
        shown = [_cut(w, width, each, console, "yellow") for w in warnings]
        if sum(map(len, shown)) <= lines:
            return [line for block in shown for line in block]
    rest = len(warnings) - lines + 1
    more = Text(f"and {rest} more: --details full", style="yellow")
    return [line for block in shown[: lines - 1] for line in block] + [more]
