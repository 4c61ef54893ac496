import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.cost.devices import load_device
from fluxrewrite.errors import RewriteError
from fluxrewrite.fusion.boundary.compare import effect_of
from fluxrewrite.fusion.boundary.target import Target
from fluxrewrite.graph import GraphView
from fluxrewrite.measure import kernel_times
from fluxrewrite.measure.calibrate import QUICK, Effort
from fluxrewrite.measure.kernel_times import call_time, distinct_calls
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection

ONCE = Effort(rounds=3, stream_mb=1, matmul_s=0.01, matmul_max=128, loops=2)


def attend(x, y):
    a = F.scaled_dot_product_attention(x, x, x)
    return F.scaled_dot_product_attention(a, a, a), F.scaled_dot_product_attention(y, y, y)


@pytest.fixture
def gm(trace):
    return trace(attend, x=torch.randn(1, 2, 8, 16), y=torch.randn(1, 2, 4, 16))


@pytest.fixture
def selection():
    return Selection.of("attention", "reference")


def test_calls_that_differ_in_nothing_are_timed_once(gm, selection):
    found = list(distinct_calls(gm, selection))
    assert [c.site.shapes["sequence"] for c in found] == [8, 4]
    assert [c.name for c in found] == ["attention:sdpa sequence 8", "attention:sdpa sequence 4"]
    assert [tuple(o.shape) for o in found[1].part.operands] == [(1, 2, 4, 16)]


def test_a_time_has_the_kind_form_and_sizes_of_its_call(gm, selection):
    time = call_time(next(distinct_calls(gm, selection)), ONCE)
    assert (time.kernel, time.form, time.dtype) == ("attention", "sdpa", "float32")
    assert time.shapes["sequence"] == 8
    assert time.us.basis == "measured"
    assert 0 < time.us.value < 1e6
    assert "median of 3" in time.us.source


def test_a_measured_call_counts_in_the_prediction(gm, selection):
    """In the place of the model, for the very sizes that were measured only."""
    (first, second) = distinct_calls(gm, selection)
    base = Target.of("cpu")
    view = GraphView(gm.graph)
    rewritten, plan = apply(gm, make_plan(view, selection))

    def predicted(*times):
        device = base.device.model_copy(update={"calls": times})
        return effect_of(
            view, rewritten.graph, plan.replacements(), Target(device, base.regime, base.rules, base.evidence, True)
        ).after.us

    def known(call, us):
        time = call_time(call, ONCE)
        return time.model_copy(update={"us": time.us.model_copy(update={"value": us, "low": us, "high": us})})

    assert predicted(known(first, 500.0)) - predicted(known(first, 100.0)) == pytest.approx(2 * 400)
    assert predicted(known(second, 500.0)) - predicted(known(second, 100.0)) == pytest.approx(400)
    other = known(first, 500.0).model_copy(update={"dtype": "bfloat16"})
    assert predicted(other) == predicted()


def test_symbolic_sizes_are_left_out(trace, selection):
    gm = trace(lambda x: F.scaled_dot_product_attention(x, x, x), dynamic=True, x=torch.randn(1, 2, 8, 16))
    assert list(distinct_calls(gm, selection)) == []


def test_a_site_that_cannot_be_replaced_is_an_error(gm, selection, monkeypatch):
    monkeypatch.setattr(kernel_times, "calls_of", lambda view, sites: [None])
    with pytest.raises(RewriteError, match="it has no kernel call"):
        next(distinct_calls(gm, selection))


MODEL = """
import torch, torch.nn.functional as F
class M(torch.nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)
class N(torch.nn.Module):
    def forward(self, x):
        return x + 1
def make():
    return M(), {"x": torch.randn(1, 2, 8, 16)}
def empty():
    return N(), {"x": torch.randn(1, 2, 8, 16)}
"""


def test_the_command_writes_them_into_the_profile(tmp_path, monkeypatch, capsys):
    from fluxrewrite import cli
    from fluxrewrite.measure import calibrate

    (tmp_path / "calls_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    shipped = load_device("cpu")
    monkeypatch.setattr(calibrate, "calibrate", lambda effort, threads, step: shipped)
    out = tmp_path / "me.json"
    assert cli.main(["calibrate", "--quick", "--for", "calls_model:make", "-o", str(out)]) == 0
    profile = load_device(out)
    assert [(c.kernel, c.shapes["sequence"]) for c in profile.calls] == [("attention", 8)]
    assert f"median of {QUICK.rounds}" in profile.calls[0].us.source
    assert cli.main(["devices", str(out)]) == 0
    assert "attention:sdpa" in capsys.readouterr().out
    assert cli.main(["calibrate", "--quick", "--for", "calls_model:empty"]) == 2
    assert "no kernel call to time; fluxrewrite inspect calls_model:empty says why" in capsys.readouterr().err
    assert cli.main(["calibrate", "--from", "t.json", "--for", "calls_model:make"]) == 2
    assert "have no effect with --from, which measures nothing" in capsys.readouterr().err


def test_a_call_time_has_microseconds():
    shipped = load_device("cpu")
    data = {"kernel": "a", "form": "b", "dtype": "float32", "shapes": {}, "us": shipped.memory}
    with pytest.raises(ValueError, match="unit 'GB/s' where 'us' is meant"):
        kernel_times.CallTime(**data)
