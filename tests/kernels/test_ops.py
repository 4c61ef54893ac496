"""The canonical ops: opcheck, the reference against plain formulas, and layouts."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.kernel import load_kernels

B, S, L, H, D = 2, 5, 7, 4, 8


def sample(name):
    torch.manual_seed(0)
    q, k, v = torch.randn(B, H, S, D), torch.randn(B, 2, L, D), torch.randn(B, 2, L, D)
    x, w, u, g = torch.randn(B, S, 16), torch.randn(24, 16), torch.randn(B, L, H, D), torch.randn(D)
    return {
        "rope": [
            (torch.randn(B, S, H, D), torch.randn(S, D), torch.randn(S, D), True, 1, None),
            (
                torch.randn(B, H, S, D).transpose(1, 2),
                torch.randn(B, S, D // 2),
                torch.randn(B, S, D // 2),
                False,
                1,
                torch.bfloat16,
            ),
            (torch.randn(B, S, D, dtype=torch.bfloat16), torch.randn(S, D), torch.randn(S, D), True, 1, torch.float32),
        ],
        "qkv": [
            (x, [w, w + 1], [None, torch.randn(24)], [1, 4, 8, 0, 0, 24, 1, 12, 4, 1, 16, 8, 1, 0, 4]),
            (x.transpose(0, 1), [w, w + 1, w - 1], [None, None, None], [0, 0, 24, 1, 0, 24, 2, 0, 24]),
        ],
        "attention": [
            (q, k, v),
            (q, k, v, torch.rand(B, 1, S, L) > 0.5, 0.3, False, "bhsd", "bshd"),
            (*(t.transpose(1, 2) for t in (q, k, v)), torch.randn(S, L), None, False, "bshd", "bshd"),
            (q, q, q, None, None, True, "bhsd", "bhsd"),
        ],
        "norm_rope_attention": [
            (*([t] for t in torch.randn(3, B, S, H, D)), [g], [g], [1e-6], *torch.randn(2, S, D), True),
            (
                *([t, u] for t in torch.randn(3, B, S, H, D)),
                [g, g + 1],
                [g, g],
                [1e-6, 1e-5],
                *torch.randn(2, S + L, D),
                False,
                0.3,
            ),
        ],
    }[name]


@pytest.mark.parametrize("name", ["rope", "qkv", "attention", "norm_rope_attention"])
def test_opcheck(name):
    op = load_kernels()[name].op
    for args in sample(name):
        torch.library.opcheck(op, args)


@pytest.mark.parametrize("name", ["rope", "qkv", "attention", "norm_rope_attention"])
def test_results_are_contiguous_and_as_the_fake_says(name):
    op = load_kernels()[name].op
    for args in sample(name):
        for real, fake in zip(*(torch.utils._pytree.tree_leaves(r) for r in (op(*args), meta(op, args))), strict=True):
            assert real.is_contiguous()
            assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())


def meta(op, args):
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    fakes = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, args)
    with mode:
        return op(*fakes)


@pytest.mark.parametrize(("interleaved", "axis", "half_table"), itertools.product([True, False], [1, 2], [True, False]))
def test_rope_turns_each_pair_by_its_angle(interleaved, axis, half_table):
    angles = torch.randn(S, D // 2, dtype=torch.float64)
    x = torch.randn((B, S, H, D) if axis == 1 else (B, H, S, D), dtype=torch.float64)
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turn = torch.polar(torch.ones_like(angles), angles)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * (turn[:, None] if axis == 1 else turn))
    expected = turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)

    def table(t):
        return t if half_table else (t.repeat_interleave(2, -1) if interleaved else torch.cat([t, t], -1))

    found = torch.ops.fluxrewrite.rope(x, table(angles.cos()), table(angles.sin()), interleaved, axis, None)
    torch.testing.assert_close(found, expected)


def test_rope_works_in_float32_for_bfloat16():
    x, cos, sin = torch.randn(1, S, H, D).bfloat16(), torch.randn(S, D), torch.randn(S, D)
    wide = torch.ops.fluxrewrite.rope(x.float(), cos, sin, True, 1, None)
    assert torch.equal(torch.ops.fluxrewrite.rope(x, cos, sin, True, 1, None), wide.bfloat16())


def test_attention_of_grouped_heads_and_masks():
    (q, k, v, mask, scale, causal, layout, out_layout) = sample("attention")[1]
    wide_k, wide_v = (t.repeat_interleave(2, 1) for t in (k, v))
    scores = (q @ wide_k.mT * scale).masked_fill(~mask, float("-inf"))
    expected = torch.nan_to_num(scores.softmax(-1)) @ wide_v
    found = torch.ops.fluxrewrite.attention(q, k, v, mask, scale, causal, layout, out_layout)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_qkv_is_a_linear_for_each_piece():
    x, (first, second), (_, bias), pieces = sample("qkv")[0]
    found = torch.ops.fluxrewrite.qkv(x, [first, second], [None, bias], pieces)
    rows = [slice(4, 12), None, slice(12, 16), slice(16, 24), slice(0, 4)]
    for result, part in zip(found, rows, strict=True):
        torch.testing.assert_close(result, F.linear(x, second[part], bias[part]) if part else F.linear(x, first))


X, W = torch.randn(2, 5, 16), torch.randn(24, 16)
WHOLE = [0, 0, 8, 0, 8, 8, 0, 16, 8]
REFUSED = {
    "1 biases for 2 weights": ([W, W], [None], WHOLE),
    "weight (16, 24) for x (2, 5, 16)": ([W.T], [None], WHOLE),
    "weight (16,) for x": ([W[0]], [None], WHOLE),
    "bias (16,) for weight (24, 16)": ([W], [W[0]], WHOLE),
    "bias (24, 16) for weight (24, 16)": ([W], [W], WHOLE),
    "3 numbers in pieces": ([W], [None], WHOLE[:3]),
    "10 numbers in pieces": ([W], [None], [*WHOLE, 0]),
    "piece 3 is of weight 1; there are 1": ([W], [None], [*WHOLE, 1, 0, 8]),
    "piece 0 is of weight -1": ([W], [None], [-1, 0, 8, *WHOLE]),
    "piece 3 is rows 20 to 28 of weight (24, 16)": ([W], [None], [*WHOLE, 0, 20, 8]),
    "piece 3 is rows -1 to 8": ([W], [None], [*WHOLE, 0, -1, 9]),
    "piece 3 is rows 3 to 3": ([W], [None], [*WHOLE, 0, 3, 0]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_qkv_refuses_what_does_not_fit(message):
    for run in (lambda *a: torch.ops.fluxrewrite.qkv(*a), lambda *a: meta(torch.ops.fluxrewrite.qkv.default, a)):
        with pytest.raises(ValueError, match=re.escape(message)):
            run(X, *REFUSED[message])
