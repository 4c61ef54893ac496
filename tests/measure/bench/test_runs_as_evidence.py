"""From runs to evidence, and from evidence to verdicts in the order of the bench."""

import json

import pytest

from fluxrewrite.cli import main
from fluxrewrite.cost import Evidence, load_evidence
from fluxrewrite.cost.deltas import delta, noise
from fluxrewrite.cost.evidence import EVIDENCE_SCHEMA
from fluxrewrite.cost.runs_as_evidence import evidence_of
from fluxrewrite.errors import InputError


def table(runs):
    (found,) = evidence_of(runs, "runs.json").tables
    return found


def test_variants_become_runs(made):
    found = table(made())
    assert found.case.known
    assert (found.case.device, found.case.regime, found.steps) == ("cpu", "compile", 4)
    assert found.stack == "inductor, torch 2.13.0"
    assert found.source.startswith("runs.json: fluxrewrite bench, 2026-01-01")
    assert [(r.kernels, dict(r.calls), r.warm_s_per_step) for r in found.runs] == [
        ((), {}, 1.0),
        (("qkv",), {"qkv": 4}, 0.9),  # two forms: evidence names a kind once
        (("attention:sdpa",), {"attention:sdpa": 3}, 1.25),
        (("norm_rope_attention",), {"norm_rope_attention": 3}, 0.96),
    ]
    assert found.baseline.warm_steps_s == (*[1.0] * 8, *[1.002] * 4)
    assert found.drift == 0
    assert found.baseline.compile_s == 30.0
    assert found.runs[1].specialisations == {"qkv": 2}


def test_a_variant_is_taken_as_it_was_to_vanilla_at_its_time(made, row):
    others = [{"steps_s": [1.9, 2.0, 2.0, 2.1]}] * 3
    later = row("attention", 2.5, {"attention:sdpa": 3}, beside=others)
    runs = made(row("vanilla", 1.0, {}), row("qkv", 0.9, {"qkv:triple": 2}), later, in_turn=True)
    assert runs.ratio(runs.variants[2]) == pytest.approx(1.25)
    found = table(runs)
    _, qkv, attention = found.runs
    assert [noise(found, r) for r in (qkv, attention)] == pytest.approx([runs.noise(v) for v in runs.variants[1:]])
    assert noise(found, attention) == pytest.approx(0.05 + 0.002)
    assert qkv.warm_s_per_step == 0.9
    assert attention.warm_s_per_step == pytest.approx(1.25)
    assert attention.warm_steps_s == pytest.approx([1.25] * 8 + [1.2525] * 4)
    assert attention.noise == pytest.approx(runs.variants[2].noise)


def test_variants_without_evidence_are_left_out_and_noted(made, row):
    other = {"digest": "e", "finite": True, "cosine": 0.5}
    found = table(
        made(
            row("eager", 2.0, {}),
            row("vanilla", 1.0, {}),
            row("qkv", 0.9, {"qkv:triple": 2}),
            row("attention", 1.2, {"attention:sdpa": 3}, output=other),
            row("auto", 0.8, {"qkv:triple": 2}, inline=2),
            row("all", 0.9, {"qkv:triple": 2}),
            row("rope", 1.0, {"rope:interleaved": 6}, runs=[], error="killed"),
        )
    )
    assert [r.kernels for r in found.runs] == [(), ("qkv:triple",)]
    assert found.note == (
        "4 runs, the first cold; eager left out: runs without the compiler; attention left out: other latents than vanilla's; "
        "auto left out: 2 sites written inline; all left out: the same kernels as qkv; rope left out: no warm run"
    )


