"""Checks of sites on graphs that Dynamo made, with the values that it got."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fluxrewrite.graph import GraphView
from fluxrewrite.measure.verify.sites import Checking, checks_of
from fluxrewrite.rewrite.joined_weights import owned
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection


class Block(nn.Module):
    """Three projections and attention over two heads. `late`: the value's weight is computed after query and key."""

    def __init__(self, late=False):
        super().__init__()
        self.late = late
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        q, k = self.q(x), self.k(x)
        v = F.linear(x, self.v.weight * 2, self.v.bias) if self.late else self.v(x)
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)


def graph(model, **inputs):
    """The one graph of a call, and its values."""
    seen = []
    with torch.no_grad():
        torch.compile(model, backend=lambda gm, values: seen.append((gm, values)) or gm.forward, dynamic=False)(
            **inputs
        )
    ((gm, values),) = seen
    return gm, values


def planned(gm, values, kernels=None, policy="all", provider="reference", execution="reference"):
    selection = Selection.of(kernels, provider, execution)
    return make_plan(GraphView(gm.graph), selection, policy, joinable=owned(gm, values))


def checked(gm, values, plan, tolerance=None):
    """The results, and what the graph returned."""
    results = []
    checking = Checking(gm, checks_of(gm, plan), 3, tolerance, results.append)
    with torch.no_grad():
        (out, *_) = checking.run(*values)
    assert checking._kept == {}, "every value is let go"
    return results, out


X = torch.randn(2, 5, 16)


def test_every_site_is_compared_and_the_graph_runs_as_it_was():
    model = Block()
    gm, values = graph(model, x=X)
    results, out = checked(gm, values, planned(gm, values))
    assert [(r.kind, r.form, r.choice, r.passed) for r in results] == [
        ("qkv", "triple", "kernel", True),
        ("attention", "sdpa", "kernel", True),
    ]
    assert all(r.graph == 3 and r.dtype == "float32" and r.tolerance == 1e-5 and r.norm is not None for r in results)
    with torch.no_grad():
        torch.testing.assert_close(out, model(X), atol=0, rtol=0)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["qkv", "attention"])
def test_an_error_in_one_kernel_is_found_at_its_site_alone(plant, kind, late):
    """Also where the call stands behind the operations that it replaces."""
    plant(kind, lambda t: t + 0.01 * t.abs().max())
    gm, values = graph(Block(late), x=X)
    plan = planned(gm, values, provider="mine", execution="emulate")
    assert len(plan.replacements()) == 2
    if late:
        (site,) = (r.site for r in plan.replacements() if r.site.kind == "qkv")
        order = list(gm.graph.nodes)
        assert min(map(order.index, site.outputs)) < order.index(site.before)
    results, _ = checked(gm, values, plan)
    assert {r.kind: r.passed for r in results} == {"qkv": kind != "qkv", "attention": kind != "attention"}
    (wrong,) = (r for r in results if not r.passed)
    assert wrong.relative == pytest.approx(0.01, rel=1e-3)
    assert wrong.max_abs > 0


def test_one_wrong_result_of_several_is_enough(plant):
    plant("qkv", lambda t: t * 1.01 if t.shape[-1] == 8 else t)

    def grouped(x, a, b, c):
        q = F.linear(x, a).unflatten(-1, (2, 8)).transpose(1, 2)
        k, v = (F.linear(x, w).unflatten(-1, (1, 8)).transpose(1, 2) for w in (b, c))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    weights = {"a": torch.randn(16, 16), "b": torch.randn(8, 16), "c": torch.randn(8, 16)}
    gm, values = graph(grouped, x=X, **weights)
    (result,), _ = checked(gm, values, planned(gm, values, "qkv", provider="mine", execution="emulate"))
    assert not result.passed
    assert result.norm == pytest.approx(0.01, rel=1e-3)


def test_tolerance():
    gm, values = graph(Block(), x=X)
    results, _ = checked(gm, values, planned(gm, values), tolerance=0.2)
    assert {(r.tolerance, r.norm_tolerance, round(r.least_cosine, 9)) for r in results} == {(0.2, 0.1, 0.98)}


def test_inline_sites_run_on_joined_weights_and_leave_the_parameters_where_they_were():
    model = Block()
    gm, values = graph(model, x=X)
    places = [p.data_ptr() for p in model.parameters()]
    plan = planned(gm, values, "qkv", policy=lambda site: "inline")
    results, _ = checked(gm, values, plan)
    assert [(r.kind, r.choice, r.passed) for r in results] == [("qkv", "inline", True)]
    assert [p.data_ptr() for p in model.parameters()] == places


