"""Rotary position embedding.

    out = x * cos + rotate(x) * sin        rotate(x) pairs (a, b) -> (-b, a)

Pairs are neighbours (`interleaved`: x[2i], x[2i+1], as in FLUX) or half a head apart (x[i], x[i + D/2], as in Llama).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluxrewrite.kernel import Kernel, Limit
from fluxrewrite.provider import launch

__all__ = ["KERNEL", "rope"]


def _rotate(x: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((-second, first), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _full(table: Tensor, size: int, interleaved: bool) -> Tensor:
    """A table of one value a pair as one value an element."""
    if table.shape[-1] == size:
        return table
    return table.repeat_interleave(2, dim=-1) if interleaved else torch.cat((table, table), dim=-1)


@torch.library.custom_op("fluxrewrite::rope", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    sequence_dim: int,
    out_dtype: torch.dtype | None = None,
    execution: str = "reference",
    provider: str = "builtin",
) -> Tensor:
    """Rotate the pairs of the last axis of `x`.

    Args:
        x: [..., D] with positions on axis `sequence_dim`, any strides; D even.
        cos, sin: [S, W] or [B, S, W], W = D (one value an element) or D/2 (one value a pair), shared by the heads.
        interleaved: pairs are neighbours (True) or half a head apart (False).
        sequence_dim: axis of `x` that holds the S positions.
        out_dtype: dtype of the result; that of `x` when None.
        execution, provider: what runs, as `fluxrewrite.provider.launch` takes them.

    Returns:
        Contiguous tensor of the shape of `x`. Computed in float32, or float64 if an operand is float64.
    """
    if execution != "reference":
        result: Tensor = launch("rope", provider, execution, x, cos, sin, interleaved, sequence_dim, out_dtype)
        return result
    compute = torch.promote_types(torch.promote_types(x.dtype, cos.dtype), torch.float32)
    compute = torch.promote_types(compute, sin.dtype)
    full_cos, full_sin = (_aligned(_full(t.to(compute), x.shape[-1], interleaved), x, sequence_dim) for t in (cos, sin))
    wide = x.to(compute)
    out = wide * full_cos + _rotate(wide, interleaved) * full_sin
    return out.to(out_dtype or x.dtype).contiguous()


def _aligned(table: Tensor, x: Tensor, sequence_dim: int) -> Tensor:
    """A table [S, D] or [B, S, D] with the axes of `x`."""
    shape = [1] * x.dim()
    shape[sequence_dim], shape[-1] = x.shape[sequence_dim], x.shape[-1]
    if table.dim() == 3:
        shape[0] = table.shape[0]
    return table.reshape(shape)


@rope.register_fake
def _(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    sequence_dim: int,
    out_dtype: torch.dtype | None = None,
    execution: str = "reference",
    provider: str = "builtin",
) -> Tensor:
    size, positions = x.shape[-1], x.shape[sequence_dim]
    for table in (cos, sin):
        rows = table.shape[-2:-1]
        if table.dim() not in (2, 3) or rows[0] != positions or table.shape[-1] not in (size, size // 2) or size % 2:
            raise ValueError(f"table {tuple(table.shape)} for x {tuple(x.shape)} with positions on axis {sequence_dim}")
        if table.dim() == 3 and table.shape[0] not in (1, x.shape[0]):
            raise ValueError(f"table {tuple(table.shape)} has another batch than x {tuple(x.shape)}")
    return x.new_empty(x.shape, dtype=out_dtype or x.dtype)


KERNEL = Kernel(
    name="rope",
    op=torch.ops.fluxrewrite.rope.default,
    limits=(
        Limit("dtype", one_of=("float32", "bfloat16", "float16")),
        Limit("head_size", multiple_of=2, source="pairs"),
    ),
    summary="rotary embedding of query or key; interleaved or half pairs; fp32 inside",
)
