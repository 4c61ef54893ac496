"""What kernel calls cost by measured runs, carried over to sets of kernels and to cases that were not measured.

A delta is a run with one kind of kernel minus the run without kernels of the same table. Nothing is carried over between devices
or regimes: their compilers and runtimes differ."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from .evidence import Case, Evidence, MeasuredRun, Table, kind_of, same_form
from .noise import median_noise, threshold

__all__ = ["RUINOUS", "Applied", "Delta", "RunsPrediction", "applied", "delta", "deltas", "noise", "predict", "ruined"]

RUINOUS = 2.0
"""A run that many times slower than the one without kernels is blamed on the stack, which cannot deal with kernel calls as such."""

Basis = Literal["measured", "assumed"]


@dataclass(frozen=True)
class Delta:
    """A run with one kind of kernel against the run without.

    Attributes:
        kernel: as the run names it: "qkv:triple".
        table, run: the run, and the table that it is in.
    """

    kernel: str
    table: Table
    run: MeasuredRun

    @property
    def calls(self) -> int:
        """Kernel calls a step."""
        return self.run.calls[self.kernel]

    @property
    def s_per_step(self) -> float:
        """Seconds that a step takes longer; less than zero where the kernel is faster."""
        return self.run.warm_s_per_step - self.table.baseline.warm_s_per_step

    @property
    def us_per_call(self) -> float:
        """Microseconds that each call adds."""
        return self.s_per_step / self.calls * 1e6

    @property
    def ratio(self) -> float:
        """Step with the kernel / step without."""
        return self.run.warm_s_per_step / self.table.baseline.warm_s_per_step

    @property
    def threshold(self) -> float:
        """Share of a step below which the difference is noise."""
        return noise(self.table, self.run)

    @property
    def noise_us_per_call(self) -> float:
        """`threshold` as microseconds a call."""
        return self.threshold * self.table.baseline.warm_s_per_step / self.calls * 1e6

    @property
    def neutral(self) -> bool:
        """Whether the difference is within the noise."""
        return abs(self.ratio - 1) <= self.threshold

    @property
    def text(self) -> str:
        """ "0.824 -> 14.860 s a step (18.0 times)"."""
        change = f"{self.ratio:.1f} times" if self.ratio >= RUINOUS else f"{self.ratio - 1:+.1%}"
        return f"{self.table.baseline.warm_s_per_step:.3f} -> {self.run.warm_s_per_step:.3f} s a step ({change})"


@dataclass(frozen=True)
class Applied:
    """Evidence for one kernel call of a case.

    Attributes:
        us_per_call: measured microseconds that a call adds to a step: the kernel and the boundary together.
        noise_us_per_call: an absolute value of `us_per_call` below this is noise.
        neutral: whether it is below.
        ruinous: whether kernel calls as such do not work in that stack. `us_per_call` is then about the stack, not the kernel.
        exact: whether exactly this model, these sizes and this form were measured.
        basis: "measured", or "assumed" where another form of the kernel was measured.
        why: the figures, with the model and sizes that they were measured on.
    """

    us_per_call: float
    noise_us_per_call: float
    neutral: bool
    ruinous: bool
    exact: bool
    basis: Basis
    why: str


@dataclass(frozen=True)
class RunsPrediction:
    """The time of a step with a set of kernels, predicted from measured deltas.

    Attributes:
        kernels: the set, as given.
        ratio: predicted step with the kernels / step without; that of the measured model where the case is another one.
        baseline_s, predicted_s: seconds a step; None where this case was not measured without kernels.
        measured_s: seconds a step of a run with exactly this set; None without such a run.
        missing: kernels of the set that were not measured; they are assumed to change nothing.
        threshold: fraction of a step below which a difference is noise; every kind of kernel adds its own.
        basis: "assumed" where a figure of another form had to be used.
        why: the arithmetic, and its difference from a measured run.
    """

    kernels: tuple[str, ...]
    ratio: float
    baseline_s: float | None
    predicted_s: float | None
    measured_s: float | None
    missing: tuple[str, ...]
    threshold: float
    basis: Basis
    why: str

    @property
    def error(self) -> float | None:
        """predicted / measured - 1."""
        return self.predicted_s / self.measured_s - 1 if self.predicted_s and self.measured_s else None


def noise(table: Table, run: MeasuredRun) -> float:
    """By what share of a step a run may differ from the one without kernels and still be noise.

    A run with `beside_steps_s` is compared with those steps: they met the same slow minutes of the machine.
    """
    steps = run.beside_steps_s
    base = median_noise(steps) / statistics.median(steps) if steps else table.baseline.noise
    return threshold(run.noise, base, table.drift)


def delta(evidence: Evidence, case: Case, kernel: str) -> Delta | None:
    """The best run with `kernel` ("qkv:triple") alone: of its form before other forms, then of this case, then the latest.

    The form comes first because a call of another form moves other tensors.
    """
    found = [
        Delta(run.kernels[0], table, run)
        for table in evidence.tables_for(case)
        for run in table.runs
        if len(run.kernels) == 1 and kind_of(run.kernels[0]) == kind_of(kernel)
    ]
    return min(found, key=lambda d: not same_form(d.kernel, kernel), default=None)  # the first of the best


def deltas(evidence: Evidence, case: Case) -> dict[str, Delta]:
    """The best delta of each kind of kernel that was measured on this device in this regime."""
    names = {k for t in evidence.tables_for(case) for r in t.runs if len(r.kernels) == 1 for k in r.kernels}
    found = ((name, delta(evidence, case, name)) for name in sorted(names))
    return {name: d for name, d in found if d is not None}


def ruined(evidence: Evidence, case: Case) -> Delta | None:
    """The worst run on this device, if it is ruinous and in the lazy regime: kernel calls as such do not work there.

    This is about the stack alone. No bandwidth and no launch time is derived from it.
    """
    worst = max(deltas(evidence, case).values(), key=lambda d: d.ratio, default=None)
    return worst if case.regime == "lazy" and worst is not None and worst.ratio >= RUINOUS else None


def applied(evidence: Evidence, case: Case, kernel: str) -> Applied | None:
    """The measured cost of one call of `kernel`, or None. Only runs on the same device in the same regime count."""
    found = delta(evidence, case, kernel)
    if found is None:
        return None
    form = same_form(found.kernel, kernel)
    return Applied(
        us_per_call=found.us_per_call,
        noise_us_per_call=found.noise_us_per_call,
        neutral=found.neutral,
        ruinous=found.ratio >= RUINOUS,
        exact=found.table.case == case and form,
        basis="measured" if form else "assumed",
        why=_why(found, case, kernel),
    )


def predict(evidence: Evidence, case: Case, kernels: Mapping[str, int] | Iterable[str]) -> RunsPrediction | None:
    """Add up the measured deltas of single kernels; None where none of them was measured.

    Args:
        evidence: measured runs.
        case: what the prediction is for.
        kernels: names, or calls a step by name. Calls scale a delta only where this case itself was measured. In another model
            the step grows with the calls, so the share of a step is kept instead.
    """
    counts = dict(kernels) if isinstance(kernels, Mapping) else dict.fromkeys(kernels)
    found = {name: delta(evidence, case, name) for name in counts}
    known = {name: d for name, d in found.items() if d is not None}
    if not known:
        return None
    scales = {name: _scale(d, case, name, counts) for name, d in known.items()}
    shares = {name: (d.ratio - 1) * scales[name] for name, d in known.items()}
    ratio = 1 + sum(shares.values())
    base = next((t for t in evidence.tables_for(case) if t.case == case), None)
    baseline = base.baseline.warm_s_per_step if base else None
    run = _measured(base, counts) if base else None
    return RunsPrediction(
        kernels=tuple(counts),
        ratio=ratio,
        baseline_s=baseline,
        predicted_s=baseline * ratio if baseline else None,
        measured_s=run.warm_s_per_step if run else None,
        missing=tuple(name for name, d in found.items() if d is None),
        threshold=noise(base, run) if base and run else _threshold(known, scales),
        basis="measured" if all(same_form(d.kernel, name) for name, d in known.items()) else "assumed",
        why=_arithmetic(known, case, shares, baseline, run),
    )


def _scale(found: Delta, case: Case, name: str, counts: Mapping[str, int | None]) -> float:
    """The factor on a measured delta: calls now / calls then in the same case, else this form's part of the calls of its kind."""
    calls = counts[name]
    if found.table.case == case and calls is not None:
        return calls / found.calls
    forms = [n for k, n in counts.items() if kind_of(k) == kind_of(name)]
    total = sum(n or 0 for n in forms)
    return (calls or 0) / total if total else 1 / len(forms)