def test_an_inline_site_that_is_wrong_fails(monkeypatch):
    model = Block()
    gm, values = graph(model, x=X)
    plan = planned(gm, values, "qkv", policy=lambda site: "inline")
    monkeypatch.setattr(
        "fluxrewrite.measure.verify.sites.torch.cat",
        lambda parts: sum(p.sum() for p in parts).expand(48, 16) if parts[0].dim() == 2 else torch.ones(48),
    )
    results, _ = checked(gm, values, plan)
    assert [r.passed for r in results] == [False]


@pytest.mark.parametrize(
    ("harm", "note"),
    [
        (lambda t: t * float("nan"), "the replacement computes NaN or inf"),
        (lambda t: t[..., :1], "expected float32"),
        (lambda t: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_kernel_that_gives_no_number_fails_with_a_note(plant, harm, note):
    plant("attention", harm)
    gm, values = graph(Block(), x=X)
    results, _ = checked(gm, values, planned(gm, values, provider="mine", execution="emulate"))
    assert {r.kind: r.passed for r in results} == {"qkv": True, "attention": False}
    (wrong,) = (r for r in results if not r.passed)
    assert note in wrong.note
    assert "\n" not in wrong.note
    assert (wrong.max_abs, wrong.relative, wrong.norm, wrong.cosine) == (None,) * 4
    assert wrong.excess == float("inf")


def test_values_that_are_not_finite_in_the_model_fail():
    gm, values = graph(Block(), x=X * float("inf"))
    results, _ = checked(gm, values, planned(gm, values))
    assert all("the original computes NaN or inf" in r.note for r in results)


def test_a_result_is_compared_before_it_is_overwritten(plant):
    """The model zeroes the result in place right after the site: a later comparison would find zeros."""
    plant("attention", lambda t: t * 1.01)

    def f(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v)
        other = out + 1
        out.zero_()
        return other + out

    gm, values = graph(f, **{n: torch.randn(1, 2, 4, 8) for n in "qkv"})
    (result,), _ = checked(gm, values, planned(gm, values, "attention", provider="mine", execution="emulate"))
    assert result.relative == pytest.approx(0.01, rel=1e-3)


def test_a_site_without_users_has_nothing_to_compare():
    gm, values = graph(lambda x: (F.scaled_dot_product_attention(x, x, x), x + 1), x=torch.randn(1, 2, 4, 8))
    out = gm.graph.output_node()
    out.args = (tuple(n for n in out.args[0] if "add" in n.name),)
    gm.recompile()
    results, _ = checked(gm, values, planned(gm, values, "attention"))
    assert [(r.note, r.passed) for r in results] == [("nothing uses its results", False)]


def test_a_site_that_cannot_be_replaced_fails_with_the_reason(monkeypatch):
    gm, values = graph(lambda x: F.scaled_dot_product_attention(x, x, x), x=torch.randn(1, 2, 4, 8))
    plan = planned(gm, values, "attention")
    emit = type(plan.selection.passes["attention"]).emit
    monkeypatch.setattr(
        type(plan.selection.passes["attention"]),
        "emit",
        lambda self, site, builder, op: [
            builder.call("float", emit(self, site, builder, op)[0].args[0])[None] for _ in "a"
        ],
    )
    results, _ = checked(gm, values, plan)
    assert [r.passed for r in results] == [False]
    assert "TypeError" in results[0].note


def test_memory_is_freed_after_the_last_site():
    """Of a chain of sites, the operands of one at most are held besides what the graph itself holds."""
    gm, values = graph(
        lambda x: [x := F.scaled_dot_product_attention(x, x, x) for _ in range(4)][-1], x=torch.randn(1, 2, 4, 8)
    )
    held = []

    class Watched(Checking):
        def run_node(self, n):
            value = super().run_node(n)
            held.append(len(self._kept) + sum(len(c.results) for cs in self._starts.values() for c in cs))
            return value

    results = []
    checks = checks_of(gm, planned(gm, values, "attention"))
    assert len(checks) == 4
    Watched(gm, checks, 0, None, results.append).run(*values)
    assert len(results) == 4
    assert max(held) <= 2


def test_a_result_that_is_written_piece_by_piece_is_compared_when_it_is_whole():
    class Written(nn.Module):
        def forward(self, x, cos, sin):
            first, second = x[..., 0::2], x[..., 1::2]
            out = torch.empty_like(x)
            out[..., 0::2] = first * cos - second * sin
            out[..., 1::2] = first * sin + second * cos
            return out * 2

    gm, values = graph(Written(), x=torch.randn(2, 5, 3, 8), cos=torch.randn(5, 1, 4), sin=torch.randn(5, 1, 4))
    results, _ = checked(gm, values, planned(gm, values, "rope"))
    assert [(r.kind, r.passed) for r in results] == [("rope", True)]
