"""How long a cold compile will take: the kernels and executables to compile, and the compiles that were timed.

Runs time whole first steps, not the compiler alone, so every figure here is the first step of a first run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from .evidence import Case, Evidence, MeasuredRun, Table, kind_of, same_form

__all__ = ["CompileCost", "compile_cost"]


@dataclass(frozen=True)
class CompileCost:
    """Estimate of a cold compile.

    Attributes:
        specialisations: kernels to compile; calls of one kernel with the same shapes and constants share one.
        executables: programs that the graph compiler makes.
        baseline_s: seconds of the first step without kernels; None where nothing was measured on this device in this regime.
        seconds, low_s, high_s: seconds of the first step with kernels, and its bounds; None in the same case.
        basis: "measured" for a run of exactly this set, model and sizes; else "assumed".
        why: the runs behind the figures, in words.
    """

    specialisations: int
    executables: int
    baseline_s: float | None
    seconds: float | None
    low_s: float | None
    high_s: float | None
    basis: Literal["measured", "assumed"]
    why: str

    @property
    def ratio(self) -> float | None:
        """With kernels / without."""
        return self.seconds / self.baseline_s if self.seconds and self.baseline_s else None


@dataclass(frozen=True)
class _Extra:
    """What one kernel adds to the first step: seconds, their bounds, and the arithmetic in words."""

    low: float
    seconds: float
    high: float
    text: str


def compile_cost(
    evidence: Evidence, case: Case, kernels: Mapping[str, Collection[Hashable]], executables: int = 1
) -> CompileCost:
    """Estimate a cold compile.

    A kernel is compiled once for each specialisation. Several kinds do not add up: the shipped runs took 533 s without kernels,
    651 s and 862 s with one kind, and 830 s with both. The estimate is therefore what the most expensive kind adds. The bounds
    are what the cheapest kind adds and the sum of all. A kind that was never timed is assumed to add, for each specialisation,
    between as much as the cheapest and as much as the most expensive kind that was.

    Args:
        evidence: measured runs.
        case: model, sizes, device and regime.
        kernels: keys of the calls of each kernel ("qkv:triple"); calls with equal keys share a specialisation.
        executables: programs after the rewrite. They are counted, not priced: no run shows what splitting a program saves or adds.
    """
    counts = {name: len(set(keys)) for name, keys in kernels.items() if keys}
    why = f"no cold compile was timed on {case.device} in regime {case.regime}"
    blank = CompileCost(
        specialisations=sum(counts.values()),
        executables=executables,
        baseline_s=None,
        seconds=None,
        low_s=None,
        high_s=None,
        basis="assumed",
        why=why,
    )
    table = next((t for t in evidence.tables_for(case) if t.baseline.compile_s), None)
    if table is None:
        return blank
    known = replace(blank, baseline_s=table.baseline.compile_s)
    elsewhere = "" if table.case == case else f", measured on {table.case}"
    run = _measured(table, counts)
    if run is not None:
        s, why = run.compile_s, f"measured for this very set of kernels, {table.stack}{elsewhere}"
        return replace(known, seconds=s, low_s=s, high_s=s, basis="assumed" if elsewhere else "measured", why=why)
    return _added_up(known, table, counts, elsewhere)


def _measured(table: Table, counts: Mapping[str, int]) -> MeasuredRun | None:
    """The run of exactly these kernels, with as many specialisations of each if the run records them."""
    by_kind: Counter[str] = Counter()
    for name, count in counts.items():
        by_kind[kind_of(name)] += count
    run = table.run(counts)
    if run is None or run.compile_s is None:
        return None
    return run if all(_timed(run, kind) in (None, n) for kind, n in by_kind.items()) else None


def _added_up(known: CompileCost, table: Table, counts: Mapping[str, int], elsewhere: str) -> CompileCost:
    base = known.baseline_s or 0.0
    extras = [_extra(table, base, name, count) for name, count in counts.items()]
    found = [e for e in extras if e is not None]
    if len(found) < len(extras):
        why = f"{base:.0f} s without kernels{elsewhere}; no compile with a kernel was timed there"
        return replace(known, low_s=base, why=why)
    return replace(
        known,
        seconds=base + max(e.seconds for e in found),
        low_s=base + min(e.low for e in found),
        high_s=base + sum(e.high for e in found),
        why=f"{base:.0f} s without kernels; {'; '.join(e.text for e in found)}; the dearest counts{elsewhere}",
    )


def _timed(run: MeasuredRun, kernel: str) -> int | None:
    """Specialisations of that kernel in the run."""
    return next((n for k, n in run.specialisations.items() if kind_of(k) == kind_of(kernel)), None)


def _singles(table: Table, base: float) -> dict[str, float]:
    """Seconds that one specialisation adds, by kernel, from runs with one kind.

    Never less than 0: a compile that is faster with a kernel is noise, and would predict that more kernels compile faster.
    """
    return {
        r.kernels[0]: max(0.0, r.compile_s - base) / r.specialisations.get(r.kernels[0], 1)
        for r in table.runs
        if len(r.kernels) == 1 and r.compile_s
    }


def _extra(table: Table, base: float, kernel: str, count: int) -> _Extra | None:
    singles = _singles(table, base)
    for name, seconds in singles.items():
        if kind_of(name) == kind_of(kernel) and same_form(name, kernel):
            added = seconds * count
            return _Extra(added, added, added, f"{kernel} +{added:.0f} s ({count} x {seconds:.0f} s)")
    if not singles:
        return None
    low, high = count * min(singles.values()), count * max(singles.values())
    return _Extra(low, high, high, f"{kernel} +{low:.0f} to {high:.0f} s ({count} times what other kernels add)")
