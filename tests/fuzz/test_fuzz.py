"""Small programs respelled at random are found; close-but-wrong ones are never rewritten wrongly. `tools/fuzz.py` runs more."""

import logging

import fuzz.strategies
import pytest
import torch
from fuzz import RESPELLINGS, WRONG, Case, Draft, Draw, Judge, Tally, Unfit, judged, program, ran
from hypothesis import HealthCheck, Phase, given, settings

COUNTS = {"equivalent": 1300, "wrong": 700}


@pytest.fixture(autouse=True)
def _quiet():
    """Fake tensors log what an edit that does not fit made them raise."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def run(kind):
    tally, judge = Tally(), Judge()

    @settings(
        max_examples=COUNTS[kind],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(getattr(fuzz.strategies, kind))
    def each(case):
        verdict = judged(case, judge)
        tally.add(verdict, wrong=kind == "wrong")
        assert not verdict.bad, f"{verdict.status} {verdict.found}\n{verdict.text}"

    each()
    return tally


def test_equivalent_respellings_are_found():
    tally = run("equivalent")
    assert tally.found >= 0.99, "\n\n".join(tally.missed)
    assert tally.equivalent["void"] < 0.2 * COUNTS["equivalent"]


def test_close_but_wrong_programs_are_left_alone():
    tally = run("wrong")
    assert tally.refused == 1
    assert tally.wrong["void"] < 0.2 * COUNTS["wrong"]


@pytest.mark.parametrize("name", RESPELLINGS)
def test_every_respelling_fits_somewhere(name):
    forms = (
        "qkv_split_rest",
        "rope_pairwise_slices",
        "rope_matrix",
        "spelled_filled",
        "attention_turned",
        "region_block",
    )
    assert any(fits(RESPELLINGS[name], form, number) for form in forms for number in range(12))


@pytest.mark.parametrize("name", WRONG)
def test_every_change_fits_somewhere(name):
    forms = (
        "qkv_normed",
        "rope_slices",
        "spelled_filled",
        "rope_pairwise_halves",
        "attention_turned",
        "spelled_masked",
    )
    assert any(fits(WRONG[name], form, number) for form in forms for number in range(12))


def fits(edit, form, number):
    draft = Draft(program(f"{form}/apart/float32").graph)
    try:
        edit(draft, Draw(number))
        draft.settle()
    except Unfit:
        return False
    return True


def test_equal_cases_are_equal_graphs():
    case = Case(
        "region_block/apart/float32",
        (("copy", 5), ("reordered", 6), ("reshape split", 7)),
        (("operation put in", 8),),
        1,
    )
    one, two = (judged(case, Judge()) for _ in range(2))
    assert one.text == two.text
    assert one.wrong == "operation put in"


def test_the_judge_sees_a_wrong_rewrite(monkeypatch):
    from fluxrewrite.passes.attention.attention import Attention

    assert judged(Case("attention_plain/apart/float32", (("renamed", 1),)), Judge()).status == "found"
    emit = Attention.emit
    monkeypatch.setattr(Attention, "emit", lambda *given: [given[2].call(torch.mul, n, 1.01) for n in emit(*given)])
    verdict = judged(Case("attention_plain/apart/float32", (("renamed", 1),)), Judge())
    assert verdict.status == "wrong"
    assert verdict.bad


def test_the_judge_sees_a_crash(monkeypatch):
    from fluxrewrite.passes.rope.rope import Rope

    assert judged(Case("rope_halves/apart/float32", (("renamed", 1),)), Judge()).status == "found"
    monkeypatch.setattr(Rope, "_site", lambda *given: 1 / 0)
    verdict = judged(Case("rope_halves/apart/float32", (("renamed", 1),)), Judge())
    assert verdict.status == "crash"
    assert "ZeroDivisionError" in verdict.found.crash


def test_a_view_that_only_fake_tensors_have_is_no_case():
    edits = (("reshape split", 852754), ("permute respelled", 830995), ("in place", 180267), ("returned again", 774879))
    case = Case("attention_repeated/apart/bfloat16", (*edits, ("computed twice", 661742)), before=4, whole=True)
    assert judged(case, Judge()).status == "void"


def test_what_the_harness_cannot_judge_is_reported_and_the_run_goes_on(monkeypatch):
    def broken(draft, draw):
        raise IndexError("tuple index out of range")

    cases = {n: Case("spelled_masked/apart/float32", (), (("softmax over another axis", n),), 0) for n in (3, 5)}
    cases[4] = Case("spelled_masked/apart/float32", (), (("mask dropped", 1),), 0)
    monkeypatch.setitem(WRONG, "mask dropped", broken)
    monkeypatch.setattr("fuzz.tally.drawn", lambda number, wrong: cases[number])
    tally, other = ran(range(3, 6), Judge(), "wrong"), Tally()
    assert list(tally.faults) == [4]
    assert "IndexError: tuple index out of range" in tally.faults[4]
    assert tally.wrong.total() == 2
    assert tally.numbers == []
    other.join(tally)
    assert other.faults == tally.faults


@pytest.mark.parametrize("number", [1686, 4461, 2892, 8922, 13749])
def test_what_a_long_run_found_stays_mended(number):
    """Rotations that nothing reads, a probed one that ended in a cast that changes nothing, a gain written after it was read."""
    tally = ran([number], Judge(), "both")
    assert not tally.faults
    assert tally.numbers == [], tally.bad


def test_bad_cases_are_known_by_their_numbers(monkeypatch):
    from fluxrewrite.passes.attention.attention import Attention

    monkeypatch.setattr("fuzz.tally.drawn", lambda *_: Case("attention_plain/apart/float32", (("renamed", 1),)))
    assert ran([7], Judge(), "equivalent").numbers == []
    emit = Attention.emit
    monkeypatch.setattr(Attention, "emit", lambda *given: [given[2].call(torch.mul, n, 1.01) for n in emit(*given)])
    assert ran([7], Judge(), "equivalent").numbers == [7]
