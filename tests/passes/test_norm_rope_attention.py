from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.graph import GraphView
from fluxrewrite.kernel import Limit
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Code, Site

B, H, D = 2, 3, 8
LENGTHS = (5, 4)


def turn(x, cos, sin):
    real, imag = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-imag, real], dim=-1).flatten(3)
    return (x.float() * cos[None, :, None] + turned.float() * sin[None, :, None]).to(x.dtype)


def attend(q, k, v, **options):
    q, k, v = (t.permute(0, 2, 1, 3) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, **options).permute(0, 2, 1, 3).flatten(2)


def single(q, k, v, gq, gk, cos, sin, norm=F.rms_norm, **options):
    q, k = norm(q, (D,), gq, 1e-6), norm(k, (D,), gk, 1e-6)
    return attend(turn(q, cos, sin), turn(k, cos, sin), v, **options)


def joint(q, k, v, q2, k2, v2, gq, gk, gq2, gk2, cos, sin):
    q = torch.cat([F.rms_norm(q2, (D,), gq2, 1e-5), F.rms_norm(q, (D,), gq, 1e-6)], dim=1)
    k = torch.cat([F.rms_norm(k2, (D,), gk2, 1e-5), F.rms_norm(k, (D,), gk, 1e-6)], dim=1)
    return attend(turn(q, cos, sin), turn(k, cos, sin), torch.cat([v2, v], dim=1))


def inputs(streams=1, dtype=torch.float32):
    made = {n: torch.randn(B, LENGTHS[0], H, D) for n in "qkv"} | {n: torch.randn(D) for n in ("gq", "gk")}
    if streams == 2:
        made |= {f"{n}2": torch.randn(B, LENGTHS[1], H, D) for n in "qkv"} | {n: torch.randn(D) for n in ("gq2", "gk2")}
    made = {name: t.to(dtype) for name, t in made.items()}
    return made | {n: torch.randn(sum(LENGTHS[:streams]), D) for n in ("cos", "sin")}


def nothing(t):
    return (1 * t).contiguous().unsqueeze(0)[0].to(t.dtype).flatten(1).view(t.shape)


def single_with_views(q, k, v, gq, gk, cos, sin):
    q, k = (nothing(F.rms_norm(nothing(t), (D,), g, 1e-6)) for t, g in ((q, gq), (k, gk)))
    q, k, v = (nothing(t.transpose(0, 1).permute(1, 2, 0, 3)) for t in (turn(q, cos, sin), turn(k, cos, sin), v))
    return nothing(F.scaled_dot_product_attention(q, k, v)).transpose(1, 2)


def joint_with_views(q, k, v, q2, k2, v2, gq, gk, gq2, gk2, cos, sin):
    q, k = (nothing(F.rms_norm(t, (D,), g, 1e-6)) for t, g in ((q, gq), (k, gk)))
    q2, k2 = (nothing(F.rms_norm(t, (D,), g, 1e-5)) for t, g in ((q2, gq2), (k2, gk2)))
    q, k, v = (nothing(torch.cat(pair, dim=1)) for pair in ((q2, q), (k2, k), (v2, v)))
    return attend(turn(q, cos, sin), turn(k, cos, sin), v)


@pytest.mark.parametrize(("fn", "streams"), [(single_with_views, 1), (joint_with_views, 2)])
def test_views_that_change_nothing_are_passed(check, fn, streams):
    report = check(fn, "norm_rope_attention", **inputs(streams))
    assert [(s.choice, s.shapes["streams"]) for s in report.sites] == [("kernel", streams)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("fn", "streams"), [(single, 1), (joint, 2)])
def test_found_and_equal(check, fn, streams, dtype):
    report = check(fn, "norm_rope_attention", **inputs(streams, dtype))
    assert [(s.form, s.choice, s.shapes["streams"]) for s in report.sites] == [(fn.__name__, "kernel", streams)]


