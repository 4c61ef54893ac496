"""One case: a program, respellings of it, perhaps something that makes it close but wrong; and the verdict on it."""

from __future__ import annotations

import functools
import random
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .calls import CALLS
from .edit import Draft, Draw, Unfit
from .judge import TOLERANCE, Found, Judge, apart, outcome
from .noops import NOOPS
from .programs import PROGRAMS, Program, program
from .structure import INPLACE, STRUCTURE
from .views import VIEWS
from .wrong import NEVER, WRONG

__all__ = ["RESPELLINGS", "Case", "Verdict", "drawn", "judged", "made"]

Edit = Callable[[Draft, Draw], None]
RESPELLINGS: Mapping[str, Edit] = {**CALLS, **VIEWS, **NOOPS, **STRUCTURE, **INPLACE}
LEFT = frozenset(INPLACE)
"""Respellings after which a site may be left alone, as its guards have it."""
MOST = 8
TRIES = 8


@dataclass(frozen=True)
class Case:
    """What a case is made from; equal cases are equal graphs.

    Attributes:
        program: a name of `PROGRAMS`.
        respellings: names of `RESPELLINGS` with their numbers, in the order in which they are made, without those that do not fit.
        wrong: names of `WRONG` with their numbers, of which the first that fits is made; none for an equivalent case.
        before: how many of the respellings are made before that.
        whole: whole regions are looked for too.
    """

    program: str
    respellings: tuple[tuple[str, int], ...] = ()
    wrong: tuple[tuple[str, int], ...] = ()
    before: int = 0
    whole: bool = True


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Attributes:
        status: "found" (all that the program has), "left" (fewer sites, the same numbers), "wrong", "crash"; "mistaken" where
            a change of `NEVER` is found all the same; "void" where nothing of the case could be made.
        made: the respellings that could be made.
        wrong: what made it wrong, or nothing.
        found: what the passes made of it.
        base: the sites of the program.
        text: the case and its graph.
    """

    status: str
    made: tuple[str, ...] = ()
    wrong: str = ""
    found: Found = field(default_factory=Found)
    base: Counter[str] = field(default_factory=Counter)
    text: str = ""

    @property
    def expected(self) -> bool:
        """Whether all sites of the program must be found."""
        return not self.wrong and not LEFT & set(self.made)

    @property
    def bad(self) -> bool:
        """Whether a person must look at it."""
        return self.status in ("wrong", "crash", "mistaken")


def drawn(number: int, wrong: bool) -> Case:
    """The case of that number."""
    draw = random.Random(number)
    names, changes = list(RESPELLINGS), list(WRONG)
    steps = tuple(
        (draw.choice(names), draw.randrange(2**20))
        for _ in range(draw.randint(0 if wrong else 2, 4 if wrong else MOST))
    )
    tries = tuple((draw.choice(changes), draw.randrange(2**20)) for _ in range(TRIES if wrong else 0))
    return Case(draw.choice(PROGRAMS), steps, tries, draw.randint(0, len(steps)), draw.random() < 0.7)


def made(case: Case) -> tuple[Draft, tuple[str, ...], str]:
    """The graph of a case, which respellings of it could be made, and what makes it wrong."""
    making = _Making(case.program)
    names, wrong = [], ""
    for at, step in enumerate((*case.respellings, None)):
        for change in case.wrong if at == case.before else ():
            if not wrong and making.edited(WRONG[change[0]], change[1]):
                wrong = change[0]
        if step is not None and making.edited(RESPELLINGS[step[0]], step[1]):
            names.append(step[0])
    return making.draft, tuple(names), wrong


class _Making:
    """A draft of a program, and the edits that it has had."""

    def __init__(self, name: str) -> None:
        self._graph = program(name).graph
        self._done: list[tuple[Edit, int]] = []
        self.draft = Draft(self._graph)

    def edited(self, edit: Edit, number: int) -> bool:
        """Whether the edit could be made. If not the draft is as before."""
        self.draft.touched = False
        try:
            edit(self.draft, Draw(number))
            self.draft.settle()
        except Unfit:
            if self.draft.touched:
                self._again()
            return False
        self._done.append((edit, number))
        return True

    def _again(self) -> None:
        self.draft = Draft(self._graph)
        for edit, number in self._done:
            edit(self.draft, Draw(number))
            self.draft.settle()


@functools.cache
def base_sites(name: str, whole: bool) -> Counter[str]:
    """The sites of a program."""
    base = program(name)
    found = Judge()(base.graph, base.given, _outcome(name), base.dtype, whole)
    if found.crash or found.difference > 1 or not found.sites:
        raise AssertionError(f"{name} is no program that the passes know: {found}")
    return found.sites


@functools.cache
def _outcome(name: str) -> list[Any]:
    base = program(name)
    return outcome(base.graph, base.given)


def judged(case: Case, judge: Judge) -> Verdict:
    """Make the graph of a case and say what comes of it."""
    base = program(case.program)
    draft, names, wrong = made(case)
    if (case.wrong and not wrong) or (not case.wrong and not names):
        return Verdict("void")
    text = f"{case}\nmade: {', '.join((*names, wrong))}\n{draft.graph}"
    try:
        results = outcome(draft.graph, base.given)
        changed = _changed(base, results)
    except Exception as error:
        # A close-but-wrong one only has to be something else, and may be nothing at all; and fake tensors view some reshapes of
        # expanded tensors that torch, which copied these, does not.
        if wrong or "view size is not compatible" in str(error):
            return Verdict("void")
        raise AssertionError(f"the harness made a graph that does not run\n{text}\n{traceback.format_exc()}") from None
    if not wrong and changed > 1:
        raise AssertionError(f"the harness made another program, off by {changed} of the tolerance\n{text}")
    found = judge(draft.graph, base.given, results, base.dtype, case.whole)
    sites = base_sites(case.program, case.whole)
    return Verdict(_status(found, sites, wrong if changed > 1 else ""), names, wrong, found, sites, text)


def _status(found: Found, sites: Counter[str], wrong: str) -> str:
    if found.crash:
        return "crash"
    if not found.difference <= 1:
        return "wrong"
    kind = NEVER.get(wrong)
    if kind is not None and sites[kind] and found.sites[kind] >= sites[kind]:
        return "mistaken"
    return "left" if any(found.sites[kind] < count for kind, count in sites.items()) else "found"


def _changed(base: Program, results: list[Any]) -> float:
    """How far results are from those of the program, in tolerances; what is returned beside them does not count."""
    expected, inputs = _outcome(base.name), len(base.given)
    count = len(expected) - inputs
    return apart([*results[:count], *results[len(results) - inputs :]], expected) / TOLERANCE[base.dtype]
