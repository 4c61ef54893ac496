"""The rules of Inductor on small graphs, one by one."""

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.fusion import fuse, load_rules
from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection

KIB = 1024
X = torch.ones(64, 64)
INDUCTOR = load_rules("inductor")


@pytest.fixture
def kernels(trace, opaque_kernel):
    def run(fn, rules=INDUCTOR, **inputs):
        groups = fuse(GraphView(trace(fn, **inputs).graph), rules).fusion.groups
        return [(g.kind, " ".join(sorted(g.nodes)), g.reads // KIB, g.writes // KIB) for g in groups]

    return run


def changed(**fields):
    return INDUCTOR.model_copy(update=fields)


def test_a_reduction_and_what_uses_it_are_one_kernel(kernels):
    def fn(x):
        return F.layer_norm(x * 2, (64,)) + 1

    assert kernels(fn, x=X) == [("fused", "add layer_norm mul", 16, 16)]
    apart = kernels(fn, changed(outer=False), x=X)
    assert [k[1] for k in apart] == ["layer_norm mul", "add layer_norm mul"]


def test_a_library_call_separates_loops(kernels):
    assert kernels(lambda x, w: F.linear(x * 2, w).relu() + 1, x=X, w=X.clone()) == [
        ("fused", "mul", 16, 16), ("library", "linear", 32, 16), ("fused", "add relu", 16, 16)
    ]  # fmt: skip


def test_an_operation_without_a_rule_is_a_call(kernels):
    made = kernels(lambda x: torch.linalg.inv(x * 2) + 1, x=X)
    assert [k[0] for k in made] == ["fused", "library", "fused"]


def test_a_kernel_call_separates_loops(kernels):
    made = kernels(lambda x: torch.ops.fusiontest.opaque.default(x * 2) + 1, x=X)
    assert made == [("fused", "mul", 16, 16), ("opaque", "opaque_default", 16, 16), ("fused", "add", 16, 16)]


def test_rules_cannot_make_a_loop_of_one_of_our_kernels(kernels):
    """Its operand is stored in any case, so other consumers read it and do not compute it."""

    def fn(a, b):
        y = a + b
        return y * 2, torch.ops.fusiontest.opaque.default(y)

    named = changed(merge=False, parts={**INDUCTOR.parts, "fusiontest.opaque": ("map",)})
    made = kernels(fn, named, a=X, b=X.clone())
    assert made == kernels(fn, changed(merge=False), a=X, b=X.clone())
    assert [k[:3] for k in made] == [("fused", "y", 32), ("opaque", "opaque_default", 16), ("fused", "mul", 16)]


def test_only_rules_that_say_so_copy_operands_of_our_kernels(kernels):
    def fn(x):
        return torch.ops.fusiontest.opaque.default(x.t())

    assert [k[0] for k in kernels(fn, x=X)] == ["opaque"]
    assert [k[0] for k in kernels(fn, changed(contiguous_calls=True), x=X)] == ["copy", "opaque"]


def test_an_operand_without_strides_is_copied(kernels):
    made = kernels(lambda x, w: F.linear(x.view(64, 4, 16).transpose(0, 1).reshape(64, 64), w), x=X, w=X.clone())
    assert [k[::2] for k in made] == [("copy", 16), ("library", 32)]


def reused(a, b, c, w):
    y = a + b + c
    return y * 2, (y * 3).t() @ w


def test_a_value_with_several_uses_is_stored_past_the_threshold(kernels):
    inputs = {"a": X, "b": X.clone(), "c": X.clone(), "w": X.clone()}
    for threshold, computed in ((2, 1), (3, 2)):
        made = kernels(reused, changed(reuse_reads=threshold, merge=False), **inputs)
        assert sum("y" in k[1].split() for k in made) == computed


def test_a_value_that_reads_too_much_is_stored_though_used_once(kernels):
    inputs = {name: X.clone() for name in "abc"}
    stored = kernels(lambda a, b, c: (a + b + c) * 2, changed(most_reads=2, merge=False), **inputs)
    assert [k[1] for k in stored] == ["add add_1", "mul"]
    assert len(kernels(lambda a, b, c: (a + b + c) * 2, changed(merge=False), **inputs)) == 1


def test_a_heavy_value_with_several_uses_is_computed_once(kernels):
    def fn(x, w):
        y = x.exp()
        return y * 2, y @ w, y.t() @ w

    made = kernels(fn, changed(merge=False), x=X, w=X.clone())
    assert sum("y" in k[1].split() for k in made) == 1


def test_without_inlining_every_operation_is_a_kernel(kernels):
    made = kernels(lambda x: (x * 2 + 1).sin(), changed(inline=False, merge=False), x=X)
    assert [k[1] for k in made] == ["mul", "add", "sin"]


def test_cat_is_stores_side_by_side_or_one_loop(kernels):
    def fn(x, y):
        return torch.cat([x * 2, y], 0)

    inputs = {"x": X, "y": torch.ones(32, 64)}
    assert kernels(fn, **inputs) == [("fused", "cat mul", 16, 16), ("copy", "cat", 8, 8)]
    assert kernels(fn, changed(join="map"), **inputs) == [("fused", "cat mul", 24, 24)]


def test_loops_that_share_an_input_are_one_kernel_until_a_call_lies_between(kernels):
    def fn(x, w):
        return x * 2, x * 3, F.linear(x * 4, w) + x

    made = kernels(fn, x=X, w=X.clone())
    assert [k[1] for k in made] == ["mul mul_1 mul_2", "linear", "add"]


def test_only_the_part_that_is_read_counts(kernels):
    assert kernels(lambda x: x[:16] * 2, x=X) == [("fused", "mul", 4, 4)]
    assert kernels(lambda x: (x * 2)[:16] + 1, x=X) == [("fused", "add mul", 4, 4)]
    assert kernels(lambda x, s: (x * s)[:16] + 1, x=X, s=torch.ones(64, 1)) == [("fused", "add mul", 4, 4)]


def test_an_expanded_input_is_read_once(kernels):
    assert kernels(lambda x, s: x + s.expand(64, 64), x=X, s=torch.ones(64)) == [("fused", "add", 16, 16)]


def test_some_nodes_only(trace):
    view = GraphView(trace(lambda x, w: F.linear(x * 2, w).relu() + 1, x=X, w=X.clone()).graph)
    chosen = [n for n in view.nodes if n.name in ("linear", "relu")]
    groups = fuse(view, INDUCTOR, nodes=chosen).fusion.groups
    assert [(g.kind, g.reads // KIB, g.writes // KIB) for g in groups] == [("library", 32, 16), ("fused", 16, 16)]


def attended(q, k, v):
    return F.scaled_dot_product_attention(q * 2, k + 1, v).transpose(1, 2).flatten(2) + 1


@pytest.mark.parametrize("name", ["inductor", "xla", "neuronx"])
def test_sites_as_calls_are_as_the_rewritten_graph(trace, name):
    q = torch.ones(1, 4, 32, 16)
    gm = trace(attended, q=q, k=q.clone(), v=q.clone())
    view = GraphView(gm.graph)
    plan = make_plan(view, Selection.of("attention"))
    sites = [d.finding for d in plan.decisions if d.choice == "kernel"]
    assert len(sites) == 1
    rewritten = fuse(GraphView(apply(gm, plan)[0].graph), load_rules(name)).fusion
    overlaid = fuse(view, load_rules(name), calls=sites).fusion
    assert "opaque" in [g.kind for g in overlaid.groups]
    assert [(g.kind, g.reads, g.writes) for g in overlaid.groups] == [
        (g.kind, g.reads, g.writes) for g in rewritten.groups
    ]