def test_the_difference_between_processes_is_noise_in_verdicts(made, row):
    runs = made(
        row("vanilla", 1.0, {}), row("qkv", 0.97, {"qkv:triple": 2}), row("rope", 1.05, {"rope:interleaved": 6}),
        row("auto", 1.04, {}),
    )  # fmt: skip
    found = table(runs)
    assert found.drift == pytest.approx(0.04)
    known = Evidence(schema=EVIDENCE_SCHEMA, tables=(found,))
    assert [delta(known, found.case, name).neutral for name in ("qkv:triple", "rope:interleaved")] == [True, False]
    assert [runs.noise(v) for v in runs.variants[1:3]] == pytest.approx([0.04, 0.04])


@pytest.mark.parametrize("cold", [True, False])
def test_there_must_be_something_to_compare_with(made, row, cold):
    variants = [row("qkv", 0.9, {"qkv:triple": 2})]
    if cold:
        variants.append(row("vanilla", 1.0, {}, runs=[{"steps_s": [3.0, 1.0, 1.0, 1.0]}]))
    with pytest.raises(InputError, match=r"runs\.json: no warm run of the variant 'vanilla'"):
        evidence_of(made(*variants), "runs.json")


def test_calibrate_reads_runs(content, tmp_path, capsys):
    (tmp_path / "runs.json").write_text(json.dumps(content()))
    assert main(["calibrate", "--from", "runs.json", "-o", "ev.json", "--source", "our machine"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert ["attention:sdpa", "3", "1.250", "+25.0%", "1.0%", "+83,333", "30"] in [
        line.split() for line in out.splitlines()
    ]
    (found,) = load_evidence(["ev.json"], shipped_too=False).tables
    assert found.source.startswith("our machine: fluxrewrite bench")
    assert [r.note for r in found.runs] == ["vanilla", "qkv", "attention", "norm_rope_attention"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.pop("case"), "runs.json: case: Field required"),
        (lambda c: c["variants"].pop(0), "runs.json: no warm run of the variant 'vanilla'"),
        (lambda c: c.pop("schema"), "runs.json: model: Field required"),  # then it is read as a published table
    ],
)
def test_calibrate_refuses_damaged_runs(content, tmp_path, capsys, damage, message):
    broken = content()
    damage(broken)
    (tmp_path / "runs.json").write_text(json.dumps(broken))
    assert main(["calibrate", "--from", "runs.json"]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def verdicts(content, tmp_path, capsys):
    """`verdicts(kernels)`: what `inspect` says of the mini model on a CPU, with the made-up runs, by kernel."""
    pytest.importorskip("diffusers")
    (tmp_path / "runs.json").write_text(json.dumps(content()))
    assert main(["calibrate", "--from", "runs.json", "-o", "ev.json"]) == 0
    capsys.readouterr()

    def run(*kernels):
        args = ["inspect", "flux2-klein-mini", "--device", "cpu", "--evidence", "ev.json", "--format", "json"]
        assert main([*args, *(("--kernels", ",".join(kernels)) if kernels else ())]) == 0
        return {v["kernel"]: v for v in json.loads(capsys.readouterr().out)["verdicts"]}

    return run


def test_inspect_predicts_the_order_of_the_bench(verdicts, made):
    runs = made()
    found = verdicts()
    benched = {v.name: runs.ratio(v) for v in runs.variants if v.name != "vanilla"}
    assert {k: found[k]["ratio"] for k in benched} == pytest.approx(benched)
    assert sorted(benched, key=lambda k: found[k]["ratio"]) == sorted(benched, key=lambda k: benched[k])
    assert {k: found[k]["verdict"] for k in benched} == {
        "qkv": "faster", "attention": "slower", "norm_rope_attention": "faster",
    }  # fmt: skip
    assert {found[k]["basis"] for k in benched} == {"measured"}


def test_a_set_that_was_not_run_is_predicted_from_the_single_ones(verdicts):
    both = verdicts("qkv", "attention")["attention+qkv"]
    assert both["ratio"] == pytest.approx(1 - 0.1 + 0.25)
    assert both["predicted_s"] == pytest.approx(1.15)
    assert both["verdict"] == "slower"
    assert "not measured together" in both["why"]
