import json

import pytest

from fluxrewrite.cost import Case, Evidence, load_evidence
from fluxrewrite.cost.deltas import applied, delta, deltas, predict, ruined
from fluxrewrite.cost.evidence import MeasuredRun, Table
from fluxrewrite.errors import InputError


def made(case, *runs, stack="test"):
    """Evidence of one table: (seconds, calls by kernel) for each run, the first without kernels."""
    rows = tuple(MeasuredRun(kernels=tuple(calls), calls=calls, warm_s_per_step=s) for s, calls in runs)
    return Evidence(
        schema="fluxrewrite.evidence/1", tables=(Table(case=case, stack=stack, source="made up", runs=rows),)
    )


def joined(*parts):
    return Evidence(schema="fluxrewrite.evidence/1", tables=tuple(t for p in parts for t in p.tables))


def test_deltas_of_the_compiled_runs(evidence, compiled):
    found = deltas(evidence, compiled)
    assert set(found) == {"qkv:triple", "attention"}
    qkv, attention = found["qkv:triple"], found["attention"]
    assert qkv.s_per_step == pytest.approx(-0.010)
    assert qkv.us_per_call == pytest.approx(-1000)
    assert attention.s_per_step == pytest.approx(0.290)
    assert attention.us_per_call == pytest.approx(0.290 / 25 * 1e6)
    assert attention.ratio == pytest.approx(4.159 / 3.869)
    assert (qkv.neutral, attention.neutral) == (True, False)
    assert qkv.noise_us_per_call == pytest.approx(0.01 * 3.869 / 10 * 1e6)


def test_the_run_with_both_is_held_out(evidence, compiled, without):
    """4.149 comes from the single rows alone, and is what was measured."""
    found = predict(without(evidence, "qkv:triple", "attention"), compiled, ["qkv", "attention"])
    assert found.predicted_s == pytest.approx(4.149, abs=5e-4)
    assert found.measured_s is None
    assert found.error is None
    assert "3.869 -0.010 (qkv) +0.290 (attention) = 4.149 s a step; not measured together" in found.why
    whole = predict(evidence, compiled, ["qkv", "attention"])
    assert whole.predicted_s == found.predicted_s
    assert whole.measured_s == 4.149
    assert abs(whole.error) < 1e-3
    assert "measured together: 4.149 (0.0% off)" in whole.why


def test_the_combined_run_never_makes_a_delta(evidence, compiled, without):
    only_both = without(without(evidence, "qkv:triple"), "attention")
    assert deltas(only_both, compiled) == {}
    assert predict(only_both, compiled, ["qkv", "attention"]) is None


def test_calls_scale_in_the_measured_case_alone(evidence, compiled):
    assert predict(evidence, compiled, {"attention": 10}).predicted_s == pytest.approx(3.869 + 0.290 * 10 / 25)
    assert predict(evidence, compiled, {"attention": 10}).measured_s is None
    assert predict(evidence, compiled, {"attention": 25}).measured_s == 4.159
    other = compiled.model_copy(update={"model": "flux2-dev"})
    found = predict(evidence, other, {"attention": 56})
    assert found.ratio == pytest.approx(4.159 / 3.869)
    assert found.predicted_s is None
    assert "measured on flux2-klein-4b, bfloat16, tp 4, batch 1, 256 + 512 tokens" in found.why


def test_forms_of_one_kind_share_its_calls(evidence, compiled):
    split = {"attention:sdpa": 20, "attention:spelled": 5}
    found = predict(evidence, compiled, split)
    assert found.predicted_s == pytest.approx(4.159)
    assert found.measured_s == 4.159
    other = compiled.model_copy(update={"batch": 2})
    assert predict(evidence, other, split).ratio == pytest.approx(4.159 / 3.869)


def test_another_form_is_said_to_be_unmeasured(evidence, compiled):
    found = applied(evidence, compiled, "qkv:packed")
    assert found.basis == "assumed"
    assert not found.exact
    assert found.why.endswith("qkv:packed itself was not measured")
    both = predict(evidence, compiled, {"qkv:triple": 10, "qkv:packed": 20})
    assert both.basis == "assumed"
    assert both.measured_s is None
    assert both.ratio == pytest.approx(1 - 3 * 0.010 / 3.869)
    assert both.threshold == pytest.approx(0.03)  # noise grows with the calls, so noise never turns into a gain


