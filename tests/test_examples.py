"""The scripts of examples/, run as they stand there, offline."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

SCRIPT = Path(__file__).parents[1] / "examples" / "flux2_pipeline.py"
CONFIG = json.loads((SCRIPT.parent / "small" / "config.json").read_text())


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the example opens a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture
def run(capsys, monkeypatch):
    """`run(*arguments)`: exit code, what was printed, and what went wrong."""

    def call(*args):
        small = ("--inner", "eager", "--pixels", "64", "--text-tokens", "8", "--steps", "2", "--dtype", "fp32")
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *small, *map(str, args)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        out = capsys.readouterr()
        return end.value.code, out.out, out.err

    return call


def cosines(out):
    return [float(line.split()[-1]) for line in out.splitlines() if re.match(r" +\d+  ", line)]


def test_the_pipeline_of_diffusers(run):
    pytest.importorskip("transformers")
    code, out, _ = run()
    assert code == 0
    assert "Flux2KleinPipeline" in out
    assert "16 image + 8 text tokens; rewritten: 4 norm_rope_attention, 6 qkv" in out
    assert cosines(out) == [1.0, 1.0]


def test_the_loop_alone(run):
    code, out, _ = run("--loop", "--kernels", "attention")
    assert code == 0
    assert "the denoising loop alone\n" in out
    assert "rewritten: 4 attention" in out
    assert len(cosines(out)) == 2


def test_without_transformers_it_says_so(run, monkeypatch):
    monkeypatch.setattr("diffusers.utils.is_transformers_available", lambda: False)
    code, out, _ = run("--kernels", "attention")
    assert code == 0
    assert "the denoising loop alone; diffusers' pipeline needs transformers, which is not installed" in out


@pytest.mark.slow
def test_a_local_folder(run, tmp_path):
    model = Flux2Transformer2DModel(**{k: v for k, v in CONFIG.items() if k[0] != "_"})
    model.save_pretrained(tmp_path / "transformer")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(tmp_path / "scheduler")
    code, out, _ = run("--folder", tmp_path, "--kernels", "attention")
    assert (code, len(cosines(out))) == (0, 2)
    (weights,) = (tmp_path / "transformer").glob("*.safetensors")
    weights.write_bytes(b"no weights")
    code, _, err = run("--folder", tmp_path)
    assert code == 2
    assert "the weights cannot be loaded" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_kernel_that_is_wrong_is_exit_code_1(run, monkeypatch):
    import torch

    body = torch.nn.functional.scaled_dot_product_attention
    compiled = []

    def backend(*args, **kwargs):
        compiled.append(True)
        return lambda gm, inputs: gm.forward

    def off(*args, **kwargs):
        return body(*args, **kwargs) * (1.5 if compiled else 1)

    monkeypatch.setattr("fluxrewrite.backend", backend)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", off)
    code, out, _ = run("--loop")
    assert code == 1
    assert "rewritten: nothing" in out
    assert min(cosines(out)) < 0.9999


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--pixels", "100"), "--pixels 100: must be a multiple of 16"),
        (("--steps", "0"), "--steps 0: must be 1 or more"),
        (("--text-tokens", "0"), "--text-tokens 0"),
        (("--folder", "/no/such/folder"), "not an existing folder"),
        (("--kernels", "flash"), "unknown kernel 'flash'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, args, words):
    code, _, err = run("--loop", *args)
    assert code == 2
    assert err.count("\n") == 1
    assert words in err
