"""Layers that are no group of projections, or cannot be joined: a case for each guard that no other test makes refuse."""

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.qkv.packed_rows import _below
from fluxrewrite.passes.qkv.qkv import Qkv

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.index_map import Elements
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Code, Miss

B, S, L, D = 2, 6, 7, 8


def codes(findings):
    return [f.reason.code if isinstance(f, Miss) else f.form for f in findings]


class Heads(torch.nn.Module):
    """Attention of what `parts` makes of one projection of x."""

    def __init__(self, parts, columns=3 * D):
        super().__init__()
        self.parts, self.rows = parts, torch.nn.Linear(D, columns)

    def forward(self, x):
        return F.scaled_dot_product_attention(*(t.unsqueeze(1) for t in self.parts(self.rows(x))))


def test_rows_of_some_positions_are_no_blocks_of_the_layer(find):
    def parts(y):
        z = y.flatten(0, 1)
        return z[1 : S + 1, :D], z[1 : S + 1, D : 2 * D], z[1 : S + 1, 2 * D :]

    assert codes(find("qkv", Heads(parts), x=torch.randn(B, S, D))) == [Code.PACKED_LAYOUT]


def test_rows_that_overlap_no_others_are_not_taken_apart(find):
    def parts(y):
        return tuple(torch.cat((t[..., D // 2 :], t[..., : D // 2]), -1) for t in y.chunk(3, -1))

    assert codes(find("qkv", Heads(parts), x=torch.randn(B, S, D))) == ["packed"]


def test_a_weight_of_one_row_is_no_layer(find):
    def fn(x, q, k, v):
        return F.scaled_dot_product_attention(*(F.linear(x, w) for w in (q, k, v)))

    weights = {n: torch.randn(D) for n in "qkv"}
    assert codes(find("qkv", fn, x=torch.randn(B, S, L, D), **weights)) == [Code.AXES]


class Two(torch.nn.Module):
    """`attend(module, x, y)` with layers q, k, v and one of three times their rows."""

    def __init__(self, attend):
        super().__init__()
        self.attend, self.packed = attend, torch.nn.Linear(D, 3 * D)
        self.q, self.k, self.v = (torch.nn.Linear(D, D) for _ in range(3))

    def forward(self, x, y):
        return self.attend(self, x, y)


def attention(*heads):
    return F.scaled_dot_product_attention(*(t.unsqueeze(1) for t in heads))


def twice(m, x, y):
    k, v = m.k(x), m.v(x)
    return attention(m.q(x), k, v), attention(m.packed(y)[..., :D], k, v)


def late_weight(m, x, y):
    k = m.k(x)
    first = attention(m.q(x), k, m.v(x))
    return first, attention(F.linear(x, m.q.weight * first.sum()), k, m.v(y))


def early_fault(m, x, y):
    k = m.k(x)
    first = attention(F.linear(x, m.q.weight * k.sum()), k, m.v(x))
    return first, attention(m.q(x), k, m.v(y))


def with_more(m, x, y):
    return attention(m.q(x) + y, m.k(x), m.v(x))


def cast_by_autocast(m, x, y):
    with torch.autocast("cpu", torch.bfloat16):
        return attention(m.q(x), m.k(x), m.v(x))


GROUPS = {
    "key and value that a second attention reads": (twice, ["triple"]),
    "a group of its own fault, with a key of another": (late_weight, ["triple", Code.ORDER]),
    "a key of a group of its own fault": (early_fault, [Code.ORDER, "pair"]),
    "a query that something is added to": (with_more, ["triple"]),
    "layers that autocast rounds": (cast_by_autocast, [Code.MIXED_DTYPE]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_projections(find, name):
    attend, expected = GROUPS[name]
    assert codes(find("qkv", Two(attend), x=torch.randn(B, S, D), y=torch.randn(B, S, D))) == expected


def test_one_layer_needs_no_joining(trace):
    view = GraphView(trace(Heads(lambda y: y.chunk(3, -1)), x=torch.randn(B, S, D)).graph)
    (site,) = Qkv().find(view)
    assert (site.form, Qkv().inline(view, site)) == ("packed", None)


def three(x, q, k, v, a=None, b=None, c=None):
    layers = zip((q, k, v), (a, b, c), strict=True)
    return F.scaled_dot_product_attention(*(F.linear(x, w, bias).unsqueeze(1) for w, bias in layers))


def same_bias(x, q, k, v, a):
    return three(x, q, k, v, a, a, a)


@pytest.mark.parametrize(
    ("fn", "biases", "joined"),
    [
        pytest.param(three, "abc", True, id="one-each"),
        pytest.param(three, "ab", False, id="one-without"),
        pytest.param(same_bias, "a", False, id="one-for-all"),
    ],
)
def test_biases_that_cannot_be_joined(trace, fn, biases, joined):
    made = {n: torch.randn(16, D) for n in "qkv"} | {n: torch.randn(16) for n in biases}
    view = GraphView(trace(fn, x=torch.randn(B, S, D), **made).graph)
    (site,) = Qkv().find(view)
    assert (Qkv().inline(view, site) is not None) is joined


def test_layers_without_bias_are_joined_without_bias(trace):
    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (torch.nn.Linear(D, 16, bias=False) for _ in range(3))

        def forward(self, x):
            return F.scaled_dot_product_attention(*(f(x).unsqueeze(1) for f in (self.q, self.k, self.v)))

    gm = trace(Layers(), x=torch.randn(B, S, D))
    plan = make_plan(GraphView(gm.graph), Selection.of("qkv", "reference"), lambda site: "inline")
    rewritten, plan = apply(gm, plan)
    assert [d.choice for d in plan.decisions] == ["inline"]
    (layer,) = (n for n in rewritten.graph.nodes if n.target is F.linear)
    assert layer.args[2] is None


def test_what_is_given_the_shape_of_a_part_is_no_part(trace):
    view = GraphView(trace(lambda x, y: y.expand_as(x).cos(), x=torch.randn(2, 3), y=torch.randn(2, 3)).graph)
    x, y = sorted(view.with_op("placeholder"), key=lambda n: n.name)
    (user,) = view.with_op("expand")
    assert _below(view, x, x, user, Elements.of((2, 3))) is None
    assert _below(view, y, y, user, Elements.of((2, 3))) is not None
