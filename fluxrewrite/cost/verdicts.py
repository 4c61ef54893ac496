"""Whether a kernel pays off, before anything is compiled: by measured runs if there are any, else by predicted times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import InputError
from .deltas import RunsPrediction, predict, ruined
from .evidence import Case, Evidence
from .noise import NEUTRAL

__all__ = ["Candidate", "KernelVerdict", "ModelledStep", "on_plan", "verdicts"]

_Word = Literal["faster", "neutral", "slower"]


@dataclass(frozen=True)
class ModelledStep:
    """Predicted time of a whole step without and with a kernel.

    Attributes:
        without_us, with_us: microseconds a step without and with the kernel at all its sites.
        basis: "modelled", or "assumed" where an assumed figure decides.
        why: in words.
    """

    without_us: float
    with_us: float
    basis: Literal["modelled", "assumed"] = "modelled"
    why: str = ""

    def __post_init__(self) -> None:
        """Raise InputError for times that are not finite and positive."""
        for name in ("without_us", "with_us"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} {value!r}: a step takes a finite number of microseconds greater than 0")

    @property
    def ratio(self) -> float:
        """With / without."""
        return self.with_us / self.without_us


@dataclass(frozen=True)
class KernelVerdict:
    """Whether a kernel pays off in a regime, and why.

    Attributes:
        kernel: the kind; several are joined by "+".
        regime: "compile" or "lazy".
        verdict: one word.
        why: in words.
        basis: of `ratio`.
        ratio: time of a step with the kernel / time of a step without it.
        predicted_s: seconds a step with the kernel, where a step without it is known.
    """

    kernel: str
    regime: Literal["compile", "lazy"]
    verdict: Literal["faster", "neutral", "slower", "not_applicable"]
    why: str
    basis: Literal["measured", "modelled", "assumed"]
    ratio: float | None = None
    predicted_s: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One kind of kernel in one model.

    Attributes:
        kernel: the kind: "qkv".
        calls: calls a step at eligible sites, by form: {"triple": 10}; {"": n} where the form does not matter.
        refusals: why sites are not eligible, one text each.
        modelled: predicted times, used where nothing was measured.
    """

    kernel: str
    calls: Mapping[str, int] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    modelled: ModelledStep | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Calls a step by full name: {"qkv:triple": 10}."""
        return {f"{self.kernel}:{form}" if form else self.kernel: n for form, n in self.calls.items() if n}


def verdicts(
    candidates: Sequence[Candidate], case: Case, evidence: Evidence, combinations: Iterable[Iterable[str]] = ()
) -> tuple[KernelVerdict, ...]:
    """A verdict for each candidate, then for each combination of them, in the regime of `case`.

    Without evidence and without `modelled` times, a candidate has no verdict.

    Args:
        candidates: one for each kind of kernel.
        case: model, sizes, device and regime.
        evidence: measured runs.
        combinations: kinds of kernel to judge together: [("qkv", "attention")].

    Raises:
        InputError: a combination that names no candidate.
    """
    by_name = {c.kernel: c for c in candidates}
    found = [_one(c, case, evidence) for c in candidates]
    for names in combinations:
        members = tuple(names)
        for name in members:
            if name not in by_name:
                raise InputError(f"no kernel {name!r} to judge in {'+'.join(members)}; there are {', '.join(by_name)}")
        found.append(_together([by_name[n] for n in members], case, evidence))
    return tuple(v for v in found if v is not None)


def on_plan(candidates: Sequence[Candidate], case: Case, evidence: Evidence) -> KernelVerdict | None:
    """A verdict on all candidates together in seconds a step, from runs of exactly this case.

    None where the case was not measured, where one of several candidates was not, and where a single candidate was measured in
    another form only.
    """
    if not candidates or all(t.case != case for t in evidence.tables_for(case)):
        return None
    unmodelled = [replace(c, modelled=None) for c in candidates]
    alone = len(candidates) == 1
    found = _one(unmodelled[0], case, evidence) if alone else _together(unmodelled, case, evidence)
    if found is None or found.predicted_s is None or (alone and found.basis != "measured"):
        return None
    return found


def _one(candidate: Candidate, case: Case, evidence: Evidence) -> KernelVerdict | None:
    if not candidate.counts:
        return _not_applicable(candidate.kernel, candidate.refusals, case)
    prediction = predict(evidence, case, candidate.counts)
    runs = None if prediction is None or prediction.missing else _from_runs(candidate.kernel, case, prediction)
    if runs is not None and prediction is not None and prediction.basis == "measured":
        return runs
    # Measured beats modelled, but only for the same form: a call of another form moves other tensors, so those runs come last.
    return _by_stack(candidate.kernel, case, evidence) or _from_model(candidate, case) or runs


def _together(members: Sequence[Candidate], case: Case, evidence: Evidence) -> KernelVerdict | None:
    name = "+".join(c.kernel for c in members)
    usable = [c for c in members if c.counts]
    if len(usable) < len(members):
        refusals = [f"{c.kernel}: {r}" for c in members if not c.counts for r in c.refusals]
        return _not_applicable(name, refusals, case)
    counts = {k: n for c in usable for k, n in c.counts.items()}
    prediction = predict(evidence, case, counts)
    if prediction is None:
        return _by_stack(name, case, evidence) or _mixed(name, usable, case, evidence)
    if not prediction.missing:
        return _from_runs(name, case, prediction)
    if prediction.ratio - 1 > 1 + prediction.threshold:  # a kernel saves the whole step at most
        missing = ", ".join(prediction.missing)
        why = f"{prediction.why}; {missing} was not measured, and could not make up for that even if it took no time"
        return _verdict(
            name,
            case,
            "slower",
            why=why,
            basis=prediction.basis,
            ratio=prediction.ratio,
            seconds=prediction.predicted_s,
        )
    return _mixed(name, usable, case, evidence)


def _from_runs(name: str, case: Case, p: RunsPrediction) -> KernelVerdict:
    """A run of exactly this set counts before the sum of single deltas, which ignores how kernels affect each other."""
    seconds = p.measured_s or p.predicted_s
    ratio = p.measured_s / p.baseline_s if p.measured_s and p.baseline_s else p.ratio
    word = _word(ratio, p.threshold)
    why = p.why if word != "neutral" else f"{p.why}; within {p.threshold:.1%}, taken as noise"
    return _verdict(name, case, word, why=why, basis=p.basis, ratio=ratio, seconds=seconds)


def _by_stack(name: str, case: Case, evidence: Evidence) -> KernelVerdict | None:
    """In a lazy stack where one kind of kernel call was ruinous, others are assumed to be ruinous too."""
    worst = ruined(evidence, case)
    if worst is None:
        return None
    seen = f"{worst.text} with {worst.calls} calls of {worst.kernel}"
    why = f"kernel calls are ruinous in this stack: {seen}; {name} was not measured"
    return _verdict(name, case, "slower", why=why, basis="assumed")


def _from_model(candidate: Candidate, case: Case) -> KernelVerdict | None:
    m = candidate.modelled
    if m is None:
        return None
    why = f"{m.without_us / 1e3:.2f} -> {m.with_us / 1e3:.2f} ms a step{': ' + m.why if m.why else ''}"
    word = _word(m.ratio, NEUTRAL)
    return _verdict(candidate.kernel, case, word, why=why, basis=m.basis, ratio=m.ratio, seconds=m.with_us / 1e6)


def _mixed(name: str, members: Sequence[Candidate], case: Case, evidence: Evidence) -> KernelVerdict | None:
    """Adds up fractions of a step, some from runs and some predicted. Seconds of the two cannot be added."""
    single = [_one(c, case, evidence) for c in members]
    known = [v for v in single if v is not None and v.ratio is not None]
    if len(known) < len(members):
        return None
    ratio = 1 + sum((v.ratio or 1) - 1 for v in known)
    parts = ", ".join(f"{v.kernel} {(v.ratio or 1) - 1:+.1%} ({v.basis})" for v in known)
    basis: Literal["modelled", "assumed"] = "assumed" if any(v.basis == "assumed" for v in known) else "modelled"
    why = f"shares of a step added up: {parts}"
    return _verdict(name, case, _word(ratio, NEUTRAL), why=why, basis=basis, ratio=ratio)


def _not_applicable(name: str, refusals: Sequence[str], case: Case) -> KernelVerdict:
    distinct = list(dict.fromkeys(refusals))
    why = "; ".join(distinct[:3]) if distinct else "no site found"
    if len(distinct) > 3:
        why += f"; and {len(distinct) - 3} more"
    return KernelVerdict(kernel=name, regime=case.regime, verdict="not_applicable", why=why, basis="modelled")


def _word(ratio: float, threshold: float) -> _Word:
    if ratio > 1 + threshold:
        return "slower"
    return "faster" if ratio < 1 - threshold else "neutral"


def _verdict(
    name: str,
    case: Case,
    word: _Word,
    *,
    why: str,
    basis: Literal["measured", "modelled", "assumed"],
    ratio: float | None = None,
    seconds: float | None = None,
) -> KernelVerdict:
    """A verdict with ratio and seconds rounded to six digits: more is not known, and equal plans give equal reports."""
    return KernelVerdict(
        kernel=name,
        regime=case.regime,
        verdict=word,
        why=why,
        basis=basis,
        ratio=None if ratio is None else float(f"{ratio:.6g}"),
        predicted_s=None if seconds is None else float(f"{seconds:.6g}"),
    )