def _threshold(known: Mapping[str, Delta], scales: Mapping[str, float]) -> float:
    """The noise of a sum: that of each kind, scaled with its calls. It never shrinks: fewer calls do not make a run steadier."""
    by_kind: dict[str, list[str]] = {}
    for name in known:
        by_kind.setdefault(kind_of(name), []).append(name)
    return sum(
        max(known[n].threshold for n in names) * max(1.0, sum(scales[n] for n in names)) for names in by_kind.values()
    )


def _measured(table: Table, counts: Mapping[str, int | None]) -> MeasuredRun | None:
    """The run of exactly these kernels, with as many calls."""
    run = table.run(counts)
    if run is None:
        return None
    for kernel, calls in run.calls.items():
        wanted = [n for name, n in counts.items() if kind_of(name) == kind_of(kernel)]
        if None not in wanted and sum(n or 0 for n in wanted) != calls:
            return None
    return run


def _why(found: Delta, case: Case, kernel: str) -> str:
    source = found.table.source.partition(":")[0]
    text = f"{found.text} with {found.calls} calls of {found.kernel} ({source}, {found.table.stack})"
    if found.table.case != case:
        text += f", measured on {found.table.case}"
    if not same_form(found.kernel, kernel):
        text += f"; {kernel} itself was not measured"
    return text


def _arithmetic(
    known: Mapping[str, Delta], case: Case, shares: Mapping[str, float], baseline: float | None, run: MeasuredRun | None
) -> str:
    if len(known) == 1:
        ((name, only),) = known.items()
        return _why(only, case, name)
    if baseline is None:
        parts = " ".join(f"{share:+.1%} ({name})" for name, share in shares.items())
        return f"added up: {parts}, measured on {next(iter(known.values())).table.case}"
    parts = " ".join(f"{share * baseline:+.3f} ({name})" for name, share in shares.items())
    predicted = baseline * (1 + sum(shares.values()))
    text = f"added up: {baseline:.3f} {parts} = {predicted:.3f} s a step"
    if run is None:
        return f"{text}; not measured together"
    off = predicted / run.warm_s_per_step - 1
    return f"{text}; measured together: {run.warm_s_per_step:.3f} ({abs(off):.1%} off)"
