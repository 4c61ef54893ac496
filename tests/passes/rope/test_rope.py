import itertools

import pytest
import torch
from fluxrewrite.passes.rope.rope import Rope

from fluxrewrite.site import Code, Site

B, S, H, D = 2, 6, 3, 8


def interleaved(x, cos, sin):
    real, imag = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-imag, real], dim=-1).flatten(3)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def interleaved_slices(x, cos, sin):
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return torch.add(sin.mul(turned), cos * x)


def half_chunk(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def half_slices(x, cos, sin):
    middle = x.shape[-1] // 2
    return x * cos + torch.cat((torch.neg(x[..., middle:]), x[..., :middle]), -1) * sin


def half_unbind(x, cos, sin):
    first, second = x.unflatten(-1, (2, -1)).unbind(-2)
    return torch.cat([second.neg(), first], dim=-1) * sin + x * cos


def half_stack(x, cos, sin):
    first, second = torch.split(x, x.shape[-1] // 2, dim=-1)
    return torch.stack([-second, first], dim=-2).flatten(-2) * sin + x * cos


def interleaved_cat(x, cos, sin):
    real, imag = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.cat([(-imag)[..., None], real.unsqueeze(-1)], dim=-1).flatten(3) * sin + x * cos


def interleaved_in_pieces(x, cos, sin):
    real, imag = x.flatten().view(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-imag, real * 1], dim=-1).flatten(2).contiguous().view(x.shape)
    return (x * cos).transpose(1, 2).transpose(2, 1) + turned * sin


DIRECT = {
    interleaved_cat: "interleaved",
    interleaved_in_pieces: "interleaved",
    interleaved: "interleaved",
    interleaved_slices: "interleaved",
    half_chunk: "rotate_half",
    half_slices: "rotate_half",
    half_unbind: "rotate_half",
    half_stack: "rotate_half",
}


def pairwise_half(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def pairwise_interleaved(x, cos, sin):
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


def complex_product(x, freqs):
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * freqs).flatten(3).type_as(x)


def complex_in_pieces(x, freqs):
    pairs = torch.view_as_complex(x.flatten().view(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * freqs).flatten(2).unflatten(2, x.shape[2:]).type_as(x)


def complex_rounded_before_it_is_flattened(x, freqs):
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * freqs).half().flatten(3).float()


def tables(axis, width=D, batch=1):
    shape = [batch, 1, 1, width]
    shape[axis] = S
    return torch.randn(shape), torch.randn(shape)


def x_for(axis, dtype=torch.float32):
    return torch.randn((B, S, H, D) if axis == 1 else (B, H, S, D)).to(dtype)


@pytest.mark.parametrize(
    ("fn", "axis"), itertools.product(DIRECT, (1, 2)), ids=lambda p: getattr(p, "__name__", f"axis{p}")
)
def test_direct_forms_are_found_and_equal(check, fn, axis):
    cos, sin = tables(axis)
    report = check(fn, "rope", x=x_for(axis), cos=cos, sin=sin)
    assert [(s.form, s.choice) for s in report.sites] == [(DIRECT[fn], "kernel")]
    assert report.sites[0].details["axis"] == axis


@pytest.mark.parametrize("fn", [pairwise_half, pairwise_interleaved])
def test_pairwise_forms_take_half_tables(check, fn):
    cos, sin = tables(2, D // 2)
    report = check(fn, "rope", x=x_for(2), cos=cos, sin=sin)
    assert [(s.form, s.choice) for s in report.sites] == [
        ("rotate_half" if "half" in fn.__name__ else "interleaved", "kernel")
    ]


@pytest.mark.parametrize("axis", [1, 2])
def test_complex_form(check, axis):
    freqs = torch.polar(torch.ones(S, D // 2), torch.randn(S, D // 2))
    freqs = freqs[None, :, None] if axis == 1 else freqs[None, None]
    report = check(complex_product, "rope", x=x_for(axis), freqs=freqs)
    assert [(s.form, s.choice) for s in report.sites] == [("complex", "kernel")]


def test_complex_form_in_other_words(check):
    freqs = torch.polar(torch.ones(1, S, 1, D // 2), torch.randn(1, S, 1, D // 2))
    assert [s.choice for s in check(complex_in_pieces, "rope", x=x_for(1), freqs=freqs).sites] == ["kernel"]
    report = check(complex_rounded_before_it_is_flattened, "rope", proof="structural", x=x_for(1), freqs=freqs)
    assert [s.choice for s in report.sites] == ["keep"]


def test_complex_form_in_float64_keeps_its_precision(check):
    def fn(x, freqs):
        pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * freqs).flatten(3).to(x.dtype)

    freqs = torch.polar(
        torch.ones(1, S, 1, D // 2, dtype=torch.float64), torch.randn(1, S, 1, D // 2, dtype=torch.float64)
    )
    report = check(fn, "rope", tolerance=1e-7, x=x_for(1), freqs=freqs)
    assert report.sites[0].choice == "kernel"


def test_bfloat16_is_rotated_in_float32_and_cast_back(check):
    cos, sin = tables(1)
    report = check(interleaved, "rope", tolerance=0.0, x=x_for(1, torch.bfloat16), cos=cos, sin=sin)
    assert report.sites[0].choice == "kernel"


def test_result_left_in_float32(check):
    cos, sin = tables(1)
    report = check(
        lambda x, cos, sin: interleaved(x.float(), cos, sin), "rope", x=x_for(1, torch.bfloat16), cos=cos, sin=sin
    )
    assert report.sites[0].choice == "kernel"


@pytest.mark.parametrize("batch", [1, B])
def test_tables_of_two_and_three_axes(check, batch):
    cos, sin = torch.randn(batch, S, D), torch.randn(batch, S, D)
    report = check(
        lambda x, cos, sin: half_chunk(x, cos.unsqueeze(2), sin[:, :, None, :]), "rope", x=x_for(1), cos=cos, sin=sin
    )
    assert report.sites[0].choice == "kernel"
    report = check(half_chunk, "rope", x=x_for(2), cos=cos[0], sin=sin[0])
    assert report.sites[0].choice == "kernel"


def test_tables_with_their_heads_axis_but_no_batch(check):
    cos, sin = torch.randn(S, 1, D), torch.randn(S, 1, D)
    assert check(half_chunk, "rope", x=x_for(1), cos=cos, sin=sin).sites[0].choice == "kernel"
    freqs = torch.polar(torch.ones(S, 1, D // 2), torch.randn(S, 1, D // 2))
    assert check(complex_product, "rope", x=x_for(1), freqs=freqs).sites[0].choice == "kernel"


@pytest.mark.parametrize(("table", "x"), [((D,), (B, S, 1, D)), ((1, D), (B, 1, S, D)), ((D,), (1, 1, D))])
def test_tables_without_positions(check, table, x):
    report = check(half_chunk, "rope", x=torch.randn(x), cos=torch.randn(table), sin=torch.randn(table))
    assert [r.code for s in report.sites for r in s.reasons] == [Code.TABLE]


@pytest.mark.parametrize("batches", [(1, B), (B, 1)])
def test_tables_of_different_batch(check, batches):
    cos, sin = torch.randn(batches[0], S, 1, D), torch.randn(batches[1], S, 1, D)
    assert check(half_chunk, "rope", x=x_for(1), cos=cos, sin=sin).sites[0].choice == "kernel"


def test_conjugate_and_real_factors(check):
    freqs = torch.polar(torch.ones(1, S, 1, D // 2), torch.randn(1, S, 1, D // 2))
    assert (
        check(lambda x, freqs: complex_product(x, freqs.conj()), "rope", x=x_for(1), freqs=freqs).sites[0].choice
        == "kernel"
    )
    report = check(complex_product, "rope", x=x_for(1), freqs=torch.randn(1, S, 1, D // 2))
    assert [r.code for s in report.sites for r in s.reasons] == [Code.TABLE]


@pytest.mark.parametrize("round_trip", [lambda t: t.half().float(), lambda t: t.bfloat16().float()])
def test_rounding_is_not_dropped(check, round_trip):
    cos, sin = tables(1)
    given = {"kernels": "rope", "proof": "structural", "cos": cos, "sin": sin}
    check(lambda x, cos, sin: round_trip(half_chunk(x, cos, sin)), x=x_for(1) * 1e5, **given)
    report = check(lambda x, cos, sin: round_trip(x * cos) + half_chunk(x, cos * 0, sin), x=x_for(1), **given)
    assert all(s.choice == "keep" or s.reasons == () for s in report.sites)


WRITES = {
    "copy": lambda x, cos: (x.clone().mul_(2), cos),
    "source of a copy": lambda x, cos: (_zeroed_after(x), cos),
    "cast": lambda x, cos: (x.float().mul_(2), cos),
    "table": lambda x, cos: (x, cos.clone().mul_(3)),
    "table behind a view": lambda x, cos: (x, cos[0, :, 0].clone().mul_(3)[None, :, None]),
}


def _zeroed_after(x):
    base = x + 0
    copy = base.clone()
    base.zero_()
    return copy


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_that_are_written_to(check, name, dtype):
    cos, sin = tables(1)

    def fn(x, cos, sin):
        return interleaved(*WRITES[name](x, cos), sin)

    check(fn, "rope", x=x_for(1, dtype), cos=cos, sin=sin)


def test_result_keeps_the_strides_that_a_view_needs(check):
    cos, sin = tables(2)

    def fn(x, cos, sin):
        return half_chunk(x.transpose(1, 2), cos, sin).transpose(1, 2).view(B, S, -1)

    report = check(fn, "rope", x=x_for(1), cos=cos, sin=sin)
    assert report.sites[0].choice == "kernel"
    assert report.sites[0].details["turned"] is True


def test_detach_is_no_view_for_autograd():
    import fluxrewrite

    cos, sin = tables(1)
    x = x_for(1).requires_grad_()

    def fn(x):
        return half_chunk(x.detach(), cos, sin) * x, half_chunk(x, cos, sin).detach()

    backend = fluxrewrite.backend(inner="aot_eager", strict=True)
    found, cut = torch.compile(fn, backend=backend)(x)
    assert not cut.requires_grad
    found.sum().backward()
    torch.testing.assert_close(x.grad, half_chunk(x.detach(), cos, sin))


def test_equal_axes_are_told_apart_by_the_table(check):
    square = torch.randn(B, S, S, D)
    for axis in (1, 2):
        cos, sin = tables(axis)
        assert check(half_chunk, "rope", x=square, cos=cos, sin=sin).sites[0].details["axis"] == axis


def test_part_of_the_head_is_rotated(check):
    def fn(x, cos, sin):
        rotated, rest = x[..., :D], x[..., D:]
        return torch.cat((half_chunk(rotated, cos, sin), rest), dim=-1)

    cos, sin = tables(1)
    assert check(fn, "rope", x=torch.randn(B, S, H, D + 4), cos=cos, sin=sin).sites[0].choice == "kernel"


def test_all_sites_share_one_table(trace):
    from fluxrewrite.graph import GraphView
    from fluxrewrite.rewrite.plan import apply
    from fluxrewrite.rewrite.planner import make_plan
    from fluxrewrite.rewrite.selection import Selection

    def fn(q, k, cos, sin):
        return interleaved(q, cos[None, :, None], sin[None, :, None]) + interleaved(
            k, cos[None, :, None], sin[None, :, None]
        )

    gm = trace(fn, q=x_for(1), k=x_for(1), cos=torch.randn(S, D), sin=torch.randn(S, D))
    rewritten, _ = apply(gm, make_plan(GraphView(gm.graph), Selection.of("rope")))
    calls = rewritten.graph.find_nodes(op="call_function", target=torch.ops.fluxrewrite.rope.default)
    assert len(calls) == 2
    assert len({c.args[1] for c in calls}) == 1


def wrong_sign(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, -first), dim=-1) * sin


def wrong_order(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((first, -second), dim=-1) * sin


def mixed_pairs(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.stack((-second, first), dim=-1).flatten(-2) * sin


def other_x(x, cos, sin):
    first, second = (x + 1).chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def scaled_sum(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.add(x * cos, torch.cat((-second, first), dim=-1) * sin, alpha=2)


def subtracted(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos - torch.cat((-second, first), dim=-1) * sin


def turned_lanes_of_swapped_axes(x, cos, sin):
    first, second = x.transpose(1, 2).chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


CLOSE_BUT_WRONG = [wrong_sign, wrong_order, mixed_pairs, other_x, scaled_sum, subtracted, turned_lanes_of_swapped_axes]


@pytest.mark.parametrize("fn", CLOSE_BUT_WRONG)
def test_close_but_wrong_is_never_rewritten(check, fn):
    cos, sin = tables(1)
    report = check(fn, "rope", proof="structural", x=torch.randn(B, S, S, D), cos=cos, sin=sin)
    assert all(s.choice == "keep" for s in report.sites)


def test_near_miss_says_what_was_expected(find):
    cos, sin = tables(1)
    (miss,) = find("rope", subtracted, x=x_for(1), cos=cos, sin=sin)
    assert miss.reason.code == Code.PATTERN
    assert "sub" in miss.reason.message


def test_kernel_replaces_all_but_the_call(trace, golden):
    from fluxrewrite.graph import GraphView
    from fluxrewrite.rewrite.plan import apply
    from fluxrewrite.rewrite.planner import make_plan
    from fluxrewrite.rewrite.selection import Selection

    cos, sin = tables(1)
    gm = trace(interleaved, x=x_for(1, torch.bfloat16), cos=cos, sin=sin)
    golden("rope_before", gm)
    rewritten, _ = apply(gm, make_plan(GraphView(gm.graph), Selection.of("rope")))
    golden("rope_after", rewritten)


def test_forms_are_declared(find):
    cos, sin = tables(1)
    (site,) = find("rope", interleaved, x=x_for(1), cos=cos, sin=sin)
    assert isinstance(site, Site)
    assert site.form in Rope.forms
    assert site.shapes == {"batch": B, "sequence": S, "heads": H, "head_size": D}
