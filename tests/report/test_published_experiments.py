"""The published experiments with NKI kernels in FLUX.2-klein-4B, verdict by verdict, as a report tells them."""

import json
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from fluxrewrite.analysis import Options, inspect_spec
from fluxrewrite.cost import load_evidence
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.report.advice import BetterPlan, better_plan
from fluxrewrite.report.budget import metrics
from fluxrewrite.report.draw.page import page
from fluxrewrite.report.figures import figure_rows, source_of

TABLE = json.loads((Path(__file__).parents[1] / "data" / "seed_results.json").read_text())
BOTH = "attention+qkv"


@pytest.fixture
def report():
    """`report(device=..., ...)`: the whole way from klein-4B at the sizes of the table to a report."""
    pytest.importorskip("diffusers")
    spec = find_model("flux2-klein-4b")
    shapes = Shapes(TABLE["image_tokens"], TABLE["text_tokens"], TABLE["batch"])

    def run(**options):
        given = {"kernels": "qkv:triple,attention", "policy": "all", "tp": TABLE["tensor_parallel"]}
        return inspect_spec(spec, shapes, torch.bfloat16, Options(**{**given, **options}))

    return run


def told(report):
    return {v.kernel: v for v in report.verdicts}


def variant(name):
    return TABLE["compile"]["variants"][name]["warm_s_per_step"]


def test_compile_regime(report):
    found = report(device="trn2", regime="compile")
    verdicts = told(found)
    assert list(verdicts) == ["attention", "qkv", BOTH]
    assert {k: v.verdict for k, v in verdicts.items()} == {"attention": "slower", "qkv": "neutral", BOTH: "slower"}
    assert {v.basis for v in verdicts.values()} == {"measured"}
    assert {v.regime for v in verdicts.values()} == {"compile"}
    assert verdicts["attention"].ratio == pytest.approx(variant("flash") / variant("vanilla"), rel=1e-5)
    assert "+7.5%" in verdicts["attention"].why
    assert verdicts["attention"].predicted_s == variant("flash")
    assert verdicts["qkv"].predicted_s == variant("qkv")
    assert "noise" in verdicts["qkv"].why
    assert (found.segments.before, found.segments.after) == (1, 1)
    assert {b.kind for b in found.boundaries} == {"barrier", "layout"}
    assert found.effect.compile.seconds == TABLE["compile"]["variants"]["qkv+flash"]["cold_steps_s"][0]
    assert found.effect.measured == verdicts[BOTH]


def without_the_combined_run(folder):
    """The shipped evidence less the run with both kernels, as a file that counts before the shipped one."""
    evidence = load_evidence()
    tables = [t.model_copy(update={"runs": tuple(r for r in t.runs if len(r.kernels) < 2)}) for t in evidence.tables]
    path = folder / "singles.json"
    path.write_text(evidence.model_copy(update={"tables": tuple(tables)}).to_json())
    return path


def test_both_kernels_are_predicted_from_the_runs_with_one(report, tmp_path):
    held_out = told(report(device="trn2", regime="compile", evidence=(without_the_combined_run(tmp_path),)))[BOTH]
    measured = variant("qkv+flash")
    assert held_out.verdict == "slower"
    assert held_out.predicted_s == pytest.approx(4.149, abs=5e-4)
    assert held_out.predicted_s == pytest.approx(measured, rel=0.001)
    assert "not measured together" in held_out.why
    assert "3.869 +0.290 (attention:sdpa) -0.010 (qkv:triple) = 4.149" in held_out.why
    known = told(report(device="trn2", regime="compile"))[BOTH]
    assert known.predicted_s == measured
    assert "measured together: 4.149 (0.0% off)" in known.why


def test_both_kernels_are_as_slow_as_attention_alone(report):
    verdicts = told(report(device="trn2", regime="compile"))
    assert verdicts[BOTH].verdict == verdicts["attention"].verdict
    assert verdicts[BOTH].ratio == pytest.approx(verdicts["attention"].ratio, abs=0.01)


def test_lazy_regime(report):
    found = report(device="trn1", regime="lazy")
    verdicts = told(found)
    lazy = TABLE["lazy"]["warm_s_per_step"]
    assert verdicts["qkv"].verdict == verdicts[BOTH].verdict == "slower"
    assert verdicts["qkv"].basis == verdicts[BOTH].basis == "measured"
    assert verdicts["qkv"].ratio == pytest.approx(lazy["qkv"] / lazy["vanilla"], rel=1e-5)
    assert "18.0 times" in verdicts["qkv"].why
    assert verdicts[BOTH].ratio >= verdicts["qkv"].ratio
    assert "attention:sdpa was not measured" in verdicts[BOTH].why
    assert (verdicts["attention"].verdict, verdicts["attention"].basis) == ("slower", "assumed")
    assert {b.kind for b in found.boundaries} >= {"split"}
    calls = [s for s in found.sites if s.choice == "kernel"]
    assert found.segments.before == 1
    assert found.segments.after > len(calls) == 10 + 25


