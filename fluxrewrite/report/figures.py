"""The predicted figures of a report as rows and sentences, for the terminal and for the page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..rewrite.search import MARGIN
from .format import bytes_text, change_text, folded, time_text
from .model import ChoiceInfo, Effect, Report, StepInfo, Verdict

__all__ = [
    "ChoiceRow",
    "FigureRow",
    "choice_rows",
    "choice_times",
    "compile_seconds",
    "figure_rows",
    "has_range",
    "source_of",
]


@dataclass(frozen=True)
class FigureRow:
    """One figure of a step before and after the plan, in words; `change` is "" where nothing changes."""

    name: str
    before: str
    after: str
    change: str
    basis: str


def figure_rows(report: Report) -> list[FigureRow]:
    """What the plan changes in a step; the time that decides comes first. No rows without predictions."""
    e, s = report.effect, report.segments
    if e is None:
        return []
    fused = "assumed" if "(assumed)" in e.compiler else "modelled"
    counts = [("compiled kernels and calls", e.kernels_before, e.kernels_after)]
    if s is not None:
        counts.append(("executables", s.before, s.after))
    traffic = FigureRow(
        "memory traffic",
        bytes_text(e.bytes_before),
        bytes_text(e.bytes_after),
        change_text(e.bytes_before, e.bytes_after),
        fused,
    )
    times = [_modelled(e, "time")]
    if e.measured is not None:
        times = [_measured(e.measured), _modelled(e, "time, by the model")]
    changes = {name: f"{new - old:+d}" if new != old else "" for name, old, new in counts}
    return [*times, traffic, *(FigureRow(name, str(old), str(new), changes[name], fused) for name, old, new in counts)]


def _modelled(effect: Effect, name: str) -> FigureRow:
    before, after = effect.step_before, effect.step_after
    basis = "assumed" if "assumed" in (before.basis, after.basis) else "modelled"
    return FigureRow(name, time_text(before.us), time_text(after.us), change_text(before.us, after.us), basis)


def _measured(verdict: Verdict) -> FigureRow:
    after = (verdict.predicted_s or 0.0) * 1e6
    before = after / (verdict.ratio or 1.0)
    return FigureRow("time, by runs", time_text(before), time_text(after), change_text(before, after), verdict.basis)


def source_of(effect: Effect) -> str:
    """Where the figures come from."""
    if effect.measured is None:
        return "A model's figures: nothing was run on hardware."
    return "A model's figures, and runs of this very case; nothing was run now."


def has_range(step: StepInfo) -> bool:
    """Whether the ends of the range of a step are apart enough to be shown."""
    return step.high_us - step.low_us > 0.001 * step.us


def compile_seconds(effect: Effect) -> str:
    """Seconds of a cold compile with their bounds, as "862 s (592 to 1638)"; "unknown" where no runs give them."""
    c = effect.compile
    if c.seconds is None:
        return "unknown"
    if c.low_s is not None and c.high_s is not None and c.low_s < c.high_s:
        return f"{c.seconds:.0f} s ({c.low_s:.0f} to {c.high_s:.0f})"
    return f"{c.seconds:.0f} s"


@dataclass(frozen=True)
class ChoiceRow:
    """What "auto" takes in blocks that are decided alike: how many blocks, at which folded path, and the times that decide."""

    path: str
    chosen: str
    times: str
    blocks: int
    basis: str


def choice_rows(report: Report) -> list[ChoiceRow]:
    """The choices of "auto" or "measure" by folded path, set of kernels and times, in the order of the report."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for choice in report.effect.choices if report.effect else ():
        counts[folded(choice.block) or "the rest", choice.chosen, choice_times(choice), choice.basis] += choice.blocks
    return [ChoiceRow(path, chosen, times, n, basis) for (path, chosen, times, basis), n in counts.items()]


def choice_times(choice: ChoiceInfo) -> str:
    """The times behind a choice, in microseconds of a block: its own, that without kernels, and the next best."""
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
