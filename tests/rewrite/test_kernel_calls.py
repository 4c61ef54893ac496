"""Which nodes count as kernel calls: by mark, by op, and after the graph was copied, traced again or rewritten again."""

import copy
import pickle

import fluxrewrite.kernels.attention  # noqa: F401  # registers the op
import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from fluxrewrite.fusion.boundary.boundaries import calls_of
from fluxrewrite.graph import GraphView
from fluxrewrite.graph.subgraph import extract
from fluxrewrite.kernel import Kernel
from fluxrewrite.rewrite.kernel_calls import InsertedCall, inserted_call, is_kernel_call, kernel_calls, mark
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Site

Q = torch.randn(1, 2, 8, 16)


@torch.library.custom_op("callstest::attention", mutates_args=())
def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


@_attention.register_fake
def _(query, key, value, scale):
    return torch.empty(query.shape, dtype=query.dtype)


def attend(q):
    return F.scaled_dot_product_attention(q.relu(), q, q) + 1


def by_hand(q):
    return torch.ops.fluxrewrite.attention(q.relu(), q, q, scale=0.25) + 1


def names(gm):
    return {n.name for n in kernel_calls(GraphView(gm.graph))}


@pytest.fixture
def rewritten(trace):
    gm = trace(attend, q=Q)
    return apply(gm, make_plan(GraphView(gm.graph), Selection.of("attention", "reference")))


def test_an_inserted_call_says_what_it_replaced(rewritten):
    gm, plan = rewritten
    (call,) = kernel_calls(GraphView(gm.graph))
    (site,) = [r.site for r in plan.replacements()]
    assert inserted_call(call) == InsertedCall("attention", "attention", site.outputs[0].name)
    assert all(inserted_call(n) is None for n in gm.graph.nodes if n is not call)
    assert pickle.loads(pickle.dumps(inserted_call(call))) == inserted_call(call)


def test_the_mark_decides_for_an_op_that_no_installed_kernel_has(trace):
    gm = trace(lambda q: torch.ops.callstest.attention(q, q, q, 0.25) + 1, q=Q)
    assert names(gm) == set()
    (call,) = (n for n in gm.graph.nodes if "attention" in n.name)
    mark(call, InsertedCall("attention", "attention", "somewhere"))
    assert names(gm) == {call.name}


def test_copies_keep_the_mark(rewritten):
    gm, _ = rewritten
    expected = names(gm)
    for other in (copy.deepcopy(gm), torch.fx.GraphModule(gm, copy.deepcopy(gm.graph))):
        assert {n.name for n in other.graph.nodes if inserted_call(n)} == expected
    inside = [n for n in gm.graph.nodes if n.op == "call_function"]
    assert {n.name for n in extract(gm, inside).module.graph.nodes if inserted_call(n)} == expected


def test_a_graph_traced_again_has_lost_its_marks_but_not_its_calls(rewritten):
    gm, _ = rewritten
    again = make_fx(gm, tracing_mode="fake")(Q)
    assert not any(map(inserted_call, again.graph.nodes))
    assert {n.target for n in kernel_calls(GraphView(again.graph))} == {torch.ops.fluxrewrite.attention.default}


def test_a_model_may_call_the_op_itself(trace):
    gm = trace(by_hand, q=Q)
    (call,) = kernel_calls(GraphView(gm.graph))
    assert call.target is torch.ops.fluxrewrite.attention  # the packet, as the model spells it
    assert inserted_call(call) is None
    view = GraphView(gm.graph)
    assert [n.name for n in view.nodes if is_kernel_call(view, n)] == [call.name]


@pytest.mark.parametrize("regime", ["compile", "lazy"])
def test_a_call_of_the_models_own_is_opaque_and_no_boundary(trace, foresee, regime):
    found = foresee(trace(by_hand, q=Q), regime=regime)
    assert [g.kind for g in found.graphs[0].prediction.fusion.groups] == ["fused", "opaque", "fused"]
    assert found.boundaries == ()
    executables = 3 if regime == "lazy" else 1  # relu | call | add
    assert (found.segments_before, found.segments_after) == (executables, executables)
    assert found.before == found.after


def test_a_second_rewrite_changes_nothing(rewritten, foresee):
    gm, _ = rewritten
    again = foresee(gm, "attention", regime="lazy")
    assert again.boundaries == ()
    assert (again.segments_before, again.segments_after) == (3, 3)
    assert again.bytes_before == again.bytes_after == foresee(gm, "rope").bytes_before


def test_executables_count_a_call_of_the_models_own_and_an_inserted_one(trace, foresee):
    def both(q):
        return F.scaled_dot_product_attention(by_hand(q), q, q) + 1

    found = foresee(trace(both, q=Q), "attention", regime="lazy")
    assert (found.segments_before, found.segments_after) == (3, 5)  # relu | call | add | call | add


def test_a_mark_of_an_earlier_rewrite_is_not_taken_for_the_call_of_a_site(trace):
    """Names come back once a graph is copied: an old call may be marked with the name of a node that lives now."""

    def twice(q):
        return attend(by_hand(q))

    gm = trace(twice, q=Q)
    selection = Selection.of("attention", "reference")
    (site,) = [d.finding for d in make_plan(GraphView(gm.graph), selection).decisions if isinstance(d.finding, Site)]
    (old,) = kernel_calls(GraphView(gm.graph))
    mark(old, InsertedCall("attention", "attention", site.outputs[0].name))
    after, _ = apply(gm, make_plan(GraphView(gm.graph), selection))
    (call,) = calls_of(GraphView(after.graph), [site])
    assert call is not None
    assert call.name != old.name


def test_no_site_no_call(rewritten):
    assert calls_of(GraphView(rewritten[0].graph), []) == []


def test_kernels_are_loaded_only_for_a_custom_op(trace, monkeypatch):
    """Loading kernels imports their packages: a graph without custom ops needs none."""

    def load():
        raise AssertionError("kernels were loaded")

    monkeypatch.setattr("fluxrewrite.rewrite.kernel_calls.load_kernels", load)
    assert names(make_fx(attend, tracing_mode="fake")(Q)) == set()
    with pytest.raises(AssertionError, match="kernels were loaded"):
        names(trace(by_hand, q=Q))


def test_a_kernel_of_another_package(trace, monkeypatch):
    gm = trace(lambda q: torch.ops.callstest.attention(q, q, q, 0.25), q=Q)
    other = Kernel("other", torch.ops.callstest.attention.default, (), "")
    monkeypatch.setattr("fluxrewrite.rewrite.kernel_calls.load_kernels", lambda: {"other": other})
    assert names(gm) == {n.name for n in gm.graph.nodes if n.op == "call_function"}