def test_what_was_run_comes_before_the_model(report):
    found = report(device="trn2", regime="compile")
    time, by_model = figure_rows(found)[:2]
    assert astuple(time) == ("time, by runs", "3.87 s", "4.15 s", "+7.2%", "measured")
    assert (by_model.name, by_model.basis) == ("time, by the model", "assumed")
    assert metrics(found)["predicted_slowdown"] == pytest.approx(variant("qkv+flash") / variant("vanilla"), rel=1e-5)
    assert "runs of this very case" in source_of(found.effect)
    assert better_plan(found) == BetterPlan("predicted to be faster, without any kernel", policy="auto")
    assert better_plan(report(device="trn2", regime="compile", kernels="qkv:triple")) is None  # as fast as without
    shown = page(found)
    assert "a step is slower by runs of this very case: 3.87 s to 4.15 s (+7.2%, measured)" in shown
    assert "the plan makes a step slower" in shown
    assert "nothing was run on hardware" not in shown


def test_auto_takes_no_kernel_where_runs_speak_against_each(report):
    for device, regime in (("trn2", "compile"), ("trn1", "lazy")):
        found = report(device=device, regime=regime, policy="auto")
        assert found.effect.measured is None
        assert not [s for s in found.sites if s.choice == "kernel"]
        assert {c.chosen for c in found.effect.choices} == {"none"}
        assert [c.blocks for c in found.effect.choices] == [5, 20]
        assert all(r.code == "policy" for s in found.sites for r in s.reasons if s.form != "packed")


def test_rope_is_not_applicable_in_the_library_of_that_time(report):
    found = report(kernels="rope", provider="nkilib@2.27", device="trn2", regime="compile")
    (verdict,) = found.verdicts
    assert (verdict.kernel, verdict.verdict) == ("rope", "not_applicable")
    assert "sequence 768" in verdict.why
    assert "sequence <= 512" in verdict.why
    assert not found.boundaries
    assert "512" in TABLE["verdicts"]["rope"]["why"]


def test_other_kinds_are_not_judged(report):
    assert set(told(report(kernels="attention", device="trn2"))) == {"attention"}


@pytest.mark.parametrize(("device", "regime"), [("trn2", "compile"), ("trn1", "lazy")])
def test_as_published(report, device, regime):
    """The table's own words: "no" is slower or not applicable, "neutral" is neutral, "unknown" is not held to anything."""
    words = {"no": {"slower", "not_applicable"}, "neutral": {"neutral"}}
    names = {"qkv": "qkv", "flash": "attention", "qkv+flash": BOTH}
    verdicts = told(report(device=device, regime=regime))
    verdicts |= {"rope": told(report(kernels="rope", provider="nkilib@2.27", device=device, regime=regime))["rope"]}
    held = 0
    for published, word in ((k, v[regime]) for k, v in TABLE["verdicts"].items()):
        if word in words:
            held += 1
            assert verdicts[names.get(published, published)].verdict in words[word], published
    assert held >= 3


def test_boundaries_name_bytes_and_what_they_cost(report):
    found = report(device="trn2", regime="compile")
    for border in found.boundaries:
        assert border.bytes == sum(t.bytes for t in border.tensors)
    kinds = {s.id: s.kind for s in found.sites}
    qkv = [b for b in found.boundaries if kinds[b.site] == "qkv" and b.kind == "barrier"]
    assert {(b.cost_us, b.basis) for b in qkv} == {(0.0, "measured")}
    flash = [b for b in found.boundaries if kinds[b.site] == "attention" and b.kind == "barrier"]
    each = (variant("flash") - variant("vanilla")) / 25 * 1e6
    assert {b.basis for b in flash} == {"measured"}
    assert all(b.cost_us == pytest.approx(each, rel=1e-5) for b in flash)


def test_other_sizes_are_told_to_be_others(report):
    """On one rank the runs at tp 4 still speak, as a share of a step; what a call costs is modelled."""
    found = report(device="trn2", regime="compile", tp=1)
    verdict = told(found)["attention"]
    assert verdict.verdict == "slower"
    assert verdict.predicted_s is None
    assert "measured on flux2-klein-4b, bfloat16, tp 4" in verdict.why
    assert {b.basis for b in found.boundaries} == {"modelled"}
    double, single = found.effect.choices
    for choice in (double, single):
        assert choice.chosen == "none"
        assert choice.times_us["attention:sdpa"] == pytest.approx(verdict.ratio * choice.times_us["none"], rel=1e-4)


def test_the_same_bytes_out(report):
    first, second = (report(device="trn2", regime="lazy", policy="auto").model_dump() for _ in range(2))
    del first["timing"], second["timing"]
    assert json.dumps(first) == json.dumps(second)
