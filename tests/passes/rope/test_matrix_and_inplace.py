"""Rotations by matrices, and rotations written into the halves of an empty tensor."""

import pytest
import torch

import fluxrewrite
from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Code

B, S, H, D = 2, 6, 3, 8


def pairs_of(x):
    return x.float().reshape(*x.shape[:-1], -1, 1, 2)


def summed(x, r):
    return (r.float() * pairs_of(x)).sum(dim=-1).reshape(*x.shape).type_as(x)


def summed_keyword(x, r):
    return torch.sum(input=pairs_of(x).mul(r), dim=[-1]).flatten(-2)


def products(x, r):
    pairs = pairs_of(x)
    return (r[..., 0] * pairs[..., 0] + r[..., 1] * pairs[..., 1]).reshape(*x.shape).type_as(x)


def products_turned_around(x, r):
    pairs = pairs_of(x)
    return torch.add(pairs.select(-1, 1) * r.select(-1, 1), r[..., 0] * pairs[..., 0]).view(*x.shape)


def products_in_pieces(x, r):
    pairs = x.float().flatten().view(*x.shape[:-1], -1, 2)[..., None, :] * 1
    first, second = (r.transpose(-1, -2).select(-2, i) for i in (0, 1))
    return (first * pairs[..., 0] + second.contiguous() * pairs[..., 1]).contiguous().view(x.shape)


def transposed(x, r):
    return (r * pairs_of(x)).sum(dim=-2).reshape(*x.shape)


def crossed(x, r):
    pairs = pairs_of(x)
    return (r[..., 0] * pairs[..., 1] + r[..., 1] * pairs[..., 0]).reshape(*x.shape)


def subtracted(x, r):
    pairs = pairs_of(x)
    return (r[..., 0] * pairs[..., 0] - r[..., 1] * pairs[..., 1]).reshape(*x.shape)


def scaled(x, r):
    pairs = pairs_of(x)
    return torch.add(r[..., 0] * pairs[..., 0], r[..., 1] * pairs[..., 1], alpha=2).reshape(*x.shape)


def one_column_twice(x, r):
    pairs = pairs_of(x)
    return (r[..., 0] * pairs[..., 0] + r[..., 0] * pairs[..., 0]).reshape(*x.shape)


def two_tables(x, r):
    pairs, other = pairs_of(x), r + 1
    return (r[..., 0] * pairs[..., 0] + other[..., 1] * pairs[..., 1]).reshape(*x.shape)


def other_x(x, r):
    return (r[..., 0] * pairs_of(x)[..., 0] + r[..., 1] * pairs_of(x + 1)[..., 1]).reshape(*x.shape)


def half_pairs(x, r):
    pairs = x.unflatten(-1, (2, -1)).transpose(-1, -2).unsqueeze(-2)
    return (r * pairs).sum(dim=-1).reshape(*x.shape)


def products_of_no_columns(x, r):
    pairs = pairs_of(x)
    return (r.sum(-1) * pairs[..., 0] + r.mean(-1) * pairs[..., 1]).reshape(*x.shape)


def one_matrix_for_all_pairs(x, r):
    return (r[..., :1, :, :] * pairs_of(x)).sum(dim=-1).reshape(*x.shape)


def kept_axis(x, r):
    return (r * pairs_of(x)).sum(dim=-1, keepdim=True).reshape(*x.shape)


