"""A digest tells what is computed, not how it is called; a region connects what is seen through views."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from fluxrewrite.passes.rope.tables import RopeDetails
from torch import nn

from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.proof import Prover, Store
from fluxrewrite.rewrite.proof.region import region_of
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Site

S, D = 6, 8


class Layers(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.Linear(16, 16))

    def forward(self, x):
        q, k, v = (getattr(self, n)(x).unflatten(-1, (2, D)).transpose(1, 2) for n in self.names)
        return F.scaled_dot_product_attention(q, k, v)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos[None, None] + torch.cat((-second, first), dim=-1) * sin[None, None]


def renamed(a, b, c):
    low, high = torch.chunk(a, chunks=2, dim=-1)
    kept = a * b[None, None]
    return kept + torch.cat((-high, low), dim=-1) * c[None, None]


def sites(gm, kind):
    view = GraphView(gm.graph)
    return view, [s for s in Selection.of(kind).passes[kind].find(view) if isinstance(s, Site)]


def digest(gm, kind):
    view, (site,) = sites(gm, kind)
    return region_of(view, site).digest


X = torch.randn(2, 3, S, D)
T = torch.randn(S, D)
ROPE = RopeDetails(
    axis=2, turned=False, folded=(), out_dtype=None, squeeze={"cos": [], "sin": []}, tables="real", interleaved=True
)


def test_names_of_modules_weights_and_variables_do_not_count(trace):
    x = torch.randn(2, S, 16)
    first, second = (digest(trace(Layers(names), x=x), "qkv") for names in (("q", "k", "v"), ("one", "two", "three")))
    assert first == second
    plain = digest(trace(rotate, x=X, cos=T, sin=T.clone()), "rope")
    assert plain == digest(trace(lambda p, u, w: rotate(p, u, w), p=X, u=T, w=T.clone()), "rope")


def test_operations_shapes_dtypes_constants_and_roles_count(trace):
    x = {"x": X, "cos": T, "sin": T.clone()}
    other = {k: v.bfloat16() for k, v in x.items()}
    longer = {"x": torch.randn(2, 3, S + 1, D), "cos": torch.randn(S + 1, D), "sin": torch.randn(S + 1, D)}

    def swapped(x, cos, sin):
        return rotate(x, sin, cos)

    spelled = dict(zip("abc", x.values(), strict=True))
    found = [digest(trace(fn, **given), "rope") for fn, given in (
        (rotate, x), (rotate, other), (rotate, longer), (renamed, spelled), (swapped, x)
    )]  # fmt: skip
    assert found[0] == found[4], "which input is called cos is a name"
    assert len(set(found)) == 4
    scaled = [
        digest(trace(lambda x, s=s: F.scaled_dot_product_attention(x, x, x, scale=s), x=X), "attention")
        for s in (1.0, 2.0)
    ]
    assert scaled[0] != scaled[1]
    apart = digest(trace(lambda x, y: F.scaled_dot_product_attention(x, y, x), x=X, y=X.clone()), "attention")
    assert apart != digest(trace(lambda x, y: F.scaled_dot_product_attention(x, x, y), x=X, y=X.clone()), "attention")


def test_a_table_and_its_broadcast_form_are_one_value(trace):
    view, (site,) = sites(trace(rotate, x=X, cos=T, sin=T.clone()), "rope")
    region = region_of(view, site)
    assert {n.op for n in region.inputs} == {"placeholder"}
    assert len(region.inputs) == 3
    assert [n.name for n in region.nodes] == [n.name for n in view.nodes if n in set(region.nodes)]


def test_another_pass_and_another_op_are_other_proofs(trace, tmp_path):
    view, (site,) = sites(trace(rotate, x=X, cos=T, sin=T.clone()), "rope")
    selection = Selection.of("rope", "reference")

    class Same(type(selection.passes["rope"])):
        pass

    for rewriter in (selection.passes["rope"], Same()):
        prover = Prover(Store(tmp_path))
        assert prover(view, site, rewriter, selection.kernels["rope"]).status == "proved"
        assert prover.new == 1
    emulated = Selection.of("rope", "builtin", "reference").kernels["rope"]
    prover = Prover(Store(tmp_path))
    assert prover(view, site, selection.passes["rope"], emulated).status == "proved"
    assert prover.cached == 1, "whose kernel it is does not change the body of the op"


def test_what_is_written_in_place_belongs_to_the_region(trace, tmp_path):
    """The result is made empty, and written by operations that it is not computed from."""

    def fn(x, cos, sin):
        first, second = x[..., ::2], x[..., 1::2]
        out = torch.empty_like(x)
        out[..., ::2] = first * cos - second * sin
        out[..., 1::2] = second * cos + first * sin
        return out

    half = T[:, : D // 2]
    view = GraphView(trace(fn, x=X, cos=half, sin=half.clone()).graph)
    inside = [n for n in view.nodes if n.op in ("call_function", "call_method")]
    (out,) = (n for n in inside if view.op(n) == "empty_like")
    x, cos, sin = (n for n in view.nodes if n.op == "placeholder")
    site = Site(
        kind="rope",
        form="interleaved",
        path="",
        operands={"x": x, "cos": cos, "sin": sin},
        outputs=(out,),
        interior=tuple(n for n in inside if n is not out),
        shapes={"batch": 2, "heads": 3, "sequence": S, "head_size": D},
        dtype=torch.float32,
        extra=ROPE,
    )
    assert set(region_of(view, site).nodes) == set(inside)
    selection = Selection.of("rope", "reference")
    proofs = [
        Prover(Store(tmp_path))(view, s, selection.passes["rope"], selection.kernels["rope"])
        for s in (site, replace(site, extra=replace(ROPE, interleaved=False)))
    ]
    assert [p.status for p in proofs] == ["proved", "failed"]


def test_views_that_are_written_down_twice_are_one_value(trace, tmp_path):
    """The original reads the halves of a table by views of its own for each product; the site names one of each."""

    def fn(x, table):
        first, second = x[..., ::2], x[..., 1::2]
        out = torch.empty_like(x)
        out[..., ::2] = first * table[:, ::2] - second * table[:, 1::2]
        out[..., 1::2] = second * table[:, ::2] + first * table[:, 1::2]
        return out

    view = GraphView(trace(fn, x=X, table=T).graph)
    inside = [n for n in view.nodes if n.op in ("call_function", "call_method")]
    x, table = (n for n in view.nodes if n.op == "placeholder")
    views = [n for n in inside if n.all_input_nodes[:1] == [table]]
    cos, sin, again, _ = sorted(views, key=lambda n: view.order(n))
    assert again.args == cos.args
    (out,) = (n for n in inside if view.op(n) == "empty_like")
    site = Site(
        kind="rope",
        form="interleaved",
        path="",
        operands={"x": x, "cos": cos, "sin": sin},
        outputs=(out,),
        interior=tuple(n for n in inside if n is not out and n not in views),
        shapes={"batch": 2, "heads": 3, "sequence": S, "head_size": D},
        dtype=torch.float32,
        extra=ROPE,
    )
    assert set(region_of(view, site).inputs) == {x, table}
    selection = Selection.of("rope", "reference")
    swapped = replace(site, operands={"x": x, "cos": sin, "sin": cos})
    proofs = [
        Prover(Store(tmp_path))(view, s, selection.passes["rope"], selection.kernels["rope"]) for s in (site, swapped)
    ]
    assert [p.status for p in proofs] == ["proved", "failed"]
