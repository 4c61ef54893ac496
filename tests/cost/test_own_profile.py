"""`--device FILE` with a name that nobody knows: what the profile says is done, and evidence of other devices does not count."""

import json

import pytest
import torch
import torch.nn.functional as F

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.cost import load_device
from fluxrewrite.cost.data_files import shipped
from fluxrewrite.errors import InputError
from fluxrewrite.fusion import load_rules

X = torch.randn(1, 2, 40, 32)


class Block(torch.nn.Module):
    """Attention between loops of elements, so that its call breaks fusions."""

    def forward(self, x):
        return F.scaled_dot_product_attention(x.exp(), x, x).relu()


@pytest.fixture
def own(tmp_path):
    """`own(like)`: the shipped profile under the name "acme1", in a file."""

    def write(like, **changes):
        path = tmp_path / "profile.json"
        content = json.loads(shipped("devices")[like].read_text())
        path.write_text(json.dumps({**content, "name": "acme1", **changes}))
        return path

    return write


def effect_on(device, **options):
    report = fluxrewrite.inspect(Block(), x=X, options=Options(kernels="attention", device=device, **options))
    return report, json.loads(report.to_json())["effect"]


@pytest.mark.parametrize("like", ["cpu", "trn2"])
@pytest.mark.parametrize("regime", ["compile", "lazy"])
def test_it_is_predicted_as_the_shipped_one_with_the_same_fields(own, like, regime):
    evidence = {"measured", "compile", "choices"}  # what runs say, looked up by the name of the device
    (_, mine), (_, theirs) = (effect_on(d, regime=regime) for d in (own(like), like))
    assert mine.pop("device") == "acme1"
    assert theirs.pop("device") == like
    assert {k: v for k, v in mine.items() if k not in evidence} == {
        k: v for k, v in theirs.items() if k not in evidence
    }
    assert mine["compiler"] == load_rules({"cpu": "inductor", "trn2": "neuronx"}[like]).name
    assert mine["regime"] == regime


def test_the_fields_count_one_by_one(own):
    """A call that runs the op's body is predicted as its operations, whatever fuses the rest."""
    _, device = effect_on("trn2")
    _, body = effect_on(own("trn2", runs_kernels=False))
    _, fused = effect_on(own("trn2", compiler="inductor"))
    assert body["compiler"] == device["compiler"] == load_rules("neuronx").name
    assert body["step_after"]["us"] > device["step_after"]["us"]
    assert fused["compiler"] == load_rules("inductor").name


def test_evidence_of_other_devices_does_not_count(own):
    """By runs, kernel calls are ruinous on trn1 in the lazy regime. On a device of another name that is not known."""
    (theirs, _), (mine, _) = (effect_on(d, regime="lazy") for d in ("trn1", own("trn1")))
    ((by_runs,), (by_model,)) = (r.verdicts for r in (theirs, mine))
    assert by_runs.why.startswith("kernel calls are ruinous in this stack: 0.824 -> 14.860 s a step (18.0 times)")
    assert (by_runs.ratio, by_model.verdict) == (None, "slower")
    assert by_model.why.endswith(" ms a step")
    assert by_model.ratio > 100  # two executables more, on a block of 10 us


def test_the_key_of_a_compiled_artifact_knows_the_fields(own):
    """`fluxrewrite.backend` takes the same file, and its key knows every field of it."""
    keys = {fluxrewrite.backend(inner="eager", device=own("trn2", runs_kernels=r)).cache_key for r in (True, False)}
    assert len(keys) == 2


@pytest.mark.parametrize("named", [None, "acme1"])
def test_an_emulated_device_that_does_not_exist_is_refused_with_those_that_do(own, named):
    with pytest.raises(
        InputError, match=r"no model of kernel calls on acme1: the emulator models trn1, trn2, trn3; .* as emulated_as"
    ):
        load_device(own("trn2", emulated_as=named)).emulated()
    assert load_device(own("trn2")).emulated() == "trn2"
