"""The provider `builtin`: this repository's NKI sources (`kernels/nki/`), with the layouts, defaults and limits of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxrewrite.kernel import Limit
from fluxrewrite.provider import Implementation, Provider

from .harness.hooks import profile, suite
from .qkv import pieces_of
from .toolchain import Toolchain, check, toolchain

__all__ = ["PROVIDER", "additive"]

_NKI = "fluxrewrite.kernels.nki"
_ON_CHIP = "K and V of two heads stay in SBUF, 224 KiB a partition on trn2"
_TWO_BYTES = ("bfloat16", "float16")
_EFFICIENCY = {"rope": 0.61, "qkv": 0.96, "attention": 0.56, "norm_rope_attention": 0.36}
"""Fraction of trn2's peaks reached under the emulator: tools/bench_kernels.py, bf16, two cores, 768 tokens, 24 heads of 128."""


def _rope(
    execution: str | Toolchain,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    sequence_dim: int,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`fluxrewrite::rope` by `kernels/nki/rope.py`, which takes four axes; x [B, S, D] has one head."""
    wide = x if x.dim() == 4 else x.unsqueeze(2)
    cos, sin = (t.expand(x.shape[0], -1, -1) if t.dim() == 3 else t for t in (cos, sin))
    operands = (t.contiguous() for t in (wide, cos, sin))
    out: Tensor = toolchain(execution).run(f"{_NKI}.rope:rope", *operands, interleaved, sequence_dim, out_dtype)
    return out.reshape(x.shape)


def _qkv(
    execution: str | Toolchain,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    pieces: Sequence[int],
) -> list[Tensor]:
    """`fluxrewrite::qkv` by `kernels/nki/qkv.py`, which takes tokens in one axis and at most four pieces at once.

    Query, key, value and the first piece of other rows are one call, which picks its rows; each further piece is a call of its own.
    Two pieces, as key and value of a cross-attention, are one call.
    """
    run = toolchain(execution).run
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    found = pieces_of(x, [w.contiguous() for w in weights], biases, pieces)
    if len(found) == 2:
        (first, bias_first, *rows_first), (second, bias_second, *rows_second) = found
        two = run(f"{_NKI}.qkv:pair", tokens, first, second, bias_first, bias_second, *rows_first, *rows_second)
        return [t.reshape(*x.shape[:-1], -1) for t in two]
    three, rest = found[:3], found[3:]
    weight, bias, *last = rest[0] if rest else (None, None, 0, 0)
    ranges = [n for _, _, start, rows in three for n in (start, rows)] + last
    operands = [*(w for w, *_ in three), *(b for _, b, *_ in three), False, weight, bias]
    results = list(run(f"{_NKI}.qkv:qkv", tokens, *operands, *ranges))
    results += [run(f"{_NKI}.qkv:linear", tokens, *piece) for piece in rest[1:]]
    return [t.reshape(*x.shape[:-1], -1) for t in results]


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as numbers added to the scores, with 2 or 4 axes; True of a boolean mask becomes 0, False -inf.

    It broadcasts to [B, H, S, L] from the right, so the first of 3 axes is that of the heads.
    """
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)
    return (mask.unsqueeze(0) if mask.dim() == 3 else mask).contiguous()


def _attention(
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
    """`fluxrewrite::attention` by `kernels/nki/attention.py`."""
    operands = (t.contiguous() for t in (q, k, v))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    mask = additive(mask, torch.float32)
    out: Tensor = toolchain(execution).run(
        f"{_NKI}.attention:attention", *operands, mask, factor, is_causal, layout, out_layout
    )
    return out


def _norm_rope_attention(
    execution: str | Toolchain,
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
    *,
    is_bounded: bool = False,
) -> Tensor:
    """`fluxrewrite::norm_rope_attention` by `kernels/nki/norm_rope_attention.py`, with exact running maxima.

    With `is_bounded` the caller promises that no scaled score exceeds 64 in size, and the maxima are left out.
    """
    size, joint = q[0].shape[-1], len(q) == 2
    tables = (_full_table(t, size, interleaved) for t in (cos, sin))
    streams = [[t.contiguous() for t in stream] for stream in zip(q, k, v, gamma_q, gamma_k, strict=True)]
    second = streams[1] if joint else [None] * 5
    factor = 1 / math.sqrt(size) if scale is None else scale
    epsilons = (eps[0], eps[0], eps[-1], eps[-1])
    out: Tensor = toolchain(execution).run(
        f"{_NKI}.norm_rope_attention:norm_rope_attention",
        *(*streams[0], *tables, *second),
        *(factor, *epsilons, joint, interleaved, is_bounded),
    )
    return out


def _full_table(table: Tensor, size: int, interleaved: bool) -> Tensor:
    """A table [S, D] or [1, S, D], of one value an element or one a pair, as [S, D]."""
    table = table[0] if table.dim() == 3 else table
    if table.shape[-1] != size:
        table = table.repeat_interleave(2, dim=-1) if interleaved else torch.cat((table, table), dim=-1)
    return table.contiguous()


_POSITIVE = Limit("scale", above=0, source="the running maximum is of unscaled scores")
_TABLES = Limit("table_dtype", one_of=("float32", "bfloat16", "float16"), source="NKI 0.6 dtypes")
_LIMITS = {
    "rope": (Limit("head_size", maximum=512, source="a PSUM bank of float32"), _TABLES),
    "qkv": (Limit("hidden", maximum=65536, source="a token stays in SBUF"),),
    "attention": (
        _POSITIVE,
        Limit("kv_sequence", maximum=20000, dtypes=_TWO_BYTES, source=_ON_CHIP),
        Limit("kv_sequence", maximum=10000, dtypes=("float32",), source=_ON_CHIP),
    ),
    "norm_rope_attention": (
        _POSITIVE,
        Limit("head_size", one_of=(64, 128), source="halves of a head start at partition 32 or 64"),
        Limit("table_batch", maximum=1, source="one table for all of the batch"),
        Limit("eps", above=0, source="rows of zeros"),
        _TABLES,
        Limit("sequence", maximum=6000, dtypes=_TWO_BYTES, source=_ON_CHIP),
        Limit("sequence", maximum=4000, dtypes=("float32",), source=_ON_CHIP),
    ),
}


def _implementations(_: str) -> Mapping[str, Implementation]:
    runs: dict[str, Callable[..., Any]] = {
        "rope": _rope,
        "qkv": _qkv,
        "attention": _attention,
        "norm_rope_attention": _norm_rope_attention,
    }
    return {
        name: Implementation(run, _LIMITS[name], f"{_NKI}.{name}:{name}", _EFFICIENCY[name])
        for name, run in runs.items()
    }


PROVIDER = Provider("builtin", (), _implementations, check, profile=profile, suite=suite)
