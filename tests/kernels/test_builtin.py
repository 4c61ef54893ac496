"""This repository's kernels behind the ops, in the emulator, against the ops' references in float32."""

import math

import pytest
import torch
from fluxrewrite.kernels.builtin import additive

import fluxrewrite
from fluxrewrite.kernel import load_kernels

OPS = load_kernels()
B, S, L, H, D = 2, 36, 20, 4, 64


def rand(*shape):
    return torch.randn(*shape)


def head_first(*shape):
    """[B, H, S, D] whose memory is [B, S, H, D]."""
    b, h, s, d = shape
    return rand(b, s, h, d).transpose(1, 2)


def rope(x, table, interleaved, axis, out_dtype=None):
    return x, table, torch.randn_like(table), interleaved, axis, out_dtype


def triple(hidden, *widths, biases=(None, None, None)):
    """A weight for each of query, key and value."""
    weights = [rand(n, hidden) / math.sqrt(hidden) for n in widths]
    return weights, list(biases), [n for i, rows in enumerate(widths) for n in (i, 0, rows)]


def packed(hidden, *widths, bias=None):
    """One weight with rows between those of key and value that nobody reads."""
    starts = [sum(widths[:i]) + (8 if i > 1 else 0) for i in range(len(widths))]
    weight = rand(sum(widths) + 8, hidden) / math.sqrt(hidden)
    return [weight], [bias], [n for piece in zip(starts, widths, strict=True) for n in (0, *piece)]


def turned(hidden, *widths):
    weights, *rest = triple(hidden, *widths)
    return [w.t().contiguous().t() for w in weights], *rest


def streams(*lengths, heads=2, eps=(1e-6, 1e-5)):
    total = sum(lengths)
    three = [[rand(B, n, heads, D) for n in lengths] for _ in range(3)]
    gains = [[rand(D) for _ in lengths] for _ in range(2)]
    return *three, *gains, list(eps[: len(lengths)]), total


