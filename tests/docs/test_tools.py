"""The scripts of tools/ that the pages name, on smaller graphs: what they find and print, not how long it takes."""

import importlib
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from documented import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def tool(monkeypatch, capsys):
    """`tool(name, *arguments)`: a script as a module, with its arguments set; then `out()` is what it printed."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))

    def load(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        return importlib.import_module(name)

    load.out = lambda: capsys.readouterr().out
    return load


@pytest.fixture
def small(tool, monkeypatch):
    """The graphs of the two matching benchmarks: FLUX.2 of 1 + 2 blocks, and its nodes repeated up to 1,000."""
    matching = tool("bench_matching")
    monkeypatch.setattr(matching, "PRESETS", dict.fromkeys(matching.PRESETS, "flux2-klein-mini"))
    monkeypatch.setattr(matching, "LARGE_NODES", 1000)
    return matching


def test_matching(small, tool, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert tool("bench_matching", "--runs", "1").main() in (0, 1)  # 1: slower than the figures that it holds
    out = tool.out()
    for what, found in (("fluxrewrite: attention", 3), ("fluxrewrite: rope", 6), ("fluxrewrite: qkv", 4)):
        assert re.search(rf"{what} +│? *{found} ", out), out
    assert "SubgraphMatcher: triples" in out


def test_analysis(small, tool, monkeypatch):
    analysis = tool("bench_analysis", "--runs", "1")
    for name in ("PRESETS", "LARGE_NODES"):
        monkeypatch.setattr(analysis, name, getattr(small, name))
    assert analysis.main() in (0, 1)
    out = tool.out()
    assert re.search(r"\| klein-4B \| all \| 7 \| \d", out), out
    assert re.search(r"\| klein-4B \| 4 \| [\d.]+ \| 4 \|", out), (
        out
    )  # segments around 3 attention calls, ours and theirs


def test_kernels(tool):
    assert tool("bench_kernels", "--short").main() == 0
    assert "norm_rope_attention" in tool.out()


def test_oracles(tool, monkeypatch):
    oracles = tool("compare_oracles", "--image-tokens", "16", "--text-tokens", "8")
    monkeypatch.setattr(oracles, "VARIANTS", {"qkv": oracles.VARIANTS["qkv"]})
    assert oracles.main() == 0
    rows = [line.split(" | ") for line in tool.out().splitlines() if line.startswith("| ")][1:]
    assert next(r[0] for r in rows) == "| no kernel"
    assert len(rows) == 2
    assert all(r[-2:] == ["1.000", "1.000 |"] for r in rows[1:]), rows


class Attend(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 32)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return (F.scaled_dot_product_attention(q, k, v),)


def test_plans(tool, monkeypatch):
    plans = tool("bench_plans", "--models", "small", "--threads", "1")
    monkeypatch.setattr(plans, "MODELS", {"small": lambda: (Attend(), {"x": torch.randn(1, 16, 64)})})
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda gm, inputs, **_: gm.forward)
    monkeypatch.setattr("fluxrewrite.dynamo.measured_price.ROUNDS", (2, 3))
    monkeypatch.setattr("fluxrewrite.dynamo.measured_price.SECONDS", 0.1)
    threads = torch.get_num_threads()
    try:
        assert plans.main() in (0, 1)
    finally:
        torch.set_num_threads(threads)
    out = tool.out()
    for name in ("vanilla", "none", "all", "qkv alone", "attention alone", "auto", "measure"):
        assert f"| {name} |" in out
