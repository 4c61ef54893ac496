import functools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.attention.attention import Attention
from torch import nn

import fluxrewrite
from fluxrewrite import Report
from fluxrewrite.dynamo.backend import Backend
from fluxrewrite.dynamo.inner import default_inner
from fluxrewrite.errors import InputError, RewriteError
from fluxrewrite.graph import GraphView
from fluxrewrite.report.draw.page import page


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v)


X = torch.randn(2, 5, 16)


def run(backend, model=None, x=X):
    model = model or Block()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(x), model(x))


def test_reports_go_to_a_callback():
    reports = []
    run(fluxrewrite.backend(inner="eager", report=reports.append))
    assert {kind: k.rewritten for kind, k in reports[0].summary.kinds.items() if k.found} == {"attention": 1, "qkv": 1}


def test_reports_go_to_a_file_with_all_graphs(tmp_path):
    class Broken(Block):
        def forward(self, x):
            y = super().forward(x)
            torch._dynamo.graph_break()
            return y + super().forward(x * 2)

    path = tmp_path / "report.json"
    run(fluxrewrite.backend(inner="eager", report=path), Broken())
    report = json.loads(path.read_text())
    assert report["model"]["graphs"] == 2
    assert {s["graph"] for s in report["sites"]} == {0, 1}
    assert len({s["id"] for s in report["sites"]}) == len(report["sites"]) == 4
    assert report["inventory"]["attention"] == 2
    assert report["summary"]["kinds"]["qkv"]["rewritten"] == 2


def test_any_callable_is_an_inner_backend():
    seen = []

    def inner(gm, example_inputs):
        seen.extend(str(n.target) for n in gm.graph.nodes)
        return gm

    run(fluxrewrite.backend(inner=inner))
    assert {"fluxrewrite.qkv.default", "fluxrewrite.attention.default"} <= set(seen)


def test_options_reach_the_inner_backend():
    given = []
    run(fluxrewrite.backend(inner=lambda gm, inputs, options: given.append(options) or gm, options={"a": 1}))
    assert given == [{"a": 1}]


def test_name_and_options_of_torch_compile(tmp_path):
    path = tmp_path / "r.json"
    options = {"inner": "eager", "kernels": "attention", "report": str(path)}
    model = Block()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="fluxrewrite", options=options)(X), model(X))
    assert json.loads(path.read_text())["summary"]["kernels"] == ["attention"]


def test_default_inner_without_a_neuron_device_is_inductor():
    assert default_inner() == "inductor"
    assert fluxrewrite.backend().inner_name == "inductor"


def test_default_inner_with_a_neuron_device(monkeypatch):
    monkeypatch.setattr(torch._dynamo, "list_backends", lambda exclude_tags=None: ["inductor", "neuron"])
    assert default_inner() == "inductor"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert default_inner() == "inductor"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: type("D", (), {"type": "neuron"}))
    assert default_inner() == "neuron"


def test_policy_as_a_callable_sees_each_site():
    seen = []
    backend = fluxrewrite.backend(inner="eager", policy=lambda site: seen.append(site.kind) or site.kind == "qkv")
    run(backend)
    assert sorted(seen) == ["attention", "qkv"]
    assert {s.kind for s in backend.reports[0].sites if s.choice == "kernel"} == {"qkv"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"inner": "induktor"}, "unknown inner backend 'induktor'; known: .*inductor"),
        ({"kernels": "flash"}, "unknown kernel 'flash'"),
        ({"kernels": ("qkv:double",)}, "unknown form 'double' of 'qkv'; known: triple, packed, mixed"),
        ({"kernels": ()}, "no kernel named"),
        ({"policy": "best"}, "unknown policy 'best'; known: auto, measure, all, none, or a callable"),
        ({"device": "trn9"}, "unknown device 'trn9'; known: cpu, trn1"),
        ({"policy": "auto", "evidence": ["none.json"]}, "none.json: cannot be read"),
    ],
)
def test_wrong_arguments(arguments, told):
    with pytest.raises(InputError, match=told):
        fluxrewrite.backend(**arguments)


def broken(self, view):
    raise ValueError("boom")


