"""The canonical ops in plain float64, from their formulas rather than through the ops' own bodies.

Each takes the arguments of its op, of any float dtype, and returns float64 in the op's layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["REFERENCES"]


def _rope(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, sequence_dim: int, out_dtype: torch.dtype | None = None
) -> Tensor:
    x, cos, sin = x.double(), cos.double(), sin.double()
    size = x.shape[-1]
    first = slice(0, size, 2) if interleaved else slice(0, size // 2)
    second = slice(1, size, 2) if interleaved else slice(size // 2, size)
    if sequence_dim == 2:
        x = x.transpose(1, 2)
    a, b = x[..., first], x[..., second]
    whole = cos.shape[-1] == size
    (cos_a, cos_b), (sin_a, sin_b) = (
        [(t[..., part] if whole else t).unsqueeze(-2) for part in (first, second)] for t in (cos, sin)
    )
    out = torch.empty_like(x)
    out[..., first] = a * cos_a - b * sin_a
    out[..., second] = b * cos_b + a * sin_b
    return out.transpose(1, 2) if sequence_dim == 2 else out


def _qkv(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], pieces: Sequence[int]
) -> tuple[Tensor, ...]:
    products = [x.double() @ w.double().T for w in weights]
    whole = [p if b is None else p + b.double() for p, b in zip(products, biases, strict=True)]
    triples = zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True)
    return tuple(whole[i][..., start : start + rows] for i, start, rows in triples)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of one [B, S, D] against [B, L, D]; `mask` [B or 1, S, L] is added to the scores."""
    scores = (q @ k.transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores + mask
    top = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - torch.where(top.isinf(), torch.zeros_like(top), top))
    total = weights.sum(-1, keepdim=True)
    return weights @ v / torch.where(total == 0, torch.ones_like(total), total)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    layout: str = "bhsd",
    out_layout: str = "bhsd",
) -> Tensor:
    q, k, v = (t.double().transpose(1, 2) if layout == "bshd" else t.double() for t in (q, k, v))
    length, keys, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)
    if is_causal:
        mask = torch.full((length, keys), -math.inf, dtype=torch.float64).triu(1)
    heads = [
        # One head at a time: all scores in float64 at once would take gigabytes.
        _softmax_attention(q[:, h], k[:, h // group], v[:, h // group], mask, scale or 1 / math.sqrt(q.shape[-1]))
        for h in range(q.shape[1])
    ]
    out = torch.stack(heads, dim=1)
    return out.transpose(1, 2) if out_layout == "bshd" else out


def _normed(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gamma.double()


def _norm_rope_attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    gamma_q: Sequence[Tensor],
    gamma_k: Sequence[Tensor],
    eps: Sequence[float],
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    scale: float | None = None,
) -> Tensor:
    queries = torch.cat([_normed(*s) for s in zip(q, gamma_q, eps, strict=True)], dim=1)
    keys = torch.cat([_normed(*s) for s in zip(k, gamma_k, eps, strict=True)], dim=1)
    queries, keys = (_rope(t, cos, sin, interleaved, 1) for t in (queries, keys))
    values = torch.cat([t.double() for t in v], dim=1)
    return _attention(queries, keys, values, scale=scale, layout="bshd", out_layout="bshd")


REFERENCES: Mapping[str, Callable[..., Any]] = {
    "rope": _rope,
    "qkv": _qkv,
    "attention": _attention,
    "norm_rope_attention": _norm_rope_attention,
}
"""By name of the op."""
