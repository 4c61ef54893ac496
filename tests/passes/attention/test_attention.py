import math

import pytest
import torch
import torch.nn.functional as F

import fluxrewrite
from fluxrewrite.site import Code

B, H, S, L, D = 2, 3, 5, 7, 8


def qkv(heads=H, keys=L, dtype=torch.float32, kv_heads=None):
    kv_heads = kv_heads or heads
    return {
        "q": torch.randn(B, heads, S, D).to(dtype),
        "k": torch.randn(B, kv_heads, keys, D).to(dtype),
        "v": torch.randn(B, kv_heads, keys, D).to(dtype),
    }


def forms_of(report):
    return [(s.form, s.choice) for s in report.sites]


CALLS = {
    "positional": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "keywords": lambda q, k, v: F.scaled_dot_product_attention(query=q, value=v, key=k, attn_mask=None, dropout_p=0.0),
    "builtin": lambda q, k, v: torch._C._nn.scaled_dot_product_attention(q, k, v, scale=0.3),
    "overload": lambda q, k, v: torch.ops.aten.scaled_dot_product_attention(q, k, v, None, 0.0, False, scale=0.2),
}


@pytest.mark.parametrize("name", CALLS)
def test_sdpa_in_any_call_form(check, name):
    assert forms_of(check(CALLS[name], "attention", **qkv())) == [("sdpa", "kernel")]


def test_causal_and_scale(check):
    report = check(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.1), "attention", **qkv(keys=S)
    )
    assert forms_of(report) == [("sdpa", "kernel")]


@pytest.mark.parametrize("shape", [(S, L), (B, 1, S, L), (1, H, 1, L), (B, 1, 1, L)])
@pytest.mark.parametrize("boolean", [True, False])
def test_masks(check, shape, boolean):
    mask = torch.rand(shape) > 0.3 if boolean else torch.randn(shape)
    report = check(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask), "attention", **qkv(), mask=mask)
    assert forms_of(report) == [("sdpa", "kernel")]


def test_grouped_heads(check):
    report = check(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        "attention",
        **qkv(heads=6, kv_heads=2),
    )
    assert forms_of(report) == [("sdpa", "kernel")]
    assert report.sites[0].shapes["kv_heads"] == 2


@pytest.mark.parametrize(
    "turn",
    [lambda t: t.permute(0, 2, 1, 3), lambda t: t.transpose(1, 2), lambda t: torch.swapaxes(t, 2, 1).contiguous()],
)
def test_permutes_become_layouts(check, turn):
    def fn(q, k, v):
        return turn(F.scaled_dot_product_attention(*(turn(t) for t in (q, k, v))))

    inputs = {name: t.transpose(1, 2).contiguous() for name, t in qkv().items()}
    report = check(fn, "attention", **inputs)
    assert report.sites[0].details["layout"] == "bshd"


@pytest.mark.parametrize(
    "turn",
    [
        lambda t: t.movedim(2, 1),
        lambda t: t.transpose(0, 1).permute(2, 1, 0, 3).transpose(0, 1),
        lambda t: t.flatten(1, 2).view(t.shape).transpose(1, 2),
        lambda t: (t * 1).swapdims(1, 2).contiguous().double().float(),
    ],
)
def test_permutes_in_other_words(check, turn):
    def fn(q, k, v):
        return turn(F.scaled_dot_product_attention(*(turn(t) for t in (q, k, v))))

    inputs = {name: t.transpose(1, 2).contiguous() for name, t in qkv(keys=S).items()}
    report = check(fn, "attention", **inputs)
    assert (report.sites[0].choice, report.sites[0].details["layout"]) == ("kernel", "bshd")


def filled(t):
    out = torch.empty_like(t)
    out[..., ::2], out[..., 1::2] = t[..., 1::2], t[..., ::2]
    return out.type_as(t).transpose(1, 2)


def test_operands_that_are_written_one_after_the_other(check):
    report = check(
        lambda q, k, v: F.scaled_dot_product_attention(filled(q), filled(k), filled(v)), "attention", **qkv(keys=S)
    )
    assert forms_of(report) == [("sdpa", "kernel")]


def filled_late(q, k, v, after):
    views = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    if not after:
        views[1].mul_(2)
    scores = views[0] @ views[1].mT
    if after:
        views[1].mul_(2)
    out = torch.softmax(scores, -1) @ views[2]
    return out, views[1]


@pytest.mark.parametrize(("after", "choice"), [(False, "kernel"), (True, "keep")])
def test_an_operand_written_before_or_after_it_is_read(check, after, choice):
    report = check(lambda q, k, v: filled_late(q, k, v, after), "attention", **qkv(keys=S))
    assert [s.choice for s in report.sites] == [choice]


