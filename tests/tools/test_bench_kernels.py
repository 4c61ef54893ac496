"""`tools/bench_kernels.py` and the baseline it brings."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from fluxrewrite.kernels.toolchain import Emulator

from fluxrewrite import kernel

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("bench_kernels")


@pytest.mark.parametrize(("cores", "heads"), [(1, 1), (2, 3)])
def test_loop_of_the_experiments_is_attention(bench, cores, heads):
    q, k, v = torch.randn(3, 1, heads, 256, 64).to(torch.bfloat16)
    out = Emulator(cores=cores).run(bench.LOOP, q, k, v, 0.125)
    wanted = torch.softmax(q.double() @ k.double().transpose(-1, -2) / 8, -1) @ v.double()
    assert (out.double() - wanted).norm() < 1e-2 * wanted.norm()


def test_loop_of_the_experiments_overflows(bench):
    """Why it is a baseline and no kernel of ours."""
    q = torch.full((1, 1, 128, 64), 8.0)
    out = Emulator().run(bench.LOOP, q, q, q, 0.125)
    assert not out.isfinite().any()


@pytest.mark.slow
def test_short_run(bench, capsys):
    assert bench.main(["--short"]) == 0
    out = capsys.readouterr().out
    assert "no hardware was used" in out
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ") and "kernel" not in line]
    assert len(rows) == 28
    assert all("not given" in row for row in rows)
    for row in rows:
        assert 0 < float(row[4]) <= float(row[3])
    assert re.search(r"- not tested: attention at S 4608", out)
    assert re.search(r"- MISSED: norm_rope_attention <= 0.8", out)
    assert re.search(r"- holds: norm_rope_attention, bounded <= 0.8", out)
    assert re.search(r"- not tested: every builtin kernel <= nkilib's", out)


def test_check_makes_a_missed_goal_an_error(bench, capsys, monkeypatch):
    monkeypatch.setattr(bench, "PROJECTIONS", ())
    monkeypatch.setattr(bench, "SEQUENCES", ((768, 6),))
    assert bench.main(["--check"]) == 1
    monkeypatch.setattr(bench, "FUSED", 1.1)
    assert bench.main(["--check"]) == 0
    monkeypatch.setattr(bench, "LONG", 768)
    monkeypatch.setattr(bench, "TENSOR_BUSY", 0.9)
    assert bench.main(["--check"]) == 1
    assert "MISSED: attention at S 768: Tensor engine busy >= 90%: not in 2 of 2 calls" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["trn1", "trn3"])
def test_other_devices(bench, capsys, monkeypatch, device):
    monkeypatch.setattr(bench, "PROJECTIONS", bench.PROJECTIONS[-1:])
    monkeypatch.setattr(bench, "SEQUENCES", ((768, 6),))
    assert bench.main(["--device", device]) == 0
    assert capsys.readouterr().out.count("| qkv |") == (1 if device == "trn1" else 2)


def test_without_the_provider(bench, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "load_plugins", lambda group: {"builtin": None})
    assert bench.main(["--short", "--nkilib", str(tmp_path)]) == 2
    assert "no provider nkilib" in capsys.readouterr().err


def test_with_a_provider_and_a_checkout(bench, capsys, monkeypatch, tmp_path):
    """A stand-in for the library: the builtin rope behind its name, and no other kernel."""
    from fluxrewrite.provider import Provider
    from fluxrewrite.provider.registry import implementations

    builtin = implementations("builtin")
    made = Provider("nkilib", ("2.29",), lambda _: {"rope": builtin["rope"]}, lambda _: None)
    entry = type("Entry", (), {"name": "nkilib", "load": lambda self: made})()
    real = kernel.entry_points
    monkeypatch.setattr(
        kernel,
        "entry_points",
        lambda group: [e for e in real(group=group) if e.name != "nkilib"] + [entry] * group.endswith("providers"),
    )
    implementations.cache_clear()
    monkeypatch.setattr(bench, "PROJECTIONS", ())
    monkeypatch.setattr(bench, "SEQUENCES", ((768, 6),))
    assert bench.main(["--nkilib", str(tmp_path)]) == 2
    assert "no src/nkilib_src/nkilib there" in capsys.readouterr().err
    (tmp_path / "src/nkilib_src/nkilib").mkdir(parents=True)
    assert bench.main(["--nkilib", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "nkilib@2.29" in out
    assert "- none: provider 'nkilib@2.29' has no kernel 'attention'; it has rope" in out
    assert "holds: every builtin kernel <= nkilib's: in all 2 calls; nearest or worst 1.00" in out
    assert bench.main(["--nkilib", str(tmp_path), "--nkilib-version", "9"]) == 2
    assert "unknown version '9' of provider 'nkilib'; known: nkilib@2.29" in capsys.readouterr().err
    implementations.cache_clear()
