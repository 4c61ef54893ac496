"""An attention computation as the passes see it, and what the attention pass keeps of one to emit its call.

Not a pass: the passes of attention, rotations and projections share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fluxrewrite.passes.attention.probed import ProbedAttention
from torch.fx import Node

__all__ = ["BSHD_BHSD", "AttentionCall", "AttentionDetails", "ProbedDetails"]

BSHD_BHSD = (0, 2, 1, 3)
"""The permutation from [B, S, H, D] to [B, H, S, D], and back: it is its own inverse."""


@dataclass(frozen=True)
class AttentionCall:
    """One attention computation: `node` is softmax(scale * query key^T + mask) value.

    Attributes:
        node: the result.
        form: of the pass: "sdpa", "spelled" or "probed".
        query, key, value: as they enter the products.
        interior: nodes between them and the result.
        transposed: `key` is [..., D, L], as the first product reads it.
        masking: how `mask` acts: "none"; "additive"; "bool", where True takes part; "drop", with `fill` where it is True;
            "keep", with `fill` where it is False.
        mask, fill: the mask, and the score of a masked key.
        scale: factor on query key^T; None for 1 / sqrt(D).
        is_causal: whether keys after the query are masked.
        probed: of a computation found by what it computes: what was found, with axes in any order.
    """

    node: Node
    form: str
    query: Node
    key: Node
    value: Node
    interior: tuple[Node, ...]
    transposed: bool = False
    masking: str = "none"
    mask: Node | None = None
    fill: float = 0.0
    scale: float | None = None
    is_causal: bool = False
    probed: ProbedAttention | None = None


@dataclass(frozen=True)
class AttentionDetails:
    """`Site.extra` of attention in a form that a pattern knows.

    Attributes:
        call: the computation.
        layout, out_layout: "bhsd" or "bshd", of the call's operands and of its result.
        turned: the result is [B, H, S, D] in shape and dense as [B, S, H, D] in memory: the call writes the latter, a permute
            follows it.
        transposed: the operand `k` of the site is [..., D, L].
        rank: axes of the query: 4, or 3 where heads are folded into the batch.
        causal: as in `call`.
    """

    call: AttentionCall
    layout: str
    out_layout: str
    turned: bool
    transposed: bool
    rank: int
    causal: bool


@dataclass(frozen=True)
class ProbedDetails:
    """`Site.extra` of attention found by what it computes.

    Attributes:
        call: the computation.
        causal: as in `call`.
        axes: of "q", "k", "v" and "out", in the order [B, H, S, D], or [H, S, D] where there are 3.
        rank: axes of each: 3 or 4.
        layout, out_layout: "bhsd" or "bshd", of the call's operands and of its result.
    """

    call: AttentionCall
    causal: bool
    axes: Mapping[str, tuple[int, ...]]
    rank: int
    layout: str
    out_layout: str