def test_layouts_of_golden_graph(trace, golden):
    from fluxrewrite.graph import GraphView
    from fluxrewrite.rewrite.plan import apply
    from fluxrewrite.rewrite.planner import make_plan
    from fluxrewrite.rewrite.selection import Selection

    def fn(q, k, v):
        q, k, v = (t.permute(0, 2, 1, 3) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3).flatten(2, 3)

    gm = trace(fn, **{name: t.transpose(1, 2).contiguous() for name, t in qkv().items()})
    golden("attention_before", gm)
    rewritten, _ = apply(gm, make_plan(GraphView(gm.graph), Selection.of("attention")))
    golden("attention_after", rewritten)


def spelled(q, k, v, change=lambda scores: scores, after=lambda p: p, scale=D**-0.5):
    scores = change(torch.matmul(q, k.transpose(-1, -2)) * scale)
    return after(scores.softmax(dim=-1)) @ v


SPELLED = {
    "plain": spelled,
    "divided": lambda q, k, v: F.softmax(q @ k.mT / math.sqrt(D), dim=-1) @ v,
    "scaled query": lambda q, k, v: torch.softmax((q * 0.3) @ k.transpose(2, 3), -1) @ v,
    "unscaled": lambda q, k, v: torch.softmax(q @ k.transpose(2, 3), 3) @ v,
    "float32 softmax": lambda q, k, v: F.softmax(q @ k.transpose(2, 3), -1, dtype=torch.float32).to(q.dtype) @ v,
    "keyword of bmm": lambda q, k, v: torch.bmm(torch.softmax(q[0] @ k[0].mT, -1), mat2=v[0]),
    "times one": lambda q, k, v: torch.softmax(1 * (q @ k.mT * 0.3).view(-1).view(B, H, S, -1), -1) @ v,
    "dropout in eval": lambda q, k, v: spelled(q, k, v, after=lambda p: F.dropout(p, 0.1, training=False)),
    "dropout of zero": lambda q, k, v: spelled(q, k, v, after=lambda p: F.dropout(p, 0.0, training=True)),
}


@pytest.mark.parametrize("name", SPELLED)
def test_spelled_out(check, name):
    assert forms_of(check(SPELLED[name], "attention", **qkv())) == [("spelled", "kernel")]


@pytest.mark.parametrize(
    "change",
    [
        lambda s, m: s + torch.where(m, 0.0, -2.0),
        lambda s, m: s.masked_fill(~m, float("-inf")),
        lambda s, m: s.masked_fill(~m, torch.finfo(s.dtype).min),
        lambda s, m: torch.where(m, s, float("-inf")),
        lambda s, m: torch.where(m, s, torch.finfo(torch.bfloat16).min),
    ],
)
def test_spelled_masks(check, change):
    mask = torch.rand(B, 1, S, L) > 0.3
    mask[..., 0] = True
    report = check(lambda q, k, v, mask: spelled(q, k, v, lambda s: change(s, mask)), "attention", **qkv(), mask=mask)
    assert forms_of(report) == [("spelled", "kernel")]


def test_a_row_masked_by_a_finite_fill_stays_a_mean(check):
    mask = torch.zeros(B, 1, S, L, dtype=torch.bool)
    fn = lambda q, k, v, mask: spelled(q, k, v, lambda s: s.masked_fill(~mask, torch.finfo(s.dtype).min))  # noqa: E731
    assert forms_of(check(fn, "attention", **qkv(), mask=mask)) == [("spelled", "kernel")]


def test_keys_transposed_with_the_heads(check):
    def fn(q, k, v):
        q, v = q.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3)
        return torch.softmax(q @ k.permute(0, 2, 3, 1), -1) @ v

    square = {name: torch.randn(B, S, S, S) for name in "qkv"}
    report = check(fn, "attention", **square)
    assert report.sites[0].details["layout"] == "bshd"


@pytest.mark.parametrize("beta", [0, 1])
def test_heads_folded_into_the_batch(check, beta):
    def fn(q, k, v, base):
        return torch.bmm(torch.baddbmm(base, q, k.transpose(1, 2), beta=beta, alpha=0.2).softmax(-1), v)

    folded = {name: t.flatten(0, 1) for name, t in qkv().items()}
    assert forms_of(check(fn, "attention", **folded, base=torch.randn(B * H, S, L))) == [("spelled", "kernel")]