def test_applied_to_the_very_case_and_to_another(evidence, compiled):
    same = applied(evidence, compiled, "attention:sdpa")
    assert (same.exact, same.basis, same.neutral, same.ruinous) == (True, "measured", False, False)
    assert same.us_per_call == pytest.approx(11_600)
    other = applied(evidence, Case(device="trn2", regime="compile", model="flux1-dev"), "attention")
    assert (other.exact, other.basis, other.us_per_call) == (False, "measured", same.us_per_call)
    assert "measured on flux2-klein-4b" in other.why


@pytest.mark.parametrize(
    ("device", "regime"), [("trn1", "compile"), ("trn3", "compile"), ("trn2", "lazy"), ("cpu", "lazy")]
)
def test_evidence_does_not_leave_its_device_and_regime(evidence, compiled, device, regime):
    case = compiled.model_copy(update={"device": device, "regime": regime})
    assert deltas(evidence, case) == {}
    assert applied(evidence, case, "qkv:triple") is None
    assert predict(evidence, case, ["qkv"]) is None
    assert ruined(evidence, case) is None


def test_a_kind_that_was_never_run(evidence, compiled):
    assert delta(evidence, compiled, "norm_rope_attention") is None
    found = predict(evidence, compiled, {"attention": 25, "rope": 50})
    assert found.missing == ("rope",)
    assert found.predicted_s == pytest.approx(4.159)


def test_the_lazy_stack_is_ruinous_and_says_so_about_itself_alone(evidence, lazy, compiled):
    worst = ruined(evidence, lazy)
    assert worst.ratio == pytest.approx(14.86 / 0.824)
    assert "18.0 times" in worst.text
    assert applied(evidence, lazy, "qkv:triple").ruinous
    assert ruined(evidence, compiled) is None
    mild = made(lazy, (1.0, {}), (1.9, {"qkv:triple": 10}))
    assert ruined(mild, lazy) is None


def test_noise_is_a_percent_or_what_the_steps_show(compiled):
    runs = (
        MeasuredRun(kernels=(), warm_s_per_step=1.0, warm_steps_s=(0.98, 1.0, 1.02)),
        MeasuredRun(kernels=("rope",), calls={"rope": 50}, warm_s_per_step=1.03),
    )
    table = Table(case=compiled, stack="test", source="made up", runs=runs)
    restless = Evidence(schema="fluxrewrite.evidence/1", tables=(table,))
    assert delta(restless, compiled, "rope").threshold == pytest.approx(0.04)
    assert delta(restless, compiled, "rope").neutral
    quiet = made(compiled, (1.0, {}), (1.07, {"rope": 50}))
    assert delta(quiet, compiled, "rope").threshold == 0.01
    assert not delta(quiet, compiled, "rope").neutral


def test_the_very_case_counts_before_others_and_later_files_before_earlier(compiled):
    other = compiled.model_copy(update={"image_tokens": 4096})
    first = made(compiled, (1.0, {}), (1.1, {"rope": 50}))
    second = made(other, (1.0, {}), (1.2, {"rope": 50}))
    third = made(compiled, (2.0, {}), (2.6, {"rope": 50}))
    assert delta(joined(first, second), compiled, "rope").ratio == pytest.approx(1.1)
    assert delta(joined(first, second), other, "rope").ratio == pytest.approx(1.2)
    assert delta(joined(first, second, third), compiled, "rope").ratio == pytest.approx(1.3)
    assert delta(joined(third, second, first), compiled, "rope").ratio == pytest.approx(1.1)
    unknown = Case(device="trn2", regime="compile")
    assert delta(joined(first, second), unknown, "rope").ratio == pytest.approx(1.2)