def test_failure_inside_leaves_the_model_running_and_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(Attention, "find", broken)
    backend = fluxrewrite.backend(inner="eager", kernels="attention")
    with caplog.at_level(logging.WARNING, "fluxrewrite"):
        run(backend)
        run(backend, x=torch.randn(3, 4, 16))
    assert sum("boom" in r.message for r in caplog.records) == 1


def test_strict_raises(monkeypatch):
    monkeypatch.setattr(Attention, "find", broken)
    with pytest.raises(Exception, match="boom"):
        run(fluxrewrite.backend(inner="eager", strict=True))


def wrong_shape(self, site, builder, op):
    return [builder.call("sum", site.operands["q"])]


def test_replacement_that_differs_is_taken_back(monkeypatch, caplog):
    monkeypatch.setattr(Attention, "emit", wrong_shape)
    backend = fluxrewrite.backend(inner="eager")
    with caplog.at_level(logging.WARNING, "fluxrewrite"):
        run(backend)
    assert [s.choice for s in backend.reports[0].sites if s.kind == "attention"] == ["keep"]
    assert [s.choice for s in backend.reports[0].sites if s.kind == "qkv"] == ["kernel"]
    assert "1 sites are left alone" in caplog.text
    with pytest.raises(Exception, match=RewriteError.__name__):
        run(fluxrewrite.backend(inner="eager", strict=True))


def test_a_report_that_cannot_be_delivered_does_not_undo_the_rewrite(caplog):
    seen = []

    def fails(report):
        raise OSError("disk full")

    backend = fluxrewrite.backend(inner=lambda gm, _: seen.append(gm) or gm, report=fails)
    with caplog.at_level(logging.WARNING, "fluxrewrite"):
        run(backend)
    assert "disk full" in caplog.text
    assert "fluxrewrite.qkv" in seen[0].code.replace("::", ".")
    with pytest.raises(InputError, match="does not exist"):
        fluxrewrite.backend(report="no/such/folder/r.json")


def test_a_policy_that_raises_keeps_its_sites(caplog):
    backend = fluxrewrite.backend(inner="eager", policy=lambda site: 1 / (site.kind == "qkv"))
    with caplog.at_level(logging.WARNING, "fluxrewrite"):
        run(backend)
    assert "ZeroDivisionError" in caplog.text
    assert {s.kind for s in backend.reports[0].sites if s.choice == "kernel"} == {"qkv"}


def test_a_pass_that_raises_leaves_the_others(monkeypatch):
    monkeypatch.setattr(Attention, "find", broken)
    backend = fluxrewrite.backend(inner="eager")
    run(backend)
    assert {s.kind for s in backend.reports[0].sites if s.choice == "kernel"} == {"qkv"}


def test_options_together_with_a_backend_object_are_refused():
    with pytest.raises(Exception, match="pass them to fluxrewrite"):
        torch.compile(Block(), backend=fluxrewrite.backend(inner="eager"), options={"a": 1})(X)
    with pytest.raises(Exception, match="unknown options kernel; known: inner, kernels"):
        torch.compile(Block(), backend="fluxrewrite", options={"kernel": "qkv"})(X)


def test_graphs_of_one_model_share_the_report_of_named_options(tmp_path):
    class Broken(Block):
        def forward(self, x):
            y = super().forward(x)
            torch._dynamo.graph_break()
            return y + super().forward(x * 2)

    path = tmp_path / "r.json"
    with torch.no_grad():
        torch.compile(Broken(), backend="fluxrewrite", options={"inner": "eager", "report": str(path)})(X)
    assert json.loads(path.read_text())["model"]["graphs"] == 2


def test_nothing_found_is_said_once(caplog):
    backend = fluxrewrite.backend(inner="eager", kernels="rope")
    with caplog.at_level(logging.WARNING, "fluxrewrite"):
        run(backend)
        run(backend, x=torch.randn(3, 4, 16))
    assert sum("rope: no site" in r.message for r in caplog.records) == 1


def test_tlparse_gets_the_report(monkeypatch):
    sent = {}

    def record(name, metadata_fn=dict, *, payload_fn=lambda: None, **_):
        sent[metadata_fn()["name"]] = payload_fn()

    monkeypatch.setattr("fluxrewrite.dynamo.reporting.trace_structured", record)
    backend = fluxrewrite.backend(inner="eager")
    run(backend)
    assert json.loads(sent["fluxrewrite_report"]) == json.loads(backend.reports[0].to_json())
    assert sent["fluxrewrite_page"] == page(backend.reports[0])
    assert "fluxrewrite.attention" in sent["fluxrewrite_after"]


