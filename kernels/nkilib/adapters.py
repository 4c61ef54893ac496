"""nkilib's kernels behind the canonical ops: layouts, defaults, and how calls are split to fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxrewrite.errors import InputError

from ..qkv import pieces_of
from ..toolchain import Toolchain, toolchain
from . import limits
from .library import package

__all__ = ["ENTRIES", "attention", "qkv", "rope"]

ENTRIES = {
    "rope": "core.embeddings.rope:RoPE",
    "qkv": "core.qkv.qkv:qkv",
    "attention": "core.attention.attention_cte:attention_cte",
}
"""Where each kernel is inside the library: the same from 2.28 on, and in 2.27 for the kernels that it has."""


def _entry(name: str, execution: str | Toolchain) -> str:
    return f"{package(execution if isinstance(execution, str) else type(execution).__name__)}.{ENTRIES[name]}"


def rope(
    tiled: bool,
    execution: str | Toolchain,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    sequence_dim: int,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`fluxrewrite::rope` by `RoPE`, which takes x [D, B, H, S] and one table value a pair, [D/2, B, S].

    `tiled`: the kernel splits its input to fit SBUF; without it, heads are called in groups that fit. Products are in the dtype of
    `x`.

    Raises InputError for tables of two different values for one pair, where they can be read.
    """
    wide = x if x.dim() == 4 else x.unsqueeze(2)
    there, back = ((3, 0, 2, 1), (1, 3, 2, 0)) if sequence_dim == 1 else ((3, 0, 1, 2), (1, 2, 3, 0))
    channels_first = wide.permute(there)
    tables = [_pairs(t, x.shape[-1], interleaved).to(x.dtype) for t in (cos, sin)]
    tables = [t.expand(x.shape[0], -1, -1).permute(2, 0, 1) for t in tables]
    run, entry = toolchain(execution).run, _entry("rope", execution)
    rows: list[Tensor] = []
    for batches, heads in _groups(channels_first, tiled):
        operands = [channels_first[:, batches, heads], *(t[:, batches] for t in tables)]
        rows.append(run(entry, *(t.contiguous() for t in operands), False, not interleaved))
    size, batch, _, positions = channels_first.shape
    rotated = torch.cat([r.reshape(size, -1, positions) for r in rows], 1) if len(rows) > 1 else rows[0]
    out = rotated.reshape(size, batch, -1, positions).permute(back)
    return out.to(out_dtype or x.dtype).contiguous().reshape(x.shape)


def _groups(x: Tensor, tiled: bool) -> list[tuple[slice, slice]]:
    """Batches and heads of each call, for x [D, B, H, S]: all at once, or as many heads as fit SBUF.

    A group never spans a part of two batches, so that the results join in order.
    """
    _, batch, heads, positions = x.shape
    width = x.element_size()
    if tiled or limits.rope_bytes(heads, positions, width) * batch <= limits.SBUF_BYTES:
        return [(slice(None), slice(None))]
    fitting = next((n for n in range(heads, 1, -1) if limits.rope_bytes(n, positions, width) <= limits.SBUF_BYTES), 1)
    share = math.ceil(heads / math.ceil(heads / fitting))
    return [(slice(b, b + 1), slice(h, h + share)) for b in range(batch) for h in range(0, heads, share)]


def _pairs(table: Tensor, size: int, interleaved: bool) -> Tensor:
    """A table [S, W] or [B, S, W] with one value for each pair, as the library takes it."""
    if table.shape[-1] != size:
        return table
    first, second = (table[..., 0::2], table[..., 1::2]) if interleaved else table.chunk(2, dim=-1)
    if table.device.type == "cpu" and not torch.equal(first, second):
        raise InputError("rope with provider nkilib: a table has two values for one pair; use provider builtin")
    return first


def qkv(
    execution: str | Toolchain,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    pieces: Sequence[int],
) -> list[Tensor]:
    """`fluxrewrite::qkv` by `qkv`, which takes tokens [1, T, H] and one weight [H, I]; a missing bias becomes zeros.

    The batch is folded into the tokens, because the library picks its kernel by their number: one for up to 96 tokens, one for
    more. Rows of no projection are left to a product of the compiler.
    """
    found = pieces_of(x, weights, biases, pieces)
    rows = [(w[i : i + n], None if b is None else b[i : i + n]) for w, b, i, n in found]
    projected = _projected(execution, x, *zip(*rows[:3], strict=True))
    return [*projected, *(F.linear(x, w, b).contiguous() for w, b in rows[3:])]


def _projected(
    execution: str | Toolchain, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    options: dict[str, Any] = {}
    if any(b is not None for b in biases):
        rows = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
        options["bias"] = torch.cat(rows).unsqueeze(0)
    tokens = x.reshape(1, -1, x.shape[-1]).contiguous()
    fused = torch.cat(list(weights)).t().contiguous()
    out: Tensor = toolchain(execution).run(_entry("qkv", execution), tokens, fused, **options)
    split = out.to(x.dtype)[0].split([w.shape[0] for w in weights], dim=-1)
    return [t.reshape(*x.shape[:-1], t.shape[-1]).contiguous() for t in split]


def attention(
    execution: str | Toolchain,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    layout: str = "bhsd",
    out_layout: str = "bhsd",
) -> Tensor:
    """`fluxrewrite::attention` by `attention_cte`, which takes heads as batches and query and value of one head size.

    Raises InputError for a mask.
    """
    if mask is not None:
        raise InputError("attention with provider nkilib: attention_cte takes no mask; use provider builtin")
    if layout == "bshd":
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    value_size = v.shape[-1]
    widest = max(q.shape[-1], value_size)
    q, k, v = (F.pad(t, (0, widest - t.shape[-1])) if t.shape[-1] < widest else t for t in (q, k, v))
    (queries, tp_q), (keys, tp_k) = _folded(q), _folded(k)
    options: dict[str, Any] = {"scale": factor, "causal_mask": is_causal, "tp_q": tp_q, "tp_k": tp_k, "tp_out": False}
    values = v.contiguous().flatten(0, 1)
    out: Tensor = toolchain(execution).run(_entry("attention", execution), queries, keys, values, **options)
    out = out.unflatten(0, q.shape[:2])[..., :value_size].to(q.dtype)
    return (out.transpose(1, 2) if out_layout == "bshd" else out).contiguous()


def _folded(t: Tensor) -> tuple[Tensor, bool]:
    """[B, H, S, D] as [B * H, S, D] and True, or as [B * H, D, S] and False where that is its order in memory."""
    transposed = t.transpose(2, 3)
    if transposed.is_contiguous() and not t.is_contiguous():
        return transposed.flatten(0, 1), False
    return t.contiguous().flatten(0, 1), True
