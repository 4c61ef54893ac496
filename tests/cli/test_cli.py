import json

import pytest

from fluxrewrite.cli import main
from fluxrewrite.models.capture import capture_spec

MODULE = """
import torch
import torch.nn.functional as F
class Attend(torch.nn.Module):
    def forward(self, x): return F.scaled_dot_product_attention(x, x, x)
def attention(): return Attend(), {"x": torch.randn(1, 2, 4, 8)}
def nothing(): return torch.nn.ReLU(), {"input": torch.randn(3)}
def empty(): return torch.nn.Identity(), {"input": torch.randn(3)}
class Broken(torch.nn.Module):
    def forward(self, x): raise RuntimeError("shapes do not fit")
def broken(): return Broken(), {"x": torch.randn(3)}
class Halves(torch.nn.Module):
    def forward(self, x):
        y = x.relu()
        torch._dynamo.graph_break()
        return F.scaled_dot_product_attention(y, y, y)
def halves(): return Halves(), {"x": torch.randn(1, 2, 4, 192)}
"""


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    import sys

    (tmp_path / "cli_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    yield
    sys.modules.pop("cli_models", None)


def run(capsys, *args):
    code = main([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


BAD = [
    (("inspect", "flux3"), "unknown model 'flux3'", "flux2-klein-4b"),
    (("inspect", "no/such/folder"), "no/such/folder", "not an existing folder"),
    (("inspect", "flux2-klein-4b", "--image-tokens", "-3"), "--image-tokens -3", "1 or more"),
    (("inspect", "flux2-klein-4b", "--text-tokens", "many"), "--text-tokens", "integer"),
    (
        ("inspect", "flux2-klein-4b", "--kernels", "flash"),
        "unknown kernel 'flash'",
        "attention, norm_rope_attention, qkv, rope",
    ),
    (("inspect", "flux2-klein-4b", "--kernels", "qkv:double"), "unknown form 'double'", "triple"),
    (("inspect", "flux2-klein-4b", "--kernels", "qkv:"), "unknown form ''", "triple"),
    (("inspect", "flux2-klein-4b", "--format", "xml"), "'xml'", "json"),
    (("inspect", "flux2-klein-4b", "--dtype", "int4"), "'int4'", "bf16"),
    (("inspect", "flux2-klein-4b", "--policy", "best"), "'best'", "none"),
    (("inspect", "flux2-klein-4b", "--imag", "3"), "--imag", "--image-tokens"),
    (("inspect", "flux2-klein-4b", "-o", "no/such/file.json"), "no/such", "does not exist"),
    (("inspect", "flux2-klein-4b", "-o", "."), "is a folder", "file name"),
    (("inspect", "flux2-klein-4b", "--fail-on", "bariers>1"), "unknown metric 'bariers'", "barriers, splits"),
    (("inspect", "flux2-klein-4b", "--fail-on", "barriers"), "--fail-on 'barriers'", "barriers>10"),
    (
        ("inspect", "flux2-klein-4b", "--kernels", "qkv", "--fail-on", "missed.rope>1"),
        "no kind 'rope'",
        "there are qkv",
    ),
    (("inspect", "flux2-klein-4b", "--budget", "no.toml"), "no.toml", "cannot be read"),
    (("diff", "a.json"), "Missing argument", "--help"),
    (("inspect",), "Missing argument", "--help"),
    (("inspekt",), "No such command 'inspekt'", "--help"),
    (("inspect", "cli_models:broken"), "shapes do not fit", "RuntimeError"),
    (("inspect", "cli_models:absent"), "no 'absent'", "cli_models"),
]


@pytest.mark.parametrize(("args", "wrong", "remedy"), BAD, ids=lambda a: " ".join(a) if isinstance(a, tuple) else "")
def test_bad_input_is_one_line_and_exit_code_2(capsys, args, wrong, remedy):
    code, out, err = run(capsys, *args)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert wrong in err
    assert remedy in err


def test_json(capsys):
    code, out, _ = run(capsys, "inspect", "cli_models:attention", "--format", "json")
    report = json.loads(out)
    assert code == 0
    assert report["schema"] == "fluxrewrite.report/2"
    assert [s["kind"] for s in report["sites"] if s["choice"] == "kernel"] == ["attention"]


def test_json_is_the_same_bytes_but_for_timing(capsys):
    def once():
        report = json.loads(run(capsys, "inspect", "cli_models:attention", "--format", "json")[1])
        del report["timing"]
        return json.dumps(report)

    assert once() == once()


def test_text_fits_80_columns_and_ends_with_a_next_step(capsys):
    code, out, _ = run(capsys, "inspect", "cli_models:attention")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "1 of 1" in out
    assert "torch.compile(model, backend=fluxrewrite.backend())" in out.split("\nNext ")[1]
    assert "rope: nothing found. Looked for" in " ".join(out.split())


def test_broken_limits_are_a_line_each_and_exit_code_1_after_the_report(capsys, tmp_path):
    (tmp_path / "budget.toml").write_text("fail_on = ['kernels.attention < 1']\n[limits]\nbarriers = 0\n")
    args = ("--fail-on", "kernels==1", "--fail-on", "splits > 0", "--budget", "budget.toml")
    code, out, err = run(capsys, "inspect", "cli_models:attention", *args, "--format", "json")
    assert code == 1
    assert len(json.loads(out)["boundaries"]) == 1
    assert err.splitlines() == [
        "fluxrewrite: limit broken: kernels == 1 (--fail-on): found 1",
        "fluxrewrite: limit broken: barriers > 0 (budget.toml): found 1",
    ]
    code, _, err = run(capsys, "inspect", "cli_models:attention", *args, "-o", "report.txt")
    assert (code, err.count("\n")) == (1, 2)
    assert "Boundaries" in (tmp_path / "report.txt").read_text()


def test_limits_that_hold_say_nothing(capsys):
    code, out, err = run(capsys, "inspect", "cli_models:attention", "--fail-on", "kernels<1", "--fail-on", "step_us>1M")
    assert (code, err) == (0, "")
    assert "1 of 1" in out


def test_nothing_to_rewrite_is_no_error(capsys):
    code, out, _ = run(capsys, "inspect", "cli_models:nothing")
    assert code == 0
    for kind in ("attention", "norm_rope_attention", "qkv", "rope"):
        assert f"{kind}: nothing found. Looked for" in " ".join(out.split())


def test_model_without_operations(capsys):
    code, out, _ = run(capsys, "inspect", "cli_models:empty")
    assert code == 0
    assert "Dynamo made no graph" in out


def test_graph_breaks_and_refusals_are_shown(capsys):
    code, out, _ = run(capsys, "inspect", "cli_models:halves")
    text = " ".join(out.split())
    assert code == 0
    assert "2 graphs" in text
    assert "graph break at" in text
    assert "head_size 192" in text
    assert "Sites left alone" in text


@pytest.mark.parametrize("format", ["text", "json"])
def test_output_file(capsys, tmp_path, format):
    path = tmp_path / "report"
    code, out, _ = run(capsys, "inspect", "cli_models:attention", "--format", format, "-o", path)
    assert (code, out) == (0, "")
    assert "attention" in path.read_text()


def test_policy_none_keeps_everything(capsys):
    report = json.loads(run(capsys, "inspect", "cli_models:attention", "--policy", "none", "--format", "json")[1])
    assert {s["choice"] for s in report["sites"]} == {"keep"}


def test_kernels_lists_limits_and_forms(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # words of a narrow column are cut
    code, out, _ = run(capsys, "kernels")
    assert code == 0
    for word in ("rope", "qkv", "attention", "builtin", "nkilib 2.27", "<= 128", "triple", "interleaved"):
        assert word in out


def test_help(capsys):
    assert run(capsys)[0] == 0
    code, out, _ = run(capsys, "inspect", "--help")
    assert code == 0
    assert "Exit codes" in out


def test_missing_diffusers(capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr("fluxrewrite.analysis.capture_spec", capture_spec)  # not what an earlier test traced
    code, _, err = run(capsys, "inspect", "flux2-klein-4b")
    assert code == 2
    assert "fluxrewrite[diffusers]" in err