WRONG = {
    "wrong axis": (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3), 2) @ v, Code.PATTERN),
    "two keys": (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3) * k.sum(), -1) @ v, Code.PATTERN),
    "small fill": (
        lambda q, k, v: spelled(q, k, v, lambda s: s.masked_fill(torch.ones(S, L, dtype=torch.bool).triu(), -10.0)),
        Code.MASK,
    ),
    "fill that large scores can reach": (
        lambda q, k, v: spelled(q, k, v, lambda s: torch.where(torch.ones(S, L).bool(), s, -1e9)),
        Code.MASK,
    ),
    "mask of one axis": (lambda q, k, v: spelled(q, k, v, lambda s: s + k[0, 0, :, 0]), Code.MASK),
    "mask that widens": (lambda q, k, v: spelled(q[:1], k[:1], v[:1], lambda s: s + k[:, :1, None, :, 0]), Code.MASK),
    "float64 softmax": (lambda q, k, v: torch.softmax(q @ k.mT, -1, dtype=torch.float64).float() @ v, Code.PRECISION),
    "bfloat16 softmax": (lambda q, k, v: torch.softmax(q @ k.mT, -1, dtype=torch.bfloat16).float() @ v, Code.PRECISION),
    "scores through float16": (lambda q, k, v: torch.softmax((q @ k.mT).half().float(), -1) @ v, Code.PRECISION),
    "divided by zero": (lambda q, k, v: torch.softmax(q @ k.mT / 0.0, -1) @ v, Code.PATTERN),
    "added mask is bool": (
        lambda q, k, v: spelled(q, k, v, lambda s: s + torch.ones(S, L, dtype=torch.bool)),
        Code.MASK,
    ),
    "dropout": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5), Code.DROPOUT),
    "broadcast keys": (lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1]), Code.AXES),
    "five axes": (lambda q, k, v: F.scaled_dot_product_attention(q[None], k[None], v[None]), Code.AXES),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_kernel_cannot_do_is_left_alone(find, name):
    fn, code = WRONG[name]
    (miss,) = find("attention", fn, **qkv())
    assert miss.reason.code == code


def test_probabilities_that_are_also_returned(find):
    def fn(q, k, v):
        p = torch.softmax(q @ k.transpose(2, 3), -1)
        return p @ v, p

    (miss,) = find("attention", fn, **qkv())
    assert miss.reason.code == Code.INNER_USE


def test_value_size_has_a_limit_too(find):
    (site,) = find("attention", CALLS["positional"], **qkv(keys=S) | {"v": torch.randn(B, H, S, 200)})
    assert ["value_size 200" in r.message for r in site.reasons] == [True]


@pytest.mark.parametrize("change", [lambda t: t.mul_(3), lambda t: t.zero_(), lambda t: t.__setitem__((0, 0), 1.0)])
@pytest.mark.parametrize("copied", [True, False])
def test_copies_and_their_sources_that_are_written_to(check, change, copied):
    def fn(q, k, v):
        q = q + 0.0
        copy = q.clone()
        change(copy if copied else q)
        return F.scaled_dot_product_attention(copy, k, v)

    check(fn, "attention", **qkv())


def test_values_used_in_two_layouts_keep_their_strides(check):
    def fn(q, k, v):
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return out.transpose(1, 2).reshape(B, S, -1), out

    inputs = {name: t.transpose(1, 2).contiguous() for name, t in qkv(keys=S).items()}
    assert forms_of(check(fn, "attention", **inputs)) == [("sdpa", "kernel")]


def test_head_size_limit_has_its_numbers(find):
    (site,) = find("attention", CALLS["positional"], **{n: torch.randn(1, 2, 4, 160) for n in "qkv"})
    assert [r.code for r in site.reasons] == [Code.LIMIT]
    assert "head_size 160" in site.reasons[0].message
    assert "128" in site.reasons[0].message


def test_a_copy_of_the_result_does_not_become_a_view_of_what_is_written_to():
    """Flattened, the permuted result is a copy; after a call that gives it with other strides it would be a view."""

    def fn(q, k, v):
        scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1)
        result = (scores @ v.transpose(1, 2)).transpose(1, 2)
        flat = result.flatten(2)
        result[0].mul_(2.0)
        return flat

    given = torch.randn(3, 2, 5, 3, 8).unbind()
    backend = fluxrewrite.backend("eager", "attention", provider="reference")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(fn, backend=backend)(*given), fn(*given))
    (site,) = backend.reports[0].sites
    assert [r.code for r in site.reasons] == ["replacement_differs"]
    assert "may copy" in site.reasons[0].message
