import pytest

from fluxrewrite.cost import Case
from fluxrewrite.cost.verdicts import Candidate, ModelledStep, on_plan, verdicts
from fluxrewrite.errors import InputError

S768 = "sequence 768: the kernel takes sequence <= 512 (nkilib 2.27)"
QKV = Candidate("qkv", {"triple": 10})
FLASH = Candidate("attention", {"sdpa": 25})
ROPE = Candidate("rope", {}, (S768,) * 50)
SEED = [
    # regime, kernel, verdict, basis, ratio, seconds a step, part of the reason
    ("lazy", "rope", "not_applicable", "modelled", None, None, "768"),
    ("compile", "rope", "not_applicable", "modelled", None, None, "768"),
    ("lazy", "qkv", "slower", "measured", 18.034, 14.86, "18.0 times"),
    ("compile", "qkv", "neutral", "measured", 0.997415, 3.859, "-0.3%"),
    ("lazy", "attention", "slower", "assumed", None, None, "attention was not measured"),
    ("compile", "attention", "slower", "measured", 1.07495, 4.159, "+7.5%"),
    ("lazy", "qkv+attention", "slower", "measured", 18.034, 14.86, "even if it took no time"),
    ("compile", "qkv+attention", "slower", "measured", 1.07237, 4.149, "4.149"),
]


@pytest.mark.parametrize("row", SEED, ids=lambda r: f"{r[0]}-{r[1]}")
def test_verdicts_of_the_published_experiments(evidence, lazy, compiled, row):
    regime, kernel, word, basis, ratio, seconds, reason = row
    case = lazy if regime == "lazy" else compiled
    found = {v.kernel: v for v in verdicts([ROPE, QKV, FLASH], case, evidence, [("qkv", "attention")])}
    verdict = found[kernel]
    assert (verdict.verdict, verdict.basis, verdict.regime) == (word, basis, regime)
    assert verdict.ratio == ratio
    assert verdict.predicted_s == seconds
    assert reason in verdict.why


def test_both_kernels_are_as_flash_alone_also_before_they_were_run_together(evidence, compiled, without):
    before = without(evidence, "qkv:triple", "attention")
    *_, both = verdicts([QKV, FLASH], compiled, before, [("qkv", "attention")])
    assert (both.verdict, both.predicted_s) == ("slower", 4.149)


def test_a_run_of_the_very_set_counts_before_the_sum(evidence, compiled):
    """Had both together taken 3.8 s, that would be the verdict, and the sum of 4.149 s would be said to be off."""
    *tables, last = evidence.tables
    runs = [r.model_copy(update={"warm_s_per_step": 3.8}) if len(r.kernels) == 2 else r for r in last.runs]
    other = evidence.model_copy(update={"tables": (*tables, last.model_copy(update={"runs": tuple(runs)}))})
    *_, both = verdicts([QKV, FLASH], compiled, other, [("qkv", "attention")])
    assert (both.verdict, both.predicted_s) == ("faster", 3.8)
    assert "measured together: 3.800 (9.2% off)" in both.why


@pytest.mark.parametrize(
    ("candidates", "seconds", "word"),
    [
        ([FLASH], 4.159, "slower"),
        ([QKV], 3.859, "neutral"),
        ([QKV, FLASH], 4.149, "slower"),
        ([Candidate("attention", {"sdpa": 5})], 3.927, "slower"),  # a fifth of the calls, a fifth of the difference
        ([QKV, Candidate("attention", {"sdpa": 5})], 3.917, "neutral"),  # each kind brings its own noise
    ],
)
def test_runs_of_the_very_case_speak_of_a_plan(evidence, compiled, candidates, seconds, word):
    found = on_plan(candidates, compiled, evidence)
    assert (found.verdict, found.basis) == (word, "measured")
    assert found.predicted_s == pytest.approx(seconds)
    assert found.predicted_s / found.ratio == pytest.approx(3.869, rel=1e-5)


def test_where_runs_do_not_speak_of_a_plan(evidence, compiled):
    assert on_plan([], compiled, evidence) is None
    assert on_plan([FLASH], compiled.model_copy(update={"image_tokens": 4096}), evidence) is None
    assert on_plan([modelled(1000, 900)], compiled, evidence) is None
    assert on_plan([FLASH, modelled(1000, 900)], compiled, evidence) is None
    assert on_plan([Candidate("qkv", {"packed": 20})], compiled, evidence) is None
    with_other_form = on_plan([FLASH, Candidate("qkv", {"packed": 20})], compiled, evidence)
    assert with_other_form.basis == "assumed"


def modelled(without, with_, basis="modelled", why=""):
    return Candidate("norm_rope_attention", {"single": 20, "joint": 5}, (), ModelledStep(without, with_, basis, why))


