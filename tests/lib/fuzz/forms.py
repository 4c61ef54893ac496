"""The functions behind the programs, and the shapes of their parameters by name.

Each takes `z`, the sizes, and tensors by the names that `SHAPES` knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["FORMS", "SHAPES", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """Batch, tokens, heads, size of a head, width of the activation, and rows of a packed layer that are no projection."""

    b: int
    s: int
    h: int
    d: int
    e: int
    m: int

    @property
    def w(self) -> int:
        return self.h * self.d


Shape = Callable[[Sizes], tuple[int, ...]]
SHAPES: Mapping[str, Shape] = {
    "x": lambda z: (z.b, z.s, z.e),
    "y": lambda z: (z.b, z.s, z.e),
    **dict.fromkeys(("wq", "wk", "wv"), lambda z: (z.w, z.e)),
    **dict.fromkeys(("bq", "bk", "bv"), lambda z: (z.w,)),
    "wqkv": lambda z: (3 * z.w, z.e),
    "bqkv": lambda z: (3 * z.w,),
    "wkv": lambda z: (2 * z.w, z.e),
    "wmore": lambda z: (3 * z.w + z.m, z.e),
    **dict.fromkeys(("q", "k", "v"), lambda z: (z.b, z.h, z.s, z.d)),
    **dict.fromkeys(("qs", "ks", "vs", "text"), lambda z: (z.b, z.s, z.h, z.d)),
    **dict.fromkeys(("q3", "k3", "v3"), lambda z: (z.b * z.h, z.s, z.d)),
    **dict.fromkeys(("qg",), lambda z: (z.b, 2 * z.h, z.s, z.d)),
    **dict.fromkeys(("cos", "sin"), lambda z: (z.s, z.d)),
    **dict.fromkeys(("cosb", "sinb"), lambda z: (z.b, z.s, z.d)),
    **dict.fromkeys(("cos1", "sin1"), lambda z: (z.s, 1, z.d)),
    **dict.fromkeys(("cosj", "sinj"), lambda z: (2 * z.s, 1, z.d)),
    **dict.fromkeys(("cosp", "sinp"), lambda z: (z.s, z.d // 2)),
    "freqs": lambda z: (z.s, z.d // 2),
    "freqs1": lambda z: (z.s, 1, z.d // 2),
    "turn": lambda z: (z.s, 1, z.d // 2, 2, 2),
    "mask": lambda z: (z.b, 1, z.s, z.s),
    "mask3": lambda z: (z.b * z.h, z.s, z.s),
    "keep": lambda z: (z.b, 1, z.s, z.s),
    **dict.fromkeys(("gq", "gk", "gt"), lambda z: (z.d,)),
}
FORMS: dict[str, Callable[..., Any]] = {}


def form(fn: Callable[..., Any]) -> Callable[..., Any]:
    FORMS[fn.__name__] = fn
    return fn


def attended(z: Any, q: Any, k: Any, v: Any) -> Any:
    """Heads apart, attention, heads together."""
    q, k, v = (t.view(z.b, z.s, z.h, z.d).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2, 3)


# *** projections


@form
def qkv_triple(z, x, wq, wk, wv):
    return attended(z, F.linear(x, wq), F.linear(x, wk), F.linear(x, wv))


@form
def qkv_triple_bias(z, x, wq, wk, wv, bq, bk, bv):
    x = x * 2
    return attended(z, F.linear(x, wq, bq), F.linear(x, wk, bk), F.linear(x, wv, bv))


@form
def qkv_normed(z, x, wq, wk, wv, gq, gk):
    x = F.layer_norm(x, (z.e,))
    q, k, v = (F.linear(x, w).unflatten(-1, (z.h, -1)) for w in (wq, wk, wv))
    q, k = F.rms_norm(q, (z.d,), gq, 1e-6), F.rms_norm(k, (z.d,), gk, 1e-6)
    out = F.scaled_dot_product_attention(*(t.permute(0, 2, 1, 3) for t in (q, k, v)))
    return out.permute(0, 2, 1, 3).reshape(z.b, z.s, z.w) + 1


@form
def qkv_chunk(z, x, wqkv, bqkv):
    return attended(z, *F.linear(x, wqkv, bqkv).chunk(3, dim=-1))


@form
def qkv_split_rest(z, x, wmore):
    qkv, rest = torch.split(F.linear(x, wmore), [3 * z.w, z.m], dim=-1)
    return attended(z, *qkv.chunk(3, -1)), F.silu(rest)


@form
def qkv_unbind(z, x, wqkv):
    q, k, v = F.linear(x, wqkv).view(z.b, z.s, 3, z.h, z.d).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(z.b, z.s, -1)


@form
def qkv_heads_last(z, x, wqkv):
    qkv = F.linear(x, wqkv).reshape(z.b, z.s, 3, z.h, z.d)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(z.b, z.s, -1)


@form
def qkv_mixed(z, x, wq, wkv):
    return attended(z, F.linear(x, wq), *F.linear(x, wkv).chunk(2, dim=-1))


@form
def qkv_pair(z, x, y, wq, wk, wv):
    return attended(z, F.linear(x, wq), F.linear(y, wk), F.linear(y, wv))


# *** rotations


@form
def rope_interleaved(z, qs, cos1, sin1):
    real, imag = qs.reshape(*qs.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-imag, real], dim=-1).flatten(3)
    return (qs.float() * cos1 + turned.float() * sin1).to(qs.dtype)


@form
def rope_slices(z, q, cos, sin):
    turned = torch.stack((-q[..., 1::2], q[..., 0::2]), dim=-1).flatten(-2)
    return q * cos.to(q.dtype) + turned * sin.to(q.dtype)


@form
def rope_halves(z, q, cos, sin):
    first, second = q.chunk(2, dim=-1)
    return q * cos.to(q.dtype) + torch.cat((-second, first), dim=-1) * sin.to(q.dtype)


@form
def rope_transformers(z, q, k, cosb, sinb):
    cos, sin = cosb.unsqueeze(1).to(q.dtype), sinb.unsqueeze(1).to(q.dtype)

    def rotate_half(x):
        return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)

    return (q * cos) + (rotate_half(q) * sin), (k * cos) + (rotate_half(k) * sin)


@form
def rope_half_unbind(z, qs, cos1, sin1):
    first, second = qs.reshape(*qs.shape[:-1], 2, -1).unbind(-2)
    turned = torch.cat([-second, first], dim=-1)
    return (qs.float() * cos1 + turned.float() * sin1).to(qs.dtype)


@form
def rope_pairwise_halves(z, q, cosp, sinp):
    first, second = q.float().chunk(2, dim=-1)
    return torch.cat([first * cosp - second * sinp, second * cosp + first * sinp], dim=-1).to(q.dtype)


@form
def rope_pairwise_slices(z, q, cosp, sinp):
    first, second = q.float()[..., ::2], q.float()[..., 1::2]
    return torch.stack([first * cosp - second * sinp, first * sinp + second * cosp], dim=-1).flatten(-2).type_as(q)


@form
def rope_complex(z, qs, freqs1):
    pairs = torch.view_as_complex(qs.float().reshape(*qs.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * freqs1).flatten(3).type_as(qs)


@form
def rope_complex_heads(z, q, k, freqs):
    def turn(x):
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * freqs[None, None]).flatten(-2).to(x.dtype)

    return turn(q), turn(k)


@form
def rope_matrix(z, qs, turn):
    pairs = qs.float().reshape(*qs.shape[:-1], -1, 2).unsqueeze(-2)
    return (turn[..., 0] * pairs[..., 0] + turn[..., 1] * pairs[..., 1]).reshape(*qs.shape).type_as(qs)


@form
def rope_matrix_sum(z, qs, turn):
    return (turn * qs.float().reshape(*qs.shape[:-1], -1, 1, 2)).sum(dim=-1).reshape(*qs.shape).type_as(qs)


@form
def rope_written(z, q, cosp, sinp):
    first, second = q.float()[..., 0::2], q.float()[..., 1::2]
    out = torch.empty_like(q, dtype=torch.float32)
    out[..., 0::2] = first * cosp - second * sinp
    out[..., 1::2] = first * sinp + second * cosp
    return out.type_as(q)


# *** attention


@form
def attention_plain(z, q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


@form
def attention_causal(z, q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5).transpose(1, 2)


@form
def attention_turned(z, qs, ks, vs, mask):
    q, k, v = (t.permute(0, 2, 1, 3) for t in (qs, ks, vs))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0).permute(0, 2, 1, 3).flatten(2)


@form
def attention_bool(z, q, k, v, keep):
    return F.scaled_dot_product_attention(q, k, v, keep) * 2


@form
def attention_grouped(z, qg, k, v):
    return F.scaled_dot_product_attention(qg, k, v, enable_gqa=True)


@form
def attention_repeated(z, qg, k, v):
    k, v = (t[:, :, None].expand(z.b, z.h, 2, z.s, z.d).reshape(z.b, 2 * z.h, z.s, z.d) for t in (k, v))
    return F.scaled_dot_product_attention(qg, k, v)


@form
def attention_self(z, q):
    return F.scaled_dot_product_attention(q, q, q)


@form
def spelled_plain(z, q, k, v):
    scores = torch.matmul(q, k.transpose(-1, -2)) * (1 / math.sqrt(z.d))
    return torch.matmul(scores.softmax(dim=-1), v)


@form
def spelled_masked(z, q, k, v, mask):
    scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(z.d) + mask
    return torch.matmul(F.dropout(F.softmax(scores, dim=-1), p=0.1, training=False), v).transpose(1, 2).contiguous()


@form
def spelled_filled(z, q, k, v, keep):
    scores = (q @ k.mT * 0.25).masked_fill(~keep, float("-inf"))
    return torch.softmax(scores, -1) @ v


@form
def spelled_where(z, q, k, v, keep):
    scores = torch.where(keep, q @ k.mT * 0.25, float("-inf"))
    return torch.softmax(scores, -1) @ v


@form
def spelled_wide(z, qs, ks, vs):
    q, k, v = (t.transpose(1, 2) for t in (qs, ks, vs))
    scores = q @ k.transpose(2, 3)
    return (F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v).transpose(1, 2).flatten(2)


@form
def spelled_folded(z, q3, k3, v3, mask3):
    scores = torch.baddbmm(mask3, q3, k3.transpose(-1, -2), beta=1, alpha=0.25)
    return torch.bmm(scores.softmax(dim=-1), v3)


# *** regions


def turned(x, cos, sin):
    real, imag = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    other = torch.stack([-imag, real], dim=-1).flatten(3)
    return (x.float() * cos + other.float() * sin).to(x.dtype)


@form
def region_single(z, qs, ks, vs, gq, gk, cos1, sin1):
    q, k = F.rms_norm(qs, (z.d,), gq, 1e-6), F.rms_norm(ks, (z.d,), gk, 1e-6)
    q, k = turned(q, cos1, sin1), turned(k, cos1, sin1)
    return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, vs))).transpose(1, 2).flatten(2)


@form
def region_joint(z, qs, ks, vs, text, gq, gk, gt, cosj, sinj):
    q, k = (F.rms_norm(t, (z.d,), g, 1e-5) for t, g in ((qs, gq), (ks, gk)))
    q2, k2 = (F.rms_norm(t, (z.d,), gt, 1e-5) for t in (text, text * 3))
    q, k = (turned(torch.cat(pair, dim=1), cosj, sinj) for pair in ((q2, q), (k2, k)))
    v = torch.cat([text * 2, vs], dim=1)
    return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2).flatten(2)


@form
def region_block(z, x, wqkv, gq, gk, cos1, sin1):
    q, k, v = (t.unflatten(-1, (z.h, z.d)) for t in F.linear(x, wqkv).chunk(3, dim=-1))
    q, k = F.rms_norm(q, (z.d,), gq, 1e-6), F.rms_norm(k, (z.d,), gk, 1e-6)
    q, k = turned(q, cos1, sin1), turned(k, cos1, sin1)
    return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2).flatten(2)


@form
def region_decoder(z, x, wq, wk, wv, cosb, sinb, mask):
    q, k, v = (F.linear(x, w).view(z.b, z.s, -1, z.d).transpose(1, 2) for w in (wq, wk, wv))
    cos, sin = cosb.unsqueeze(1).to(q.dtype), sinb.unsqueeze(1).to(q.dtype)

    def rotate_half(t):
        return torch.cat((-t[..., t.shape[-1] // 2 :], t[..., : t.shape[-1] // 2]), dim=-1)

    q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
    scores = torch.matmul(q, k.transpose(2, 3)) * z.d**-0.5 + mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, v).transpose(1, 2).contiguous().reshape(z.b, z.s, -1)