@pytest.mark.parametrize("fn", [summed, summed_keyword, products, products_turned_around, products_in_pieces])
@pytest.mark.parametrize("axis", [1, 2])
def test_any_matrix_for_each_position(check, fn, axis):
    x = torch.randn(B, S, H, D) if axis == 1 else torch.randn(B, H, S, D)
    r = torch.randn(S, 1, D // 2, 2, 2) if axis == 1 else torch.randn(B, 1, S, D // 2, 2, 2)
    (site,) = check(fn, "rope", x=x, r=r).sites
    assert (site.form, site.choice, site.shapes["sequence"]) == ("matrix", "kernel", S)


@pytest.mark.parametrize(
    "fn",
    [
        one_matrix_for_all_pairs,
        transposed,
        crossed,
        subtracted,
        scaled,
        one_column_twice,
        two_tables,
        other_x,
        half_pairs,
        kept_axis,
        products_of_no_columns,
    ],
)
def test_other_sums_with_matrices_stay(check, find, fn):
    report = check(fn, "rope", proof="structural", x=torch.randn(B, S, H, D), r=torch.randn(S, 1, D // 2, 2, 2))
    assert all(s.choice == "keep" for s in report.sites)
    assert find("rope", fn, x=torch.randn(B, S, H, D), r=torch.randn(S, 1, D // 2, 2, 2)) == []


def test_bfloat16_pairs_are_turned_in_float32(check):
    x, r = torch.randn(B, S, H, D, dtype=torch.bfloat16), torch.randn(S, 1, D // 2, 2, 2)
    (site,) = check(summed, "rope", tolerance=1e-2, x=x, r=r).sites
    assert site.choice == "kernel"


def into_interleaved(x, cos, sin):
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(x)
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    return out.type_as(x) * 2


def tables_sliced_anew(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    out = torch.zeros_like(x)
    out[..., 1::2] = first * sin[..., 1::2] + second * cos[..., 0::2]
    out[..., 0::2] = first * cos[..., 0::2] - second * sin[..., 1::2]
    return out * 2


def into_halves(x, cos, sin):
    first, second = x.chunk(2, -1)
    out = torch.empty_like(x)
    out[:, :, :, : D // 2] = first * cos - second * sin
    out[..., D // 2 :] = first * sin + second * cos
    return out * 2


def wrong_sign(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = first * cos + second * sin
    out[..., 1::2] = first * sin + second * cos
    return out * 2


def wrong_halves(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 1::2] = first * cos - second * sin
    out[..., 0::2] = first * sin + second * cos
    return out * 2


def mixed_styles(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., : D // 2] = first * cos - second * sin
    out[..., D // 2 :] = first * sin + second * cos
    return out * 2


def only_one_half(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    out = torch.zeros_like(x)
    out[..., 0::2] = first * cos - second * sin
    return out * 2


def read_in_between(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    out = torch.zeros_like(x)
    out[..., 0::2] = first * cos - second * sin
    early = out + 1
    out[..., 1::2] = first * sin + second * cos
    return out * 2, early


def written_again(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    return out.mul_(2.0)


def written_through_a_view(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    out = torch.zeros_like(x)
    seen = out[..., 0]
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    seen.add_(1.0)
    return out * 2


def over_what_was_there(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    a, b = first * cos - second * sin, first * sin + second * cos
    out = x * 3
    out[..., 0::2] = a
    out[..., 1::2] = b
    return out * 2


def rows_written_in_another_order(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[[1, 0], ..., 0::2] = first * cos - second * sin
    out[[1, 0], ..., 1::2] = first * sin + second * cos
    return out * 2


def other_spots(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    out = torch.zeros_like(x)
    out[..., 1 : 1 + D // 2] = first * cos - second * sin
    out[..., D // 2 :] = first * sin + second * cos
    return out * 2


def table_changed_in_between(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    cos = cos.clone()
    out = torch.empty_like(x)
    out[..., 0::2] = first * cos - second * sin
    cos.mul_(2.0)
    out[..., 1::2] = first * sin + second * cos
    return out * 2


HALF = {"cos": torch.randn(S, 1, D // 2), "sin": torch.randn(S, 1, D // 2)}


@pytest.mark.parametrize(
    ("fn", "form"),
    [(into_interleaved, "interleaved"), (tables_sliced_anew, "interleaved"), (into_halves, "rotate_half")],
)
def test_halves_written_into_an_empty_tensor(check, fn, form):
    (site,) = check(fn, "rope", x=torch.randn(B, S, H, D), **HALF).sites
    assert (site.form, site.choice) == (form, "kernel")


@pytest.mark.parametrize(
    "fn",
    [
        wrong_sign, wrong_halves, mixed_styles, only_one_half, read_in_between, written_again, written_through_a_view,
        over_what_was_there, rows_written_in_another_order, other_spots, table_changed_in_between,
    ],
)  # fmt: skip
def test_other_writes_stay(check, find, fn):
    report = check(fn, "rope", proof="structural", x=torch.randn(B, S, H, D), **HALF)
    assert all(s.choice == "keep" for s in report.sites)
    found = find("rope", fn, x=torch.randn(B, S, H, D), **HALF)
    assert [m.reason.code for m in found] == ([Code.MUTATION] if fn is table_changed_in_between else [])


def test_written_rotation_that_needs_a_gradient_stays():
    x = torch.randn(B, S, H, D, requires_grad=True)
    with torch.enable_grad():
        expected = into_interleaved(x, **HALF).sum()
        found = torch.compile(into_interleaved, backend=fluxrewrite.backend("eager", "rope", provider="reference"))(
            x, **HALF
        )
    (first,), (second,) = (torch.autograd.grad(y, x) for y in (expected, found.sum()))
    torch.testing.assert_close(first, second)


def test_no_write_is_left_of_a_written_rotation(trace):
    gm = trace(into_interleaved, x=torch.randn(B, S, H, D), **HALF)
    rewritten, _ = apply(gm, make_plan(GraphView(gm.graph), Selection.of("rope", "reference")))
    view = GraphView(rewritten.graph)
    assert not list(view.with_op("setitem", "empty_like"))
    assert len(list(view.with_op("fluxrewrite.rope"))) == 1
