"""QK-norm, RoPE, the joining of streams and attention in one call.

    q = cat([rms_norm(q_i, gamma_q_i) for each stream i], sequence), the same for k;  v = cat([v_i])
    attention(rope(q), rope(k), v)

The call spans from the projections' outputs to the output projection's input: at both ends, a matrix product writes to or reads
from memory anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxrewrite.kernel import Kernel, Limit
from fluxrewrite.provider import launch

__all__ = ["KERNEL", "norm_rope_attention"]


@torch.library.custom_op("fluxrewrite::norm_rope_attention", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def norm_rope_attention(
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
    execution: str = "reference",
    provider: str = "builtin",
) -> Tensor:
    """Bidirectional attention over joined streams.

    Args:
        q, k, v: one [B, S_i, H, D] for each stream, joined in order; any strides.
        gamma_q, gamma_k: [D] for each stream, gains of the RMS norms over D.
        eps: epsilon of both norms, for each stream.
        cos, sin: tables [S, W] or [B, S, W] over the joined sequence, as `fluxrewrite::rope` takes them.
        interleaved: pairs are neighbours (True) or half a head apart (False).
        scale: factor on the scores; 1 / sqrt(D) when None.
        execution, provider: what runs, as `fluxrewrite.provider.launch` takes them.

    Returns:
        Contiguous [B, S, H, D], S the sum of the S_i, dtype of `q`.
    """
    if execution != "reference":
        result: Tensor = launch(
            "norm_rope_attention", provider, execution, q, k, v, gamma_q, gamma_k, eps, cos, sin, interleaved, scale
        )
        return result
    size = [q[0].shape[-1]]
    queries = torch.cat([F.rms_norm(t, size, g, e) for t, g, e in zip(q, gamma_q, eps, strict=True)], dim=1)
    keys = torch.cat([F.rms_norm(t, size, g, e) for t, g, e in zip(k, gamma_k, eps, strict=True)], dim=1)
    rope = torch.ops.fluxrewrite.rope
    queries, keys = (rope(t, cos, sin, interleaved, 1, None) for t in (queries, keys))
    queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, torch.cat(list(v), dim=1)))
    return F.scaled_dot_product_attention(queries, keys, values, scale=scale).transpose(1, 2).contiguous()


@norm_rope_attention.register_fake
def _(
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
    execution: str = "reference",
    provider: str = "builtin",
) -> Tensor:
    if not len(q) == len(k) == len(v) == len(gamma_q) == len(gamma_k) == len(eps):
        raise ValueError(
            f"{len(q)}, {len(k)}, {len(v)} streams with {len(gamma_q)}, {len(gamma_k)} gains and {len(eps)} epsilons"
        )
    if any(t.dim() != 4 for t in (*q, *k, *v)) or any(g.shape != (q[0].shape[-1],) for g in (*gamma_q, *gamma_k)):
        raise ValueError(f"streams {[tuple(t.shape) for t in q]} with gains {[tuple(g.shape) for g in gamma_q]}")
    batch, _, heads, _ = q[0].shape
    positions = sum(t.shape[1] for t in q)
    if cos.shape[-2] != positions or sin.shape[-2] != positions:
        raise ValueError(f"tables {tuple(cos.shape)} and {tuple(sin.shape)} for {positions} positions")
    return q[0].new_empty((batch, positions, heads, v[0].shape[-1]))


KERNEL = Kernel(
    name="norm_rope_attention",
    op=torch.ops.fluxrewrite.norm_rope_attention.default,
    limits=(
        Limit("dtype", one_of=("float32", "bfloat16", "float16")),
        Limit("head_size", maximum=128, source="128 partitions hold one head, NKI 0.6 nl.tile_size.pmax"),
        Limit("streams", maximum=2, source="text and image"),
    ),
    summary="QK-RMSNorm, RoPE, joining of text and image, attention: from the projections to the output projection",
)
