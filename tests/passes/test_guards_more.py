"""More cases for guards of attention, rotations and the view that no other test makes refuse; projections: test_no_projection."""

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.attention.attention import Attention
from fluxrewrite.passes.rope.pairs import pair_element
from fluxrewrite.passes.rope.rope import Rope

from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite import guards
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Code, Miss, Site

B, H, S, L, D = 2, 3, 6, 7, 8


def codes(findings):
    return [f.reason.code if isinstance(f, Miss) else f.form for f in findings]


def heads(q, k):
    return {"q": torch.randn(q), "k": torch.randn(k), "v": torch.randn(k)}


def grouped(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


# *** attention


@pytest.mark.parametrize("lead", [(B,), ()], ids=["with a batch", "without a batch"])
def test_groups_of_heads(check, lead):
    report = check(grouped, "attention", **heads((*lead, 4, S, D), (*lead, 2, L, D)))
    (site,) = (s for s in report.sites if s.kind == "attention")
    assert (site.shapes["heads"], site.shapes["kv_heads"]) == (4, 2)
    assert site.choice == "kernel"


def test_a_key_that_was_turned_is_not_the_key_before(find):
    inputs = {**heads((B, H, S, D), (B, H, D, D)), "v": torch.randn(B, H, D, D)}
    fn = lambda q, k, v: F.scaled_dot_product_attention(q, k.mT, v)  # noqa: E731
    (site,) = find("attention", fn, **inputs)
    assert site.operands["k"].op != "placeholder"


def test_one_head_of_keys_is_a_group_only_where_it_is_said(find):
    inputs = heads((B, H, S, D), (B, 1, L, D))
    assert codes(find("attention", lambda q, k, v: F.scaled_dot_product_attention(q, k, v), **inputs)) == [Code.AXES]


def weighted(q, k, v):
    powers = torch.exp(q @ k.mT * 0.3)
    return powers / powers.sum(-1, keepdim=True), v


def test_a_mask_of_heads_that_are_not_in_front(find):
    def fn(q, k, v, mask):
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.3 + mask
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)

    inputs = heads((B, S, H, D), (B, L, H, D))
    assert codes(find("attention", fn, **inputs, mask=torch.randn(S, L))) == ["probed"]


def test_weights_that_others_read_are_no_inner_value(find):
    def fn(q, k, v):
        weights, v = weighted(q, k, v)
        return weights @ v, weights.sum(-1)

    assert codes(find("attention", fn, **heads((B, H, S, D), (B, H, L, D)))) == [Code.INNER_USE]


def test_weights_of_another_dtype_than_the_values(find):
    def fn(q, k, v):
        weights, v = weighted(q, k, v)
        return (weights.double() @ (v.double() * 1.5)).float()

    assert codes(find("attention", fn, **heads((B, H, S, D), (B, H, L, D)))) == [Code.MIXED_DTYPE]


# *** rotations