def test_it_wins_over_the_smaller_passes(check):
    report = check(joint, **inputs(2))
    assert [s.kind for s in report.sites if s.choice == "kernel"] == ["norm_rope_attention"]


def test_the_smaller_passes_take_over_where_its_kernel_may_not(trace):
    selection = Selection.of(provider="reference")
    kernel = replace(selection.kernels["norm_rope_attention"], limits=(Limit("streams", maximum=1),))
    selection = replace(selection, kernels={**selection.kernels, "norm_rope_attention": kernel})
    plan = make_plan(GraphView(trace(joint, **inputs(2)).graph), selection)
    assert sorted(d.finding.kind for d in plan.decisions if d.choice == "kernel") == ["attention", "rope", "rope"]


def norm_used(q, k, v, gq, gk, cos, sin):
    q = F.rms_norm(q, (D,), gq, 1e-6)
    return attend(turn(q, cos, sin), turn(F.rms_norm(k, (D,), gk, 1e-6), cos, sin), v), q


def two_tables(q, k, v, gq, gk, cos, sin):
    q, k = F.rms_norm(q, (D,), gq, 1e-6), F.rms_norm(k, (D,), gk, 1e-6)
    return attend(turn(q, cos, sin), turn(k, sin, cos), v)


def key_not_turned(q, k, v, gq, gk, cos, sin):
    return attend(turn(F.rms_norm(q, (D,), gq, 1e-6), cos, sin), k, v)


def two_eps(q, k, v, gq, gk, cos, sin):
    return attend(turn(F.rms_norm(q, (D,), gq, 1e-6), cos, sin), turn(F.rms_norm(k, (D,), gk, 1e-3), cos, sin), v)


def not_permuted(q, k, v, gq, gk, cos, sin):
    q, k = (turn(F.rms_norm(t, (D,), gq, 1e-6), cos, sin) for t in (q, k))
    return F.scaled_dot_product_attention(q, k, v)


REFUSED = {
    "layer norm": (lambda **i: single(**i, norm=lambda x, s, g, e: F.layer_norm(x, s, g, None, e)), Code.PATTERN),
    "no gain": (lambda gq, **i: single(gq=None, **i), Code.PATTERN),
    "key not turned": (key_not_turned, Code.PATTERN),
    "two eps": (two_eps, Code.PATTERN),
    "two tables": (two_tables, Code.TABLE),
    "norm used elsewhere": (norm_used, Code.INNER_USE),
    "not permuted": (not_permuted, Code.AXES),
    "causal": (lambda **i: single(**i, is_causal=True), Code.MASK),
    "mask": (lambda **i: single(**i, attn_mask=i["cos"] @ i["cos"].T), Code.MASK),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(find, name):
    fn, code = REFUSED[name]
    (miss,) = find("norm_rope_attention", fn, **inputs())
    assert not isinstance(miss, Site)
    assert miss.reason.code == code


def test_streams_joined_in_another_order_for_the_value(find):
    def fn(q, k, v, q2, k2, v2, gq, gk, gq2, gk2, cos, sin):
        return joint(q, k, v2, q2, k2, v, gq, gk, gq2, gk2, cos, sin)

    (miss,) = find("norm_rope_attention", fn, **inputs(2))
    assert miss.reason.code == Code.PATTERN
    assert "lengths" in miss.reason.message


def test_gains_of_another_dtype(find):
    (miss,) = find("norm_rope_attention", single, **inputs() | {"gq": torch.randn(D, dtype=torch.float64)})
    assert miss.reason.code in (Code.MIXED_DTYPE, Code.PATTERN)


def test_golden_graphs(trace, golden):
    gm = trace(joint, **inputs(2, torch.bfloat16))
    golden("norm_rope_attention_before", gm)
    rewritten, _ = apply(gm, make_plan(GraphView(gm.graph), Selection.of("norm_rope_attention", "reference")))
    golden("norm_rope_attention_after", rewritten)
