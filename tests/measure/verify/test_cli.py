"""`fluxrewrite verify MODEL`."""

import importlib
import json
import sys

import pytest

from fluxrewrite.cli import main

SIZES = ("--image-tokens", "24", "--text-tokens", "12", "--dtype", "fp32", "--steps", "1")
MODULE = """
import torch
import torch.nn.functional as F
class Attend(torch.nn.Module):
    def forward(self, x):
        print("a model that prints")
        return F.scaled_dot_product_attention(x, x, x)
def attention(): return Attend(), {"x": torch.randn(1, 2, 4, 8)}
def nothing(): return torch.nn.ReLU(), {"input": torch.randn(3)}
class Broken(torch.nn.Module):
    def forward(self, x): raise RuntimeError("shapes do not fit")
def broken(): return Broken(), {"x": torch.randn(3)}
"""


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    (tmp_path / "verify_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    yield
    sys.modules.pop("verify_models", None)


def run(capsys, *args):
    code = main([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("kernels", [("--kernels", "qkv,attention"), ("--kernels",), ()], ids=" ".join)
def test_a_model_that_passes(capsys, config, kernels):
    code, out, err = run(capsys, "verify", config, *SIZES, *kernels)
    assert (code, err) == (0, "")
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines() if str(config) not in line)
    assert ("attention:sdpa of 36" in out) == (len(kernels) == 2)
    assert ("norm_rope_attention:joint of 36" in out) == (len(kernels) != 2)
    assert "limits, float32: 1e-05 of the largest value, 5e-06 of the norm, cosine 0.9999" in out
    assert "5 of 5 sites and 1 of 1 steps within their limits" in out


@pytest.mark.slow
def test_an_error_of_one_percent_is_exit_code_1_and_the_site_is_named(capsys, config, plant):
    plant("rope", lambda t: t * 1.01)
    args = ("verify", config, *SIZES, "--kernels", "rope,qkv", "--provider", "mine", "--execution", "emulate")
    code, out, err = run(capsys, *args)
    assert code == 1
    assert "4 of 7 sites fail; worst: rope:interleaved at " in err
    assert "transformer_blocks.0.attn (add" in err
    assert "error 0.01 of the largest value (limit 1e-05), 0.01 of the norm (limit 5e-06)" in err
    assert "Traceback" not in err
    assert out.count("FAILED rope:interleaved at") == 4
    assert "3 of 7 sites" in out
    code, out, _ = run(capsys, *args, "--tolerance", "0.05")
    assert code == 0, "the limit is what fails it"


@pytest.mark.slow
def test_json(capsys, tmp_path):
    path = tmp_path / "found.json"
    code, out, err = run(capsys, "verify", "verify_models:attention", "--steps", "2", "--format", "json", "-o", path)
    assert (code, out, err) == (0, "", "")
    found = json.loads(path.read_text())
    assert found["passed"]
    assert [s["kind"] for s in found["sites"]] == ["attention"]
    assert found["setting"]["versions"]["torch"]
    code, out, _ = run(capsys, "verify", "verify_models:attention", "--format", "json")
    assert json.loads(out)["setting"]["steps"] == 4, "what the model prints is not in the way"


def test_failures_are_in_the_json_too(capsys, plant):
    plant("attention", lambda t: t * float("nan"))
    code, out, err = run(
        capsys, "verify", "verify_models:attention", "--provider", "mine", "--execution", "emulate", "--format", "json"
    )
    assert code == 1
    assert "NaN" not in out.replace("computes NaN or inf", "")
    found = json.loads(out)
    assert (found["passed"], found["sites"][0]["passed"], found["sites"][0]["relative"]) == (False, False, None)
    assert found["loop"]["steps"][0]["rewritten"]["mean"] is None
    assert err.count("\n") == 2, "a line for the sites and one for the loop"
    assert "worst: attention:sdpa at the model" in err


def test_text_of_failures(capsys, plant):
    plant("attention", lambda t: t[..., :1])
    code, out, err = run(capsys, "verify", "verify_models:attention", "--provider", "mine", "--execution", "emulate")
    assert code == 1
    assert "FAILED attention:sdpa at the model" in out
    assert "FAILED step 1: the replacement returns float32 (1, 2, 4, 1)" in " ".join(out.split())
    assert "0 of 1 sites and 0 of 4 steps" in out
    assert "expected float32 (1, 2, 4, 8)" in err


BAD = [
    (("verify_models:nothing",), "nothing was rewritten", "fluxrewrite inspect verify_models:nothing"),
    (("verify_models:attention", "--policy", "none"), "policy 'none'", "fluxrewrite inspect"),
    (("verify_models:broken",), "shapes do not fit", "RuntimeError"),
    (("flux3",), "unknown model 'flux3'", "flux2-klein-mini"),
    (("verify_models:attention", "--kernels", "flash"), "unknown kernel 'flash'", "attention"),
    (("verify_models:attention", "--kernels", "qkv:double"), "unknown form 'double'", "triple"),
    (("verify_models:attention", "--steps", "0"), "--steps 0", "1 or more"),
    (("verify_models:attention", "--tolerance", "-1"), "--tolerance -1", "0 or more"),
    (("verify_models:attention", "--inner", "gcc"), "unknown inner backend 'gcc'", "inductor"),
    (("verify_models:attention", "--execution", "fpga"), "'fpga'", "emulate"),
    (("verify_models:attention", "--provider", "reference", "--execution", "emulate"), "'reference'", "builtin"),
    (("verify_models:attention", "--seed", "-1"), "--seed -1", "must be 0 or more"),
    (("verify_models:attention", "--image-tokens", "0"), "--image-tokens 0", "1 or more"),
    (("verify_models:attention", "--quick"), "--quick checks the kernels by themselves", "leave out MODEL"),
    (
        ("verify_models:attention", "--simulator", "nki"),
        "--simulator checks the kernels by themselves",
        "leave out MODEL",
    ),
    (("verify_models:attention", "-o", "no/such/file"), "no/such", "does not exist"),
    ((), "nothing to verify", "fluxrewrite verify flux2-klein-mini"),
]


@pytest.mark.parametrize(("args", "wrong", "remedy"), BAD, ids=lambda a: " ".join(a) if isinstance(a, tuple) else "")
def test_bad_input_is_one_line_and_exit_code_2(capsys, args, wrong, remedy):
    code, out, err = run(capsys, "verify", *args)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert wrong in err
    assert remedy in err


def test_help_says_which_options_go_together(capsys):
    code, out, _ = run(capsys, "verify", "--help")
    assert code == 0
    text = " ".join(out.split())
    for words in (
        "own activations",
        "denoising loop",
        "Without MODEL",
        "Exit codes: 0 everything is within its limits, 1 a limit is exceeded",
    ):
        assert words in text


def test_bars_count_sites_and_steps(monkeypatch):
    """The updates of the bars, on a console that shows them."""
    from rich.console import Console

    command = importlib.import_module("fluxrewrite.cli.verify_model")
    shown = []
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    monkeypatch.setattr(command.Bars, "update", lambda self, task, **given: shown.append((int(task), given)))
    with command._bars(3) as progress:
        progress.found(5)
        progress.step(None)
    assert shown == [(0, {"total": 5}), (1, {"advance": 1})]
