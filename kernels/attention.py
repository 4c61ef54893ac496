"""Attention: softmax(scale * q k^T + mask) v, bidirectional or causal, with grouped key/value heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxrewrite.kernel import Kernel, Limit
from fluxrewrite.provider import launch

__all__ = ["KERNEL", "attention"]


@torch.library.custom_op("fluxrewrite::attention", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    layout: str = "bhsd",
    out_layout: str = "bhsd",
    execution: str = "reference",
    provider: str = "builtin",
) -> Tensor:
    """Scaled dot-product attention that takes layouts, so that no permute is needed around it.

    Args:
        q: [B, H, S, D] (`layout` "bhsd") or [B, S, H, D] ("bshd"), any strides.
        k, v: as `q` with their own length L and Hkv heads, H a multiple of Hkv.
        mask: broadcastable to [B, H, S, L]; bool (True takes part) or added to the scores. Rows in which no key takes
            part give 0, as in `torch.nn.functional.scaled_dot_product_attention`.
        scale: factor on the scores; 1 / sqrt(D) when None.
        is_causal: query i sees keys 0..i.
        out_layout: layout of the result.
        execution, provider: what runs, as `fluxrewrite.provider.launch` takes them.

    Returns:
        Contiguous tensor in `out_layout`, dtype of `q`. Scores accumulate in float32.
    """
    if execution != "reference":
        result: Tensor = launch("attention", provider, execution, q, k, v, mask, scale, is_causal, layout, out_layout)
        return result
    if layout == "bshd":
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, mask, 0.0, is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return (out.transpose(1, 2) if out_layout == "bshd" else out).contiguous()


@attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    layout: str = "bhsd",
    out_layout: str = "bhsd",
    execution: str = "reference",
    provider: str = "builtin",
) -> Tensor:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4 or (mask is not None and mask.dim() not in (2, 3, 4)):
        shapes = [None if t is None else tuple(t.shape) for t in (q, k, v, mask)]
        raise ValueError(f"query, key, value and mask of shapes {shapes}")
    batch, a, b, _ = q.shape
    return q.new_empty((batch, a, b, v.shape[-1]) if layout == out_layout else (batch, b, a, v.shape[-1]))


KERNEL = Kernel(
    name="attention",
    op=torch.ops.fluxrewrite.attention.default,
    limits=(
        Limit("dtype", one_of=("float32", "bfloat16", "float16")),
        Limit("head_size", maximum=128, source="128 partitions hold one head, NKI 0.6 nl.tile_size.pmax"),
        Limit("value_size", maximum=128, source="128 partitions hold one head, NKI 0.6 nl.tile_size.pmax"),
    ),
    summary="attention in one call; bidirectional or causal, additive or boolean mask, grouped heads",
)
