"""The predicted part of the text: step, traffic and executables before and after, verdicts, and what "auto" would take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...rewrite.plan import CHOOSING
from ...rewrite.search import MARGIN
from ..advice import _as_taken
from ..model import ChoiceInfo, Effect, Report, StepInfo, Verdict
from .format import bytes_text, change_text, folded, time_text, trimmed
from .grid import grid

__all__ = ["choices", "figures", "prediction", "said_of", "times_of", "verdict_list"]

_WHY = 150  # characters: two lines


def prediction(report: Report) -> Iterable[RenderableType]:
    """What the plan changes, with the basis of each figure."""
    e = report.effect
    if e is None:
        yield Text("What these calls cost was not predicted.", style="dim")
        return
    yield Text(
        f"Predicted for {e.device}, {e.regime}; fusion by {e.compiler}; policy {report.summary.policy}", style="bold"
    )
    yield Text(said_of(e))
    yield _figures(report)
    for when, step in (("before", e.step_before), ("after", e.step_after)):
        if _spread(step):
            yield Text(f"step {when}: {time_text(step.low_us)} to {time_text(step.high_us)} at the ends of the ranges")
    c = e.compile
    seconds = "unknown" if c.seconds is None else f"{c.seconds:.0f} s"
    if c.low_s is not None and c.high_s is not None and c.low_s < c.high_s:
        seconds += f" ({c.low_s:.0f} to {c.high_s:.0f})"
    yield Text(f"cold compile: {seconds}, {c.basis}; distinct kernel calls: {c.specialisations}")
    yield Padding(Text(trimmed(c.why.rpartition("; ")[2], _WHY), style="dim"), (0, 0, 0, 2))
    if report.model.tp > 1:
        yield Text(f"tp {report.model.tp}: all sizes, bytes and times are those of one rank, without what is sent")


def said_of(effect: Effect) -> str:
    """Where the figures come from."""
    if effect.measured is None:
        return "A model's figures: nothing was run on hardware."
    return "A model's figures, and runs of this very case; nothing was run now."


def _figures(report: Report) -> Table:
    table = grid("a step", "before", "after", "change", "basis", left=("a step", "basis"))
    for row in figures(report):
        table.add_row(*row)
    return table


def figures(report: Report) -> list[tuple[str, str, str, str, str]]:
    """What the plan changes in a step: name, before, after, change, basis of each figure; nothing without predictions."""
    e, s = report.effect, report.segments
    if e is None:
        return []
    before, after = e.step_before, e.step_after
    worse = "assumed" if "assumed" in (before.basis, after.basis) else "modelled"
    fused = "assumed" if "(assumed)" in e.compiler else "modelled"
    counts = [("compiled kernels and calls", e.kernels_before, e.kernels_after)]
    if s is not None:
        counts.append(("executables", s.before, s.after))
    size = (bytes_text(e.bytes_before), bytes_text(e.bytes_after), change_text(e.bytes_before, e.bytes_after))
    time = (time_text(before.us), time_text(after.us), change_text(before.us, after.us), worse)
    times = [("time", *time)] if e.measured is None else [_runs_say(e.measured), ("time, by the model", *time)]
    return [
        *times,
        ("memory traffic", *size, fused),
        *((name, str(old), str(new), f"{new - old:+d}" if new != old else "", fused) for name, old, new in counts),
    ]


def _runs_say(verdict: Verdict) -> tuple[str, str, str, str, str]:
    after = (verdict.predicted_s or 0.0) * 1e6
    before = after / (verdict.ratio or 1.0)
    return ("time, by runs", time_text(before), time_text(after), change_text(before, after), verdict.basis)


def _spread(step: StepInfo) -> bool:
    return step.high_us - step.low_us > 0.001 * step.us


def verdict_list(verdicts: Sequence[Verdict]) -> Iterable[RenderableType]:
    """A line for each verdict, and why, shortened."""
    if not verdicts:
        return
    yield Text("\nVerdicts: a step with the kernel at all its sites / without", style="bold")
    width = max(len(v.kernel) for v in verdicts)
    for v in verdicts:
        ratio = "" if v.ratio is None else f"{v.ratio:.3f}"
        yield Text(f"{v.kernel:{width}}  {v.verdict:14}  {ratio:>6}  {v.basis}")
        yield Padding(Text(trimmed(v.why, _WHY), style="dim"), (0, 0, 0, 2))


def choices(report: Report) -> Iterable[RenderableType]:
    """For each kind of block what "auto" takes, and the times that speak for it."""
    found = report.effect.choices if report.effect else ()
    if not found:
        return
    policy = report.summary.policy
    head = "What --policy auto would take in each kind of block"
    if policy in CHOOSING:
        head = f"Plan: what {policy} took in each kind of block"
        if not all(_as_taken(c, report) for c in found):
            head = "Best for each kind of block, but not taken: see the reasons below"
    yield Text(f"\n{head} (predicted, us a block)", style="bold")
    counts: Counter[tuple[str, str, str]] = Counter()
    for choice in found:
        counts[folded(choice.block) or "the rest", choice.chosen, times_of(choice)] += choice.blocks
    for (block, chosen, times), blocks in counts.items():
        yield Text(f"{blocks} x {block}: {chosen}")
        yield Padding(Text(times, style="dim"), (0, 0, 0, 2))


def times_of(choice: ChoiceInfo) -> str:
    """The times that speak for a choice: its own, without kernels, and the next best."""
    times = choice.times_us
    parts = [f"{choice.chosen} {times[choice.chosen]:.1f}"] if choice.chosen in times else []
    if choice.chosen != "none" and "none" in times:
        parts.append(f"no kernel {times['none']:.1f}")
    others = [name for name in times if name not in (choice.chosen, "none")]
    if others:
        best = min(others, key=lambda name: times[name])
        close = choice.chosen == "none" and times[best] < times["none"]
        parts.append(f"next {best} {times[best]:.1f}{f', saves less than {MARGIN:.0%}' if close else ''}")
    return "; ".join(parts)