PROGRAM = """
import torch, fluxrewrite
import torch.nn.functional as F
backend = fluxrewrite.backend(inner="eager", kernels="attention", device="trn2")
f = torch.compile(lambda x: F.scaled_dot_product_attention(x.exp(), x, x).relu(), backend=backend)
with torch.no_grad(): f(torch.randn(1, 2, 4, 8))
print(backend.reports[0].to_json())
"""


def _apart(report):
    """All but the floats of a report, and these."""
    floats = []
    rest = json.loads(report, parse_float=lambda text: floats.append(float(text)))
    return rest, sorted(floats)


def test_tlparse_shows_the_report_and_its_page(tmp_path):
    tlparse = Path(sys.executable).parent / "tlparse"
    traces, parsed = tmp_path / "traces", tmp_path / "parsed"
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, env={**os.environ, "TORCH_TRACE": str(traces)}, capture_output=True
    )
    (log,) = traces.iterdir()
    text = log.read_text()
    assert all(f'"name": "fluxrewrite_{what}"' in text for what in ("report", "page", "after"))
    if not tlparse.is_file():
        pytest.skip("needs tlparse, of the extra test")
    subprocess.run([tlparse, log, "-o", parsed, "--no-browser", "--strict"], check=True, capture_output=True)
    (report,) = parsed.glob("*/fluxrewrite_report_*.json")
    (shown,) = parsed.glob("*/fluxrewrite_page_*.txt")
    (rest, floats), (expected, exact) = _apart(report.read_text()), _apart(found.stdout)
    assert rest == expected
    assert floats == pytest.approx(exact)  # tlparse writes some an ulp off
    assert shown.read_text().rstrip() == page(Report.model_validate_json(found.stdout)).rstrip()
    assert 'data-site="model.attention.0"' in shown.read_text()
    assert shown.name in (parsed / "index.html").read_text()


def test_second_rewrite_changes_nothing(trace):
    from fluxrewrite.rewrite.plan import apply
    from fluxrewrite.rewrite.planner import make_plan
    from fluxrewrite.rewrite.selection import Selection

    gm = trace(Block(), x=X)
    once, _ = apply(gm, make_plan(GraphView(gm.graph), Selection.of()))
    plan = make_plan(GraphView(once.graph), Selection.of())
    assert not plan.replacements()
    assert apply(once, plan)[0] is once


def test_new_nodes_carry_meta_and_the_old_graph_is_untouched(trace):
    from fluxrewrite.rewrite.plan import apply
    from fluxrewrite.rewrite.planner import make_plan
    from fluxrewrite.rewrite.selection import Selection

    gm = trace(Block(), x=X)
    before = gm.code
    rewritten, _ = apply(gm, make_plan(GraphView(gm.graph), Selection.of()))
    assert gm.code == before
    names = {n.name for n in gm.graph.nodes}
    new = [n for n in rewritten.graph.nodes if n.name not in names or "fluxrewrite" in str(n.target)]
    assert len(new) >= 3
    for node in new:
        assert {"example_value", "stack_trace", "from_node", "nn_module_stack"} <= node.meta.keys(), node
        assert node.meta["from_node"][0].pass_name.startswith("fluxrewrite.")


def test_one_backend_serves_several_models():
    backend = fluxrewrite.backend(inner="eager")
    assert isinstance(backend, Backend)
    run(backend)
    run(backend, nn.Sequential(Block()))
    assert len(backend.reports) == 2


def test_a_backend_by_name_is_made_once_for_all_graphs(monkeypatch):
    made, init = [], Backend.__init__

    @functools.wraps(init)
    def counted(self, *args, **kwargs):
        made.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Backend, "__init__", counted)
    options = {"inner": "eager", "provider": "reference", "device": "trn2"}
    for size in (3, 4):
        torch._dynamo.reset()
        torch.compile(lambda x: x + 1, backend="fluxrewrite", options=options)(torch.ones(size))
    assert len(made) == 1
