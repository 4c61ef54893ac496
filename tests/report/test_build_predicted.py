"""The predicted part of the report: odd models, graph breaks, several graphs, and the reports of a compile."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fluxrewrite
from fluxrewrite import Options, analysis
from fluxrewrite.cli import main
from fluxrewrite.cost import Work, device_names, estimate, load_device
from fluxrewrite.fusion.boundary import whole_step
from fluxrewrite.models.capture import capture
from fluxrewrite.report.merge import merge
from fluxrewrite.report.model import Report

HEADS, TOKENS, SIZE = 2, 8, 16


def heads(size=SIZE, dtype=torch.float32):
    return torch.randn(1, HEADS, TOKENS, size).to(dtype)


def attend(x):
    return F.scaled_dot_product_attention(x, x, x)


def broken_up(x):
    y = x.relu()
    torch._dynamo.graph_break()
    return attend(y.exp()) * 2


ODD = {
    "no kernels": (lambda x: x + 1, heads()),
    "every site refused": (attend, heads(192)),
    "a dtype without a rate": (lambda x: attend(x @ x.mT @ x), heads(dtype=torch.float64)),
    "integers": (lambda x: x * 2, torch.arange(3)),
    "no elements": (attend, torch.randn(0, HEADS, TOKENS, SIZE)),
    "complex numbers": (lambda x: torch.view_as_complex(x.unflatten(-1, (-1, 2))) * 2, heads()),
    "memory changed in place": (lambda x: x.add_(1).relu(), heads()),
    "a number out": (lambda x: attend(x).sum().item(), heads()),
}


@pytest.mark.parametrize("policy", ["all", "auto", "none"])
@pytest.mark.parametrize("name", ODD)
def test_odd_models_are_reported(name, policy):
    fn, x = ODD[name]
    for device, regime in (("trn2", "lazy"), ("cpu", "compile")):
        report = fluxrewrite.inspect(fn, x=x, options=Options(policy=policy, device=device, regime=regime))
        effect = report.effect
        assert 0 < effect.step_before.us < math.inf
        assert effect.step_before.low_us <= effect.step_before.us <= effect.step_before.high_us
        assert (effect.device, effect.regime) == (device, regime)
        assert report.segments.before == report.model.graphs
        taken = [s for s in report.sites if s.choice == "kernel"]
        assert [b.site for b in report.boundaries if b.kind != "layout" and b.site] == [s.id for s in taken]
        assert {v.kernel for v in report.verdicts} >= {"attention", "norm_rope_attention", "qkv", "rope"}
        assert Report.model_validate_json(report.to_json()) == report


def test_every_site_refused_is_not_applicable_and_says_why():
    report = fluxrewrite.inspect(attend, x=heads(192), options=Options(kernels="attention"))
    (verdict,) = report.verdicts
    assert verdict.verdict == "not_applicable"
    assert "head_size 192" in verdict.why
    assert report.boundaries == ()


def test_an_empty_graph_has_no_executable_and_takes_no_time():
    report = fluxrewrite.inspect(lambda x: x, x=heads(), options=Options(policy="auto"))
    assert report.model.graphs == 0
    assert (report.segments.before, report.segments.after) == (0, 0)
    assert report.effect.step_before.us == report.effect.step_after.us == 0
    assert report.boundaries == ()


@pytest.mark.parametrize("regime", ["compile", "lazy"])
def test_a_graph_break_splits_and_names_reason_and_line(regime):
    report = fluxrewrite.inspect(broken_up, x=heads(), options=Options(kernels="attention", regime=regime))
    (stop,) = [b for b in report.boundaries if not b.site]
    assert stop.kind == "split"
    assert "graph_break" in stop.reason
    assert stop.path.rsplit(":", 1)[0].endswith("test_build_predicted.py")
    line = int(stop.path.rsplit(":", 1)[1])
    assert "torch._dynamo.graph_break()" in Path(__file__).read_text().splitlines()[line - 1]
    assert stop.cost_us == pytest.approx(estimate(load_device("trn2"), Work(launches=1)).us)
    (call,) = [b for b in report.boundaries if b.site]
    assert call.graph == 1
    assert report.segments.before == 2
    assert report.segments.after == (2 if regime == "compile" else 4)


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.RMSNorm(SIZE)

    def forward(self, x):
        return attend(self.norm(x)) * 2


@pytest.mark.parametrize("policy", ["all", "auto"])
def test_dynamic_sizes_are_priced_as_traced(policy):
    def once(dynamic):
        options = Options(kernels="attention", policy=policy, dynamic=dynamic, provider="reference")
        return fluxrewrite.inspect(Normed(), x=torch.randn(3, HEADS, TOKENS, SIZE), options=options)

    fixed, dynamic = once(False), once(True)
    assert dynamic.model.dynamic_sizes
    assert dynamic.effect.step_before == fixed.effect.step_before
    assert dynamic.effect.step_after == fixed.effect.step_after
    assert [b.bytes for b in dynamic.boundaries] == [b.bytes for b in fixed.boundaries]


def test_symbolic_sizes_break_the_limits_of_the_built_in_kernels():
    options = Options(kernels="attention", dynamic=True)
    report = fluxrewrite.inspect(Normed(), x=torch.randn(3, HEADS, TOKENS, SIZE), options=options)
    (site,) = report.sites
    assert site.status == "ineligible"
    (reason,) = [r for r in site.reasons if "kv_sequence" in r.message]
    assert reason.code == "limit"
    assert f"kv_sequence {site.shapes['kv_sequence']}: the kernel takes kv_sequence" in reason.message
    assert "<=" in reason.message
    assert isinstance(site.shapes["kv_sequence"], str)


def test_auto_is_no_slower_than_none_as_reported(flux2, monkeypatch):
    net, inputs = flux2()
    captured = capture(net, inputs)
    monkeypatch.setattr(analysis, "capture", lambda *_, **__: captured)
    for device in device_names():
        for regime in load_device(device).regimes:
            auto, none = (
                fluxrewrite.inspect(net, options=Options(policy=p, device=device, regime=regime), **inputs)
                for p in ("auto", "none")
            )
            assert auto.effect.step_after.us <= none.effect.step_after.us
            assert auto.effect.choices == none.effect.choices
            for choice in auto.effect.choices:
                assert choice.times_us[choice.chosen] <= choice.times_us["none"]
            kept = [s for s in auto.sites if s.choice == "keep" and s.status == "eligible"]
            assert all(s.reasons[0].code in ("policy", "covered") for s in kept)


def test_cli_has_policy_device_and_regime(tmp_path, monkeypatch, capsys):
    import sys

    (tmp_path / "predicted_models.py").write_text(
        "import torch\nimport torch.nn.functional as F\n"
        "class Attend(torch.nn.Module):\n"
        "    def forward(self, x): return F.scaled_dot_product_attention(x, x, x)\n"
        "def model(): return Attend(), {'x': torch.randn(1, 2, 8, 16)}\n"
    )
    monkeypatch.chdir(tmp_path)
    args = ["inspect", "predicted_models:model", "--policy", "auto", "--device", "cpu", "--regime", "lazy"]
    assert main([*args, "--compiler", "xla", "--format", "json"]) == 0
    sys.modules.pop("predicted_models", None)
    effect = json.loads(capsys.readouterr().out)["effect"]
    assert (effect["device"], effect["regime"]) == ("cpu", "lazy")
    assert effect["compiler"].startswith("xla")
    assert effect["choices"][0]["chosen"] == "none"


def test_merged_reports_keep_what_is_predicted(tmp_path):
    path = tmp_path / "r.json"
    backend = fluxrewrite.backend(inner="eager", report=path, device="trn2", provider="reference")
    with torch.no_grad():
        torch.compile(lambda x: broken_up(attend(x).sin()), backend=backend)(heads())
    single = backend.reports
    report = Report.model_validate_json(path.read_text())
    assert report == merge(single)
    assert len(single) == report.model.graphs > 1
    assert {b.site for b in report.boundaries} <= {s.id for s in report.sites}
    assert [b.graph for b in report.boundaries] == [i for i, r in enumerate(single) for _ in r.boundaries]
    for name in ("bytes_before", "bytes_after", "kernels_before", "kernels_after", "lost_elsewhere"):
        assert getattr(report.effect, name) == sum(getattr(r.effect, name) for r in single)
    assert report.effect.step_after.us == pytest.approx(sum(r.effect.step_after.us for r in single), rel=1e-5)
    assert report.segments.before == report.effect.compile.executables == len(single)
    assert len(report.effect.choices) == sum(len(r.effect.choices) for r in single)
    assert [v.kernel for v in report.verdicts] == list(dict.fromkeys(v.kernel for r in single for v in r.verdicts))
    verdicts = {v.kernel: v for v in report.verdicts}
    assert verdicts["rope"].verdict == "not_applicable"
    times = [(r.effect.step_before.us, v.ratio) for r in single for v in r.verdicts if v.kernel == "attention"]
    assert verdicts["attention"].ratio == pytest.approx(
        sum(us * (ratio or 1) for us, ratio in times) / sum(us for us, _ in times), rel=1e-5
    )


def run(backend, net, inputs):
    with torch.no_grad():
        return torch.compile(net, backend=backend)(**inputs)


def test_backend_with_policy_auto(flux2, tmp_path):
    net, inputs = flux2()
    reports = []
    backend = fluxrewrite.backend(inner="eager", policy="auto", report=reports.append, strict=True)
    found = run(backend, net, inputs)
    with torch.no_grad():
        torch.testing.assert_close(found, net(**inputs), atol=1e-5, rtol=1e-5)
    (report,) = reports
    assert report.summary.policy == "auto"
    assert report.effect.device == "cpu"
    assert report.effect.choices
    assert report.effect.step_after.us <= report.effect.step_before.us


def test_backend_reports_boundaries_of_what_it_rewrote(flux2):
    net, inputs = flux2()
    reports = []
    backend = fluxrewrite.backend(inner="eager", report=reports.append, device="trn2", strict=True)
    found = run(backend, net, inputs)
    with torch.no_grad():
        torch.testing.assert_close(found, net(**inputs), atol=1e-5, rtol=1e-5)
    (report,) = reports
    taken = {s.id for s in report.sites if s.choice == "kernel"}
    assert taken
    assert {b.site for b in report.boundaries if b.kind == "barrier"} == taken
    assert report.effect.kernels_after > 0
    assert report.segments.after == 1


def boom(*_, **__):
    raise ValueError("boom")


def rewritten_by(**options):
    """The graphs that an inner backend gets, and the reports."""
    graphs, reports = [], []

    def inner(gm, _):
        graphs.append(gm)
        return gm

    backend = fluxrewrite.backend(inner=inner, device="trn2", report=reports.append, **options)
    with torch.no_grad():
        found = torch.compile(attend, backend=backend)(X)
        torch.testing.assert_close(found, attend(X))
        torch.compile(attend, backend=backend)(torch.randn(2, HEADS, TOKENS, SIZE))
    return graphs, reports


X = heads()


@pytest.mark.parametrize(
    "where", ["fusion.boundary.whole_step.effect_of", "report.build.boundaries_of", "report.build.verdicts_of"]
)
def test_a_prediction_that_fails_leaves_the_rewrite_and_warns_once(monkeypatch, caplog, where):
    monkeypatch.setattr(f"fluxrewrite.{where}", boom)
    with caplog.at_level(logging.WARNING, "fluxrewrite"):
        graphs, reports = rewritten_by(kernels="attention")
    assert all("fluxrewrite.attention" in g.code.replace("::", ".") for g in graphs)
    assert sum("boom" in r.message for r in caplog.records) == 1
    assert "predicting" in next(r.message for r in caplog.records if "boom" in r.message)
    assert [r.effect for r in reports] == [None] * len(graphs)
    assert reports[0].summary.kinds["attention"].rewritten == 1
    assert merge(reports).effect is None
    torch._dynamo.reset()
    with pytest.raises(Exception, match="boom"):
        rewritten_by(kernels="attention", strict=True)


def test_a_chooser_that_fails_keeps_the_sites_and_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(analysis, "choose", boom)
    with caplog.at_level(logging.WARNING, "fluxrewrite"):
        graphs, reports = rewritten_by(kernels="attention", policy="auto")
    assert not any("fluxrewrite.attention" in g.code.replace("::", ".") for g in graphs)
    assert sum("boom" in r.message for r in caplog.records) == 1
    (site,) = reports[0].sites
    assert [(r.code, r.message) for r in site.reasons] == [("policy", "policy 'auto' raised ValueError('boom')")]
    torch._dynamo.reset()
    with pytest.raises(Exception, match="boom"):
        rewritten_by(kernels="attention", policy="auto", strict=True)


def test_a_prediction_that_fails_is_an_error_of_inspect(monkeypatch):
    monkeypatch.setattr(whole_step, "effect_of", boom)
    with pytest.raises(ValueError, match="boom"):
        fluxrewrite.inspect(attend, x=heads())
