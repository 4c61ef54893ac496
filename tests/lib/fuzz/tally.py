"""Verdicts on many cases, added up."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .case import Verdict, drawn, judged
from .judge import Judge

__all__ = ["GOAL", "KINDS", "Tally", "is_wrong", "ran"]

GOAL = 0.99
"""The share of equivalent cases in which every site must be found."""
KINDS = ("both", "equivalent", "wrong")


@dataclass
class Tally:
    """What came of cases.

    Attributes:
        equivalent: verdicts on equivalent cases in which all sites must be found, by status.
        lenient: on those in which sites may be left alone.
        wrong: on close-but-wrong ones.
        by_name: (respelling or change, status) of the same verdicts.
        bad: the texts of cases that a person must look at.
        missed: those of equivalent cases that were not found.
        faults: what the harness itself raised, by the number of the case, which nothing was told about.
        numbers: of the cases that are bad.
    """

    equivalent: Counter[str] = field(default_factory=Counter)
    lenient: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    by_name: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)

    def add(self, verdict: Verdict, wrong: bool) -> None:
        """One verdict more."""
        into = self.wrong if wrong else self.equivalent if verdict.expected else self.lenient
        into[verdict.status] += 1
        for name in (
            (verdict.wrong,) if wrong else set(verdict.made) if into is self.equivalent or verdict.bad else {"in place"}
        ):
            self.by_name[name, verdict.status] += 1
        if verdict.bad:
            self.bad.append(f"{verdict.status}: {verdict.found}\n{verdict.text}")
        elif verdict.status == "left" and into is self.equivalent:
            self.missed.append(f"{verdict.found.misses}\n{verdict.text}")

    def join(self, other: Tally) -> None:
        """The verdicts of another tally too."""
        for name in ("equivalent", "lenient", "wrong", "by_name"):
            getattr(self, name).update(getattr(other, name))
        self.bad += other.bad
        self.missed += other.missed
        self.faults |= other.faults
        self.numbers += other.numbers

    @property
    def found(self) -> float:
        """Share of the equivalent cases that were found, 1 where there is none."""
        judged = self.equivalent.total() - self.equivalent["void"]
        return self.equivalent["found"] / judged if judged else 1.0

    @property
    def refused(self) -> float:
        """Share of the close-but-wrong cases without a wrong rewrite."""
        judged = self.wrong.total() - self.wrong["void"]
        return 1 - (self.wrong["wrong"] + self.wrong["crash"]) / judged if judged else 1.0


def is_wrong(number: int, kind: str) -> bool:
    """Whether the case of that number is a close-but-wrong one: every third of "both"."""
    return kind == "wrong" or (kind == "both" and number % 3 == 0)


def ran(numbers: Iterable[int], judge: Judge, kind: str) -> Tally:
    """Judge the cases of these numbers. One that the harness cannot make or run is a fault of its, and not the end."""
    tally = Tally()
    for number in numbers:
        wrong = is_wrong(number, kind)
        try:
            verdict = judged(drawn(number, wrong), judge)
        except Exception:
            tally.faults[number] = traceback.format_exc()
        else:
            tally.add(verdict, wrong)
            tally.numbers += [number] if verdict.bad else []
    return tally
