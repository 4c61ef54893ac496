"""The call for attention whose axes are in any order.

Not a pass: the attention pass uses it for what it found by probing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fluxrewrite.passes.attention.call import BSHD_BHSD, ProbedDetails
from fluxrewrite.passes.attention.probed import ProbedAttention
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.shapes import same_dim
from fluxrewrite.rewrite import Builder
from fluxrewrite.rewrite.checks import dense_as

__all__ = ["emit_probed", "layouts_of", "sizes_of"]


def layouts_of(view: GraphView, found: ProbedAttention) -> tuple[dict[str, Node], str, str]:
    """Query, key and value as the call takes them, as "q", "k" and "v"; then the layout of these, and that of the result.

    The layout is "bshd" where all three have a [B, S, H, D] form above their permutes, else "bhsd" on permuted views.
    """
    given = {"q": found.query, "k": found.key, "v": found.value}
    rank = len(found.axes["out"])
    above = {name: _as_bshd(view, node, found.axes[name]) for name, node in given.items()} if rank == 4 else {}
    bshd = {name: node for name, node in above.items() if node is not None}
    all_bshd = len(bshd) == 3  # the call has one layout for all three
    out = found.axes["out"]
    out_bshd = rank == 4 and (out == BSHD_BHSD or dense_as(view, found.out, [out[a] for a in BSHD_BHSD]))
    layout, out_layout = ("bshd" if is_bshd else "bhsd" for is_bshd in (all_bshd, out_bshd))
    return bshd if all_bshd else given, layout, out_layout


def _as_bshd(view: GraphView, node: Node, axes: Sequence[int]) -> Node | None:
    """`node`, or what it is a permutation of, whichever is [B, S, H, D]; `axes` are those of `node`, in the order [B, H, S, D]."""
    dims = tuple(BSHD_BHSD[axes.index(a)] for a in range(4))
    return node if dims == (0, 1, 2, 3) else view.permuted(node, dims)


def sizes_of(view: GraphView, found: ProbedAttention) -> dict[str, Any]:
    """The sizes of an attention site by name."""
    q, k, v = (view.shape(n) or () for n in (found.query, found.key, found.value))
    (*front, s, d), length, width = found.axes["q"], k[found.axes["k"][-2]], v[found.axes["v"][-1]]
    heads = q[front[-1]]
    sizes = {"batch": q[front[0]] if len(front) == 2 else 1, "heads": heads, "kv_heads": heads, "sequence": q[s]}
    sizes.update({"kv_sequence": length, "head_size": q[d]})
    return sizes if same_dim(q[d], width) else {**sizes, "value_size": width}


def emit_probed(
    operands: Mapping[str, Any], details: ProbedDetails, builder: Builder, op: Callable[..., Any], mask: Any
) -> Sequence[Node]:
    """The call on permuted operands; permutes are views, so they cost no copy of their own."""
    axes, call = details.axes, details.call
    tensors = []
    for name in "qkv":
        tensor = operands[name]
        if details.layout == "bhsd":
            tensor = _permuted(builder, tensor, axes[name])
            tensor = builder.call("unsqueeze", tensor, 0) if details.rank == 3 else tensor
        tensors.append(tensor)
    out = builder.call(op, *tensors, mask, call.scale, call.is_causal, details.layout, details.out_layout)
    if details.rank == 3:
        out = builder.call("squeeze", out, 0)
    order = axes["out"] if details.out_layout == "bhsd" else [axes["out"][a] for a in BSHD_BHSD]
    return [_permuted(builder, out, [list(order).index(a) for a in range(len(order))])]


def _permuted(builder: Builder, tensor: Node, axes: Sequence[int]) -> Node:
    return tensor if list(axes) == list(range(len(axes))) else builder.call("permute", tensor, *axes)