def norm_rope(*lengths, interleaved=True, table=None, scale=None, turn=False):
    q, k, v, gq, gk, eps, total = streams(*lengths)
    if turn:
        q, k, v = ([t.transpose(1, 2).contiguous().transpose(1, 2) for t in ts] for ts in (q, k, v))
    shape = {None: (total, D), "half": (total, D // 2), "one": (1, total, D), "one-half": (1, total, D // 2)}[table]
    return q, k, v, gq, gk, eps, rand(*shape), rand(*shape), interleaved, scale


MIXED = [0, 0, 64, 1, 0, 32, 1, 64, 32, 1, 32, 32]
CASES = {
    "rope": lambda: ("rope", rope(rand(B, S, H, D), rand(S, D), True, 1)),
    "rope-rotate-half": lambda: ("rope", rope(rand(B, H, S, D), rand(S, D), False, 2)),
    "rope-strides": lambda: ("rope", rope(head_first(B, H, S, D), rand(D, S).t(), True, 2)),
    "rope-three-axes": lambda: ("rope", rope(rand(B, S, D), rand(S, D), False, 1)),
    "rope-three-axes-strides": lambda: ("rope", rope(rand(S, B, D).transpose(0, 1), rand(S, D), True, 1)),
    "rope-batch-tables": lambda: ("rope", rope(rand(B, S, H, D), rand(B, S, D), True, 1)),
    "rope-half-width-batch-tables": lambda: ("rope", rope(rand(B, H, S, D), rand(B, S, D // 2), False, 2)),
    "rope-one-batch-of-tables": lambda: ("rope", rope(rand(B, S, H, D), rand(1, S, D), True, 1)),
    "rope-expanded-tables": lambda: ("rope", rope(rand(B, S, H, D), rand(1, S, D).expand(B, -1, -1), True, 1)),
    "rope-half-width": lambda: ("rope", rope(rand(B, S, H, D), rand(S, D // 2), True, 1)),
    "rope-half-width-rotate-half": lambda: ("rope", rope(rand(B, S, H, D), rand(S, D // 2), False, 1)),
    "rope-bfloat16-out": lambda: ("rope", rope(rand(B, S, H, D), rand(S, D), True, 1, torch.bfloat16)),
    "qkv": lambda: ("qkv", (rand(B, S, 96), *triple(96, 64, 32, 32))),
    "qkv-packed": lambda: ("qkv", (rand(B, S, 96), *packed(96, 64, 32, 32))),
    "qkv-turned-weights": lambda: ("qkv", (rand(B, S, 96), *turned(96, 64, 32, 32))),
    "qkv-biases": lambda: ("qkv", (rand(B, S, 96), *triple(96, 64, 32, 32, biases=(rand(64), rand(32), rand(32))))),
    "qkv-packed-bias": lambda: ("qkv", (rand(B, S, 96), *packed(96, 64, 32, 32, bias=rand(136)))),
    "qkv-packed-rest": lambda: ("qkv", (rand(B, S, 96), *packed(96, 64, 32, 32, 48, bias=rand(184)))),
    "qkv-packed-rests": lambda: ("qkv", (rand(B, S, 96), *packed(96, 64, 32, 32, 48, 8, 136, bias=rand(328)))),
    "qkv-mixed": lambda: ("qkv", (rand(B, S, 96), [rand(64, 96) / 9, rand(96, 96) / 9], [None, rand(96)], MIXED)),
    "qkv-some-biases": lambda: ("qkv", (rand(B, S, 96), *triple(96, 64, 32, 32, biases=(None, rand(32), None)))),
    "qkv-strided-bias": lambda: ("qkv", (rand(B, S, 96), *packed(96, 64, 32, 32, bias=rand(136, 2)[:, 1]))),
    "qkv-strides": lambda: ("qkv", (rand(S, B, 96).transpose(0, 1), *packed(96, 64, 32, 32))),
    "qkv-pair": lambda: ("qkv", (rand(B, S, 96), *triple(96, 64, 32, biases=(None, rand(32))))),
    "qkv-packed-pair": lambda: ("qkv", (rand(B, S, 96), *packed(96, 64, 32, bias=rand(104)))),
    "qkv-tokens-only": lambda: ("qkv", (rand(S, 96), *packed(96, 64, 32, 32))),
    "qkv-four-axes": lambda: ("qkv", (rand(B, 3, 5, 96), *packed(96, 64, 32, 32))),
    "attention": lambda: ("attention", (rand(B, H, S, D), rand(B, H, S, D), rand(B, H, S, D))),
    "attention-strides": lambda: ("attention", tuple(head_first(B, H, S, D) for _ in range(3))),
    "attention-bshd": lambda: ("attention", (*(rand(B, S, H, D) for _ in range(3)), None, None, False, "bshd", "bshd")),
    "attention-in-bshd": lambda: ("attention", (*(rand(B, S, H, D) for _ in range(3)), None, None, False, "bshd", "bhsd")),
    "attention-out-bshd": lambda: ("attention", (*(rand(B, H, S, D) for _ in range(3)), None, None, False, "bhsd", "bshd")),
    "attention-cross": lambda: ("attention", (rand(B, H, S, D), rand(B, H, L, D), rand(B, H, L, D))),
    "attention-causal": lambda: ("attention", (*(rand(B, H, S, D) for _ in range(3)), None, None, True)),
    "attention-causal-cross": lambda: ("attention", (rand(B, H, S, D), rand(B, H, L, D), rand(B, H, L, D), None, None, True)),
    "attention-causal-longer": lambda: ("attention", (rand(B, H, L, D), rand(B, H, S, D), rand(B, H, S, D), None, None, True)),
    "attention-grouped": lambda: ("attention", (rand(B, H, S, D), rand(B, 2, L, D), rand(B, 2, L, D), None, 0.3)),
    "attention-value-size": lambda: ("attention", (rand(B, H, S, D), rand(B, H, L, D), rand(B, H, L, 32))),
    "attention-bool-2": lambda: ("attention", (*crossing(), rand(S, L) > -0.5)),
    "attention-bool-3": lambda: ("attention", (*crossing(), rand(H, S, L) > -0.5)),
    "attention-bool-4": lambda: ("attention", (*crossing(), rand(B, 1, S, L) > -0.5)),
    "attention-bool-keys": lambda: ("attention", (*crossing(), rand(B, 1, 1, L) > -0.5)),
    "attention-bool-rows-without-keys": lambda: ("attention", (*crossing(), no_keys())),
    "attention-additive-2": lambda: ("attention", (*crossing(), rand(S, L))),
    "attention-additive-3": lambda: ("attention", (*crossing(), rand(1, S, L))),
    "attention-additive-3-heads": lambda: ("attention", (*crossing(), rand(H, S, L))),
    "attention-additive-heads": lambda: ("attention", (*crossing(), rand(B, H, S, L), 0.3)),
    "attention-additive-strides": lambda: ("attention", (*crossing(), rand(L, S).t())),
    "attention-additive-expanded": lambda: ("attention", (*crossing(), rand(B, 1, 1, L).expand(B, H, S, L))),
    "attention-infinite": lambda: ("attention", (*crossing(), torch.zeros(S, L).masked_fill(rand(S, L) > 1, -math.inf))),
    "attention-mask-bshd": lambda: ("attention", masked_bshd()),
    "one-stream": lambda: ("norm_rope_attention", norm_rope(S)),
    "two-streams": lambda: ("norm_rope_attention", norm_rope(12, 24)),
    "two-streams-rotate-half": lambda: ("norm_rope_attention", norm_rope(12, 24, interleaved=False)),
    "two-streams-half-width": lambda: ("norm_rope_attention", norm_rope(12, 24, table="half", scale=0.3)),
    "half-width-rotate-half": lambda: ("norm_rope_attention", norm_rope(S, interleaved=False, table="half")),
    "table-with-a-batch-of-one": lambda: ("norm_rope_attention", norm_rope(12, 24, table="one")),
    "half-width-batch-of-one": lambda: ("norm_rope_attention", norm_rope(12, 24, table="one-half")),
    "two-streams-strides": lambda: ("norm_rope_attention", norm_rope(12, 24, turn=True)),
}  # fmt: skip


def crossing():
    return rand(B, H, S, D), rand(B, H, L, D), rand(B, H, L, D)


def masked_bshd():
    q, k, v = (t.transpose(1, 2) for t in crossing())
    return q, k, v, rand(B, 1, S, L) > -0.5, None, False, "bshd", "bshd"


def no_keys():
    mask = rand(B, 1, S, L) > -0.5
    mask[1, 0, 3] = False
    return mask


@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_the_reference(case):
    name, arguments = CASES[case]()
    defaults = OPS[name].op._schema.arguments[len(arguments) : -2]
    full = (*arguments, *(a.default_value for a in defaults))
    expected, found = OPS[name].op(*full), OPS[name].op(*full, "emulate", "builtin")
    for a, b in zip(*((t if isinstance(t, (tuple, list)) else (t,)) for t in (expected, found)), strict=True):
        assert (a.dtype, b.is_contiguous()) == (b.dtype, True)
        error = 1e-5 if a.dtype == torch.float32 else 4e-2
        torch.testing.assert_close(b, a, atol=error, rtol=0)


def test_masks_become_numbers():
    assert additive(None, torch.float32) is None
    mask = torch.tensor([[True, False]])
    assert additive(mask, torch.float32).tolist() == [[0, -math.inf]]
    assert additive(torch.ones(2, 3, 4), torch.float32).shape == (1, 2, 3, 4)  # heads, as it broadcasts


@pytest.mark.parametrize(
    "kernels", ["norm_rope_attention,qkv", pytest.param("qkv,rope,attention", marks=pytest.mark.slow)]
)
def test_flux2_on_our_kernels(flux2, kernels):
    model, inputs = flux2()
    backend = fluxrewrite.backend("eager", kernels, strict=True, provider="builtin", execution="emulate")
    with torch.no_grad():
        expected = model(**inputs)[0]
        found = torch.compile(model, backend=backend)(**inputs)[0]
    assert (expected - found).abs().max().item() <= 1e-5
    (report,) = backend.reports
    taken = {k: s.rewritten for k, s in report.summary.kinds.items()}
    sizes = {"norm_rope_attention": 4, "qkv": 6, "rope": 8, "attention": 4}
    assert taken == {k: sizes[k] for k in kernels.split(",")}
    assert {s.kernel.provider for s in report.sites if s.choice == "kernel"} == {"builtin"}
