"""One case: a program, respellings of it, perhaps something that makes it close but wrong; and the verdict on it."""

from __future__ import annotations

import functools
import random
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .calls import CALLS
from .edit import Draft, Draw, Unfit
from .judge import TOLERANCE, Found, Judge, apart, outcome
from .noops import NOOPS
from .programs import PROGRAMS, Program, program
from .structure import INPLACE, STRUCTURE
from .views import VIEWS
from .wrong import WRONG

__all__ = ["RESPELLINGS", "Case", "Verdict", "drawn", "judged", "made"]

RESPELLINGS: Mapping[str, Callable[[Draft, Draw], None]] = {**CALLS, **VIEWS, **NOOPS, **STRUCTURE, **INPLACE}
LEFT = frozenset(INPLACE)
"""Respellings after which a site may be left alone, as its guards have it."""
MOST = 6


@dataclass(frozen=True)
class Case:
    """What a case is made from; equal cases are equal graphs.

    Attributes:
        program: a name of `PROGRAMS`.
        wrong: a name of `WRONG` with its number, or None.
        respellings: names of `RESPELLINGS` with their numbers, in the order in which they are made.
        whole: whole regions are looked for too.
    """

    program: str
    respellings: tuple[tuple[str, int], ...] = ()
    wrong: tuple[str, int] | None = None
    whole: bool = True


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Attributes:
        status: "found" (as in the program), "left" (fewer sites, same numbers), "wrong", "crash"; "void" where nothing of the case
            could be made, or a wrong program computes the same as before.
        made: the respellings that could be made.
        found: what the passes made of it.
        base: the sites of the program.
        text: the graph.
    """

    status: str
    made: tuple[str, ...]
    found: Found
    base: Counter[str] = field(default_factory=Counter)
    text: str = ""

    @property
    def expected(self) -> bool:
        """Whether all sites of the program must be found."""
        return not LEFT & set(self.made)


def drawn(number: int, wrong: bool) -> Case:
    """The case of that number."""
    draw = random.Random(number)
    steps = [(draw.choice(list(RESPELLINGS)), draw.randrange(2**20)) for _ in range(draw.randint(1, MOST))]
    change = (draw.choice(list(WRONG)), draw.randrange(2**20)) if wrong else None
    return Case(draw.choice(PROGRAMS), tuple(steps[: draw.randint(0, 2)] if wrong else steps), change, draw.random() < 0.7)


def made(case: Case) -> tuple[Draft, tuple[str, ...]]:
    """The graph of a case, and which of its edits could be made."""
    draft = Draft(program(case.program).graph)
    names: list[str] = []
    if case.wrong is not None:
        draft = _edited(draft, case.wrong, WRONG, names)
        if not names:
            return draft, ()
    for step in case.respellings:
        draft = _edited(draft, step, RESPELLINGS, names)
    return draft, tuple(names)


def _edited(
    draft: Draft, step: tuple[str, int], edits: Mapping[str, Callable[[Draft, Draw], None]], names: list[str]
) -> Draft:
    """A draft with one more edit, which is named then; as it was where the edit does not fit."""
    before = Draft(draft.graph)
    try:
        edits[step[0]](draft, Draw(step[1]))
        draft.settle()
    except Unfit:
        return before
    names.append(step[0])
    return draft


@functools.cache
def base_sites(name: str, whole: bool) -> Counter[str]:
    """The sites of a program."""
    base = program(name)
    found = Judge()(base.graph, base.given, base.dtype, whole)
    if found.crash or found.difference > 1 or not found.sites:
        raise AssertionError(f"{name} is no program that the passes know: {found}")
    return found.sites


@functools.cache
def _outcome(name: str) -> list[object]:
    base = program(name)
    return outcome(base.graph, base.given)


def judged(case: Case, judge: Judge) -> Verdict:
    """Make the graph of a case and say what comes of it."""
    base = program(case.program)
    draft, names = made(case)
    if not names:
        return Verdict("void", (), Found())
    text = f"{case}\n{draft.graph}"
    try:
        changed = _changed(base, draft)
    except Exception:
        if case.wrong is not None:  # it only has to be something else, and may be nothing at all
            return Verdict("void", names, Found())
        raise AssertionError(f"the harness made a graph that does not run\n{text}\n{traceback.format_exc()}") from None
    if case.wrong is None and changed > 1:
        raise AssertionError(f"the harness made another program, off by {changed} of the tolerance\n{text}")
    if case.wrong is not None and changed < 1:
        return Verdict("void", names, Found())
    found = judge(draft.graph, base.given, base.dtype, case.whole)
    sites = base_sites(case.program, case.whole)
    status = "crash" if found.crash else "wrong" if not found.difference <= 1 else "found"
    if status == "found" and any(found.sites[kind] < count for kind, count in sites.items()):
        status = "left"
    return Verdict(status, names, found, sites, text)


def _changed(base: Program, draft: Draft) -> float:
    """How far the graph is from the program, in tolerances."""
    expected, results = _outcome(base.name), outcome(draft.graph, base.given)
    inputs = len(base.given)
    count = len(expected) - inputs
    results = [*results[:count], *results[len(results) - inputs :]]
    return apart(results, expected) / TOLERANCE[base.dtype]