def half(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def turned_pairs(x, cos, sin, before=lambda p: p, after=lambda t: t.flatten(-2)):
    pairs = torch.view_as_complex(before(x.unflatten(-1, (-1, 2))))
    return after(torch.view_as_real(pairs * torch.complex(cos, sin)))


def rotated(**sizes):
    tables = {n: torch.randn(S, 1, D // 2) for n in ("cos", "sin")}
    return {"x": torch.randn(B, S, H, D), **tables, **sizes}


def reading(findings, name="x"):
    """Sites that read the input `name` itself."""
    return [f for f in findings if isinstance(f, Site) and f.operands["x"].op == "placeholder"]


def test_pairs_that_are_rounded_are_not_those_of_x(find):
    fn = lambda x, cos, sin: turned_pairs(x, cos, sin, lambda p: p.bfloat16().float())  # noqa: E731
    assert not reading(find("rope", fn, **rotated()))


def test_rounding_to_the_dtype_of_the_result_is_rounding_too(find):
    def fn(x, cos, sin):
        return turned_pairs(x, cos, sin, lambda p: p.bfloat16().float(), lambda t: t.flatten(-2).bfloat16())

    assert not reading(find("rope", fn, **rotated()))


def test_turned_pairs_that_others_read_too(find):
    def fn(x, cos, sin):
        return turned_pairs(x, cos, sin, after=lambda t: (t.flatten(-2), t.sum(0)))

    assert codes(find("rope", fn, **rotated())) == [Code.PATTERN]


def test_a_single_pair_is_no_tensor_of_pairs(find):
    def fn(x, cos, sin):
        return torch.view_as_real(torch.view_as_complex(x) * torch.complex(cos, sin)).flatten(-2)

    assert codes(find("rope", fn, x=torch.randn(2), cos=torch.randn(S), sin=torch.randn(S))) == [Code.PATTERN]


def test_a_number_is_no_element_of_pairs(trace):
    gm = trace(lambda x: x.expand(S, 2)[:, 0] * 2, x=torch.tensor(2.0))
    view = GraphView(gm.graph)
    assert all(found is None or found[0].op != "placeholder" for found in (pair_element(view, n) for n in view.nodes))


def test_a_part_that_is_of_no_one_axis_is_no_element_of_pairs(trace):
    gm = trace(lambda x: x.flatten()[1:4] * 2, x=torch.randn(S, 2))
    view = GraphView(gm.graph)
    assert [pair_element(view, n) for n in view.nodes if n.op != "output"] == [None] * (len(view.nodes) - 1)


def neighbours(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


@pytest.mark.parametrize(("fn", "size"), [(half, D), (neighbours, D // 2)])
def test_symbolic_heads_are_not_halved(trace, fn, size):
    tables = {n: torch.randn(S, 1, size) for n in ("cos", "sin")}
    gm = trace(fn, dynamic=True, x=torch.randn(B, S, H, D), **tables)
    assert not any(isinstance(f, Site) for f in Rope().find(GraphView(gm.graph)))


def test_turned_pairs_that_are_the_result(find):
    def fn(x):
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)

    (miss,) = find("rope", fn, x=torch.randn(B, S, H, D))
    assert "then go to output; expected mul" in miss.reason.message


def pairs_of(x):
    return x.unflatten(-1, (-1, 1, 2))


def test_a_matrix_for_all_pairs_as_products_of_columns(find):
    def fn(x, r):
        return (pairs_of(x)[..., 0] * r[..., 0] + pairs_of(x)[..., 1] * r[..., 1]).flatten(-2)

    assert not any(isinstance(f, Site) for f in find("rope", fn, x=torch.randn(B, S, H, D), r=torch.randn(2, 2)))


def summed(x, r):
    return (r * pairs_of(x)).sum(-1)


def columns(x, r, column=lambda r, i: r[..., i]):
    return (pairs_of(x)[..., 0] * column(r, 0) + pairs_of(x)[..., 1] * column(r, 1)).flatten(-2).bfloat16()


NO_SUMS = {
    "pairs of halves": lambda x, r: (r * x.unflatten(-1, (2, -1)).mT.unsqueeze(-2)).sum(-1).flatten(-2),
    "cast before they are one axis again": lambda x, r: summed(x.bfloat16(), r.bfloat16()).float().flatten(-2),
    "put together as halves": lambda x, r: summed(x, r).transpose(-1, -2).flatten(-2),
    "something else on the way": lambda x, r: summed(x, r).sin().flatten(-2),
}


@pytest.mark.parametrize("name", NO_SUMS)
def test_turned_pairs_that_are_not_put_together_as_they_were(find, name):
    found = find("rope", NO_SUMS[name], x=torch.randn(B, S, H, D), r=torch.randn(S, 1, D // 2, 2, 2))
    assert not any(isinstance(f, Site) for f in found)


def test_columns_of_rounded_matrices_are_not_those_of_the_matrices(find):
    inputs = {"x": torch.randn(B, S, H, D), "r": torch.randn(S, 1, D // 2, 2, 2)}
    (site,) = find("rope", columns, **inputs)
    assert site.operands["cos"].op == "placeholder"
    rounded = lambda r, i: r[..., i : i + 1].bfloat16().float().squeeze(-1)  # noqa: E731
    assert not reading(find("rope", lambda x, r: columns(x, r, rounded), **inputs))


def test_matrices_of_three_columns_are_no_matrices_of_pairs(find):
    inputs = {"x": torch.randn(B, S, H, D), "r": torch.randn(S, 1, D // 2, 2, 3)}
    assert not any(isinstance(f, Site) for f in find("rope", columns, **inputs))


# *** rotations that are written


def writing(fill):
    """A pairwise rotation; `fill(out, first, second)` writes its halves into an empty tensor."""

    def run(x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        out = torch.zeros(*x.shape[:-1], D)
        fill(out, a * cos - b * sin, a * sin + b * cos)
        return out * 2

    return run


def through_a_view(out, first, second):
    out[..., 0::2].copy_(first)
    out[..., 1::2] = second


def as_columns(out, first, second):
    pairs = torch.zeros(*out.shape[:-1], D // 2, 2)
    pairs[..., 0] = first
    pairs[..., 1] = second
    out += pairs.flatten(-2)


def broadcast(out, first, second):
    out[..., 0::2] = first[:1]
    out[..., 1::2] = second[:1]


def test_every_axis_named_before_the_last_is_all_of_them(find):
    def fill(out, first, second):
        out[:, :, :, ..., 0::2] = first
        out[:, :, :, ..., 1::2] = second

    assert codes(find("rope", writing(fill), **rotated())) == ["interleaved"]


@pytest.mark.parametrize("fill", [through_a_view, as_columns, broadcast])
def test_writes_that_are_no_halves(find, fill):
    assert not any(isinstance(f, Site) for f in find("rope", writing(fill), **rotated()))


def test_one_batch_written_to_all_is_no_rotation_of_all(find):
    def fn(x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        out = torch.zeros(B, *x.shape[1:])
        out[..., 0::2] = a * cos - b * sin
        out[..., 1::2] = a * sin + b * cos
        return out * 2

    given = rotated()
    assert find("rope", fn, **{**given, "x": given["x"][:1]}) == []


def test_writes_to_the_first_axis_are_no_halves_of_the_last(find):
    def fn(x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        out = torch.zeros(1, 1, 1, 2)
        out[0::2] = a * cos - b * sin
        out[1::2] = a * sin + b * cos
        return out * 2

    tables = {n: torch.randn(1, 1, 1) for n in ("cos", "sin")}
    assert not any(isinstance(f, Site) for f in find("rope", fn, x=torch.randn(1, 1, 1, 2), **tables))


def test_writes_to_a_slice_that_the_graph_computes_are_no_halves(trace):
    def fill(out, first, second):
        out[..., : D // 2] = first
        out[..., D // 2 :] = second

    gm = trace(writing(fill), **rotated())
    write = next(GraphView(gm.graph).with_op("setitem"))
    size = next(n for n in gm.graph.nodes if n.op == "placeholder")
    write.args = (write.args[0], (Ellipsis, slice(None, size, None)), write.args[2])
    assert not any(isinstance(f, Site) for f in Rope().find(GraphView(gm.graph)))


def test_a_rotation_that_nothing_reads_is_left_as_it_is(trace):
    def fn(x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        out = torch.empty_like(x)
        out[..., 0::2] = a * cos - b * sin
        out[..., 1::2] = a * sin + b * cos
        return x

    gm = trace(fn, **rotated())
    rewritten, plan = apply(gm, make_plan(GraphView(gm.graph), Selection.of("rope", "reference")))
    (decision,) = plan.decisions
    assert (decision.choice, decision.reasons[0].code) == ("keep", Code.REPLACEMENT)
    assert decision.reasons[0].message == "nothing uses its results"
    assert [n.format_node() for n in rewritten.graph.nodes] == [n.format_node() for n in gm.graph.nodes]


def test_a_write_that_nothing_reads_is_a_reader_itself(trace):
    def fn(q, k, cos, sin):
        out = torch.empty_like(q)
        out[..., 0::2] = half(half(q, cos, sin), cos, sin)[..., 0::2] * 2
        return k

    gm = trace(fn, **{n: torch.randn(B, S, H, D) for n in "qk"}, **{n: torch.randn(S, 1, D) for n in ("cos", "sin")})
    rewritten, plan = apply(gm, make_plan(GraphView(gm.graph), Selection.of("rope", "reference")))
    assert [d.choice for d in plan.decisions] == ["kernel", "kernel"]  # the write reads it, whoever reads that
    assert all(n.users for n in rewritten.graph.nodes if "fluxrewrite" in str(n.target))


# *** the view


def test_views_that_cannot_be_told_are_alike_only_where_they_are_written_alike(trace):
    def fn(x):
        a, b, c = x.flatten()[1:4], x.reshape(-1)[1:4], x.flatten()[1:4].view(3, 1).squeeze(1)
        return a.sin(), b.sin(), c.sin()

    view = GraphView(trace(fn, x=torch.randn(S, 2)).graph)
    a, b, c = (view.arg(n, "input") for n in view.with_op("sin"))
    assert view.alike(a, b)
    assert not view.alike(a, c)


def test_pieces_of_what_has_no_shape_are_pieces_of_nothing(trace):
    gm = trace(lambda x: [t.sin() for t in (x + 1).chunk(2, -1)], x=torch.randn(S, D))
    view = GraphView(gm.graph)
    (piece, _) = view.with_op("getitem")
    assert view.source(piece) is not None
    view.arg(view.arg(piece, "input"), "input").meta.pop("example_value")
    assert GraphView(gm.graph).source(piece) is None


def test_a_piece_that_begins_at_a_symbolic_place_is_no_slice(trace):
    def fn(x, y):
        return [t.sin() for t in x.split([y.shape[0], x.shape[0] - y.shape[0]])]

    gm = trace(fn, dynamic=True, x=torch.randn(S, D), y=torch.randn(4, D))
    view = GraphView(gm.graph)
    first, second = (n for n in view.with_op("getitem") if view.op(view.arg(n, "input")) == "split")
    assert view.source(first) is not None
    assert view.source(second) is None


def test_a_cat_with_a_part_of_no_shape_is_no_pair(trace):
    gm = trace(half, x=torch.randn(B, S, H, D), cos=torch.randn(S, 1, D), sin=torch.randn(S, 1, D))
    (join,) = GraphView(gm.graph).with_op("cat")
    assert [f.form for f in Rope().find(GraphView(gm.graph))] == ["rotate_half"]
    join.args[0][1].meta.pop("example_value")
    assert not any(isinstance(f, Site) for f in Rope().find(GraphView(gm.graph)))


def test_a_device_without_autocast_has_no_regime():
    assert guards._regimes((), "meta") == []
    with pytest.raises(RuntimeError):
        torch.is_autocast_enabled("meta")


@pytest.mark.parametrize(("other", "said"), [({"dtype": torch.float64}, "float64"), ({"device": "meta"}, "on meta")])
def test_a_replacement_of_another_kind_is_taken_back(trace, monkeypatch, other, said):
    emit = Attention.emit
    monkeypatch.setattr(Attention, "emit", lambda *given: [given[2].call("to", n, **other) for n in emit(*given)])
    inputs = heads((B, H, S, D), (B, H, L, D))
    gm = trace(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), **inputs)
    rewritten, plan = apply(gm, make_plan(GraphView(gm.graph), Selection.of("attention", "reference")))
    (decision,) = plan.decisions
    assert [r.code for r in decision.reasons] == [Code.REPLACEMENT]
    assert said in decision.reasons[0].message
    assert not any("fluxrewrite" in str(n.target) for n in rewritten.graph.nodes)