@pytest.mark.parametrize(
    ("with_us", "word"),
    [(900, "faster"), (989, "faster"), (990.1, "neutral"), (1000, "neutral"), (1010, "neutral"), (1011, "slower")],
)
def test_the_model_speaks_where_nothing_was_run(evidence, compiled, with_us, word):
    (found,) = verdicts([modelled(1000, with_us, "assumed", "launches")], compiled, evidence)
    assert (found.verdict, found.basis) == (word, "assumed")
    assert found.ratio == pytest.approx(with_us / 1000, rel=1e-5)
    assert found.predicted_s == pytest.approx(with_us / 1e6, rel=1e-5)
    assert found.why.endswith("launches")


def test_runs_count_before_the_model(evidence, compiled):
    candidate = Candidate("attention", {"sdpa": 25}, (), ModelledStep(1000, 500))
    (found,) = verdicts([candidate], compiled, evidence)
    assert (found.verdict, found.basis) == ("slower", "measured")


def test_in_a_ruined_stack_the_model_is_not_believed(evidence, lazy):
    (found,) = verdicts([modelled(1000, 500)], lazy, evidence)
    assert (found.verdict, found.basis, found.ratio) == ("slower", "assumed", None)
    elsewhere = lazy.model_copy(update={"device": "trn3"})
    (found,) = verdicts([modelled(1000, 500)], elsewhere, evidence)
    assert found.verdict == "faster"


def test_runs_and_model_are_combined_as_shares(evidence, compiled):
    *_, found = verdicts([FLASH, modelled(1000, 800)], compiled, evidence, [("attention", "norm_rope_attention")])
    assert found.kernel == "attention+norm_rope_attention"
    assert found.ratio == pytest.approx(1 + 0.290 / 3.869 - 0.2, rel=1e-5)
    assert (found.verdict, found.basis, found.predicted_s) == ("faster", "modelled", None)
    assert "attention +7.5% (measured), norm_rope_attention -20.0% (modelled)" in found.why
    *_, found = verdicts(
        [FLASH, modelled(1000, 800, "assumed")], compiled, evidence, [("attention", "norm_rope_attention")]
    )
    assert found.basis == "assumed"


def test_no_verdict_without_a_figure(evidence, compiled):
    silent = Candidate("norm_rope_attention", {"single": 20})
    assert verdicts([silent], compiled, evidence) == ()
    found = verdicts([silent, FLASH], compiled, evidence, [("attention", "norm_rope_attention")])
    assert [v.kernel for v in found] == ["attention"]
    trn3 = Case(device="trn3", regime="compile")
    assert verdicts([silent, FLASH], trn3, evidence, [("attention", "norm_rope_attention")]) == ()


def test_reasons_of_what_does_not_apply(evidence, compiled):
    many = Candidate("rope", {}, ("a", "b", "a", "c", "d", "e"))
    (found,) = verdicts([many], compiled, evidence)
    assert found.why == "a; b; c; and 2 more"
    (found,) = verdicts([Candidate("rope")], compiled, evidence)
    assert (found.verdict, found.why) == ("not_applicable", "no site found")
    *_, found = verdicts([ROPE, QKV], compiled, evidence, [("rope", "qkv")])
    assert (found.kernel, found.verdict, found.why) == ("rope+qkv", "not_applicable", f"rope: {S768}")
    (found,) = verdicts([Candidate("qkv", {"triple": 0}, ("d",))], compiled, evidence)
    assert found.verdict == "not_applicable"


def test_another_model_keeps_the_share_and_says_so(evidence, compiled):
    (found,) = verdicts([FLASH], compiled.model_copy(update={"model": "flux2-klein-9b"}), evidence)
    assert (found.verdict, found.basis, found.ratio, found.predicted_s) == ("slower", "measured", 1.07495, None)
    assert "measured on flux2-klein-4b" in found.why


def test_more_calls_of_a_neutral_kernel_stay_neutral(evidence, compiled):
    (found,) = verdicts([Candidate("qkv", {"triple": 60})], compiled, evidence)
    assert found.ratio == pytest.approx(1 - 6 * 0.010 / 3.869, rel=1e-5)
    assert found.verdict == "neutral"


def test_a_combination_of_what_is_not_there(evidence, compiled):
    with pytest.raises(InputError, match=r"no kernel 'rope' to judge in qkv\+rope; there are qkv"):
        verdicts([QKV], compiled, evidence, [("qkv", "rope")])


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_times_that_are_none(value):
    with pytest.raises(InputError, match=r"without_us .* greater than 0"):
        ModelledStep(value, 1)
    with pytest.raises(InputError, match=r"with_us .* greater than 0"):
        ModelledStep(1, value)