def test_the_form_counts_before_the_case(compiled):
    other = compiled.model_copy(update={"image_tokens": 4096})
    both = joined(
        made(other, (1.0, {}), (1.3, {"qkv:packed": 20})),
        made(compiled, (1.0, {}), (1.1, {"qkv:triple": 10})),
    )
    assert delta(both, compiled, "qkv:packed").ratio == pytest.approx(1.3)
    assert delta(both, compiled, "qkv:triple").ratio == pytest.approx(1.1)
    assert delta(both, compiled, "qkv").ratio == pytest.approx(1.1)


def test_in_another_case_forms_weigh_as_their_calls(compiled):
    seen = joined(
        made(compiled, (1.0, {}), (1.4, {"qkv:packed": 20})),
        made(compiled, (1.0, {}), (1.2, {"qkv:triple": 10})),
    )
    other = compiled.model_copy(update={"image_tokens": 4096})
    found = predict(seen, other, {"qkv:packed": 30, "qkv:triple": 10})
    assert found.ratio == pytest.approx(1 + 0.4 * 3 / 4 + 0.2 / 4)
    assert predict(seen, other, ["qkv:packed", "qkv:triple"]).ratio == pytest.approx(1.3)


def test_a_slow_kernel_in_one_executable_condemns_no_other(compiled):
    slow = made(compiled, (1.0, {}), (9.0, {"attention": 25}))
    assert applied(slow, compiled, "attention").ruinous
    assert ruined(slow, compiled) is None


def test_files_are_merged(tmp_path, compiled, evidence):
    path = tmp_path / "mine.json"
    path.write_text(made(compiled, (1.0, {}), (0.5, {"attention": 25})).to_json())
    found = load_evidence([path])
    assert len(found.tables) == len(evidence.tables) + 1
    assert delta(found, compiled, "attention").ratio == 0.5
    assert delta(found, compiled, "qkv:triple").ratio == pytest.approx(3.859 / 3.869)
    assert len(load_evidence([path], shipped_too=False).tables) == 1
    assert load_evidence([], shipped_too=False).tables == ()


def content(compiled):
    return json.loads(made(compiled, (1.0, {}), (1.1, {"qkv:triple": 10})).to_json())


BAD = {
    "seconds": (
        lambda t: t["runs"][1].update(warm_s_per_step=-1),
        r"tables\.0\.runs\.1\.warm_s_per_step: .*greater than 0",
    ),
    "missing": (lambda t: t["runs"][1].pop("warm_s_per_step"), r"tables\.0\.runs\.1\.warm_s_per_step: Field required"),
    "no baseline": (lambda t: t["runs"].pop(0), r"tables\.0: no run without kernels"),
    "twice": (lambda t: t["runs"].append(t["runs"][1]), r"tables\.0: two runs with the same kernels"),
    "calls": (lambda t: t["runs"][1].update(calls={"rope": 3}), r"runs\.1: calls name \['rope'\] where kernels name"),
    "no calls": (lambda t: t["runs"][1].update(calls={"qkv:triple": 0}), r"calls\.qkv:triple: .*greater than 0"),
    "kind twice": (
        lambda t: t["runs"][1].update(kernels=["qkv:triple", "qkv:packed"]),
        r"runs\.1: a kind of kernel appears twice",
    ),
    "specialisations": (lambda t: t["runs"][1].update(specialisations={"rope": 1}), r"runs\.1: specialisations name"),
    "half a case": (lambda t: t["case"].update(tp=None), r"tables\.0: case: tp not given"),
    "regime": (lambda t: t["case"].update(regime="eager"), r"case\.regime: .*'compile' or 'lazy'"),
}


@pytest.mark.parametrize("name", BAD)
def test_corrupt_evidence(tmp_path, compiled, name):
    change, message = BAD[name]
    given = content(compiled)
    change(given["tables"][0])
    path = tmp_path / "ev.json"
    path.write_text(json.dumps(given))
    with pytest.raises(InputError, match=r"ev\.json: .*" + message) as found:
        load_evidence([path])
    assert "calibrate --from" in str(found.value)


def test_a_file_without_a_schema_is_no_evidence(tmp_path):
    path = tmp_path / "ev.json"
    path.write_text('{"tables": []}')
    with pytest.raises(InputError, match=r"ev\.json: schema: Field required"):
        load_evidence([path])
