"""Query, key and value projections of one activation: three matrix products that read `x` once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxrewrite.kernel import Kernel, Limit
from fluxrewrite.provider import launch

__all__ = ["KERNEL", "qkv"]


@torch.library.custom_op("fluxrewrite::qkv", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def qkv(
    x: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    weight_v: Tensor,
    bias_q: Tensor | None = None,
    bias_k: Tensor | None = None,
    bias_v: Tensor | None = None,
    execution: str = "reference",
    provider: str = "builtin",
) -> tuple[Tensor, Tensor, Tensor]:
    """`x @ weight.T + bias` for query, key and value.

    Args:
        x: [..., H], any strides.
        weight_q, weight_k, weight_v: [I, H] each, as in `torch.nn.Linear`; the three I may differ. Rows of one packed
            weight are passed as views of it.
        bias_q, bias_k, bias_v: [I] or None, each on its own.
        execution, provider: what runs, as `fluxrewrite.provider.launch` takes them.

    Returns:
        Three contiguous tensors [..., I] of the dtype of `x`.
    """
    if execution != "reference":
        result: tuple[Tensor, Tensor, Tensor] = launch(
            "qkv", provider, execution, x, weight_q, weight_k, weight_v, bias_q, bias_k, bias_v
        )
        return result
    q, k, v = (F.linear(x, w, b) for w, b in ((weight_q, bias_q), (weight_k, bias_k), (weight_v, bias_v)))
    return q.contiguous(), k.contiguous(), v.contiguous()


@qkv.register_fake
def _(
    x: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    weight_v: Tensor,
    bias_q: Tensor | None = None,
    bias_k: Tensor | None = None,
    bias_v: Tensor | None = None,
    execution: str = "reference",
    provider: str = "builtin",
) -> tuple[Tensor, Tensor, Tensor]:
    for weight, bias in ((weight_q, bias_q), (weight_k, bias_k), (weight_v, bias_v)):
        if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
            raise ValueError(f"weight {tuple(weight.shape)} for x {tuple(x.shape)}")
        if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
            raise ValueError(f"bias {tuple(bias.shape)} for weight {tuple(weight.shape)}")
    q, k, v = (x.new_empty((*x.shape[:-1], w.shape[0])) for w in (weight_q, weight_k, weight_v))
    return q, k, v


KERNEL = Kernel(
    name="qkv",
    op=torch.ops.fluxrewrite.qkv.default,
    limits=(Limit("dtype", one_of=("float32", "bfloat16", "float16")),),
    summary="query, key and value projections in one pass over the activation; optional biases; unequal widths (GQA)",
)
