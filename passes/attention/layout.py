"""The call for attention whose axes are in any order.

Not a pass: the pass of attention uses it for what it found by probing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fluxrewrite.passes.attention.probed import ProbedAttention
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.shapes import same_dim
from fluxrewrite.rewrite import Builder
from fluxrewrite.rewrite.checks import dense_as
from fluxrewrite.site import Site

__all__ = ["emit_meant", "layouts_of", "sizes_of"]

_TURN = (0, 2, 1, 3)


def layouts_of(view: GraphView, meant: ProbedAttention) -> tuple[dict[str, Node], dict[str, Any]]:
    """Query, key and value as the call takes them, as "q", "k" and "v"; and what else `emit_meant` needs.

    Where all three are [B, S, H, D] once their permutes are left away, the call takes them so; else as they are.
    """
    given = {"q": meant.query, "k": meant.key, "v": meant.value}
    rank = len(meant.axes["out"])
    found = {name: _turned(view, node, meant.axes[name]) for name, node in given.items()} if rank == 4 else {}
    turned = {name: node for name, node in found.items() if node is not None}
    taken = len(turned) == 3
    out = meant.axes["out"]
    in_memory = rank == 4 and (out == _TURN or dense_as(view, meant.out, [out[a] for a in _TURN]))
    layout, out_layout = ("bshd" if there else "bhsd" for there in (taken, in_memory))
    extra = {"axes": meant.axes, "rank": rank, "layout": layout, "out_layout": out_layout}
    return turned if taken else given, extra


def _turned(view: GraphView, node: Node, axes: Sequence[int]) -> Node | None:
    """What `node` is a permutation of, or `node` itself, if that is [B, S, H, D]; `axes` are those of `node`, [B, H, S, D]."""
    dims = tuple(_TURN[axes.index(a)] for a in range(4))
    return node if dims == (0, 1, 2, 3) else view.permuted(node, dims)


def sizes_of(view: GraphView, meant: ProbedAttention) -> dict[str, Any]:
    """The sizes of a site of attention by name."""
    q, k, v = (view.shape(n) or () for n in (meant.query, meant.key, meant.value))
    (*front, s, d), length, width = meant.axes["q"], k[meant.axes["k"][-2]], v[meant.axes["v"][-1]]
    heads = q[front[-1]]
    sizes = {"batch": q[front[0]] if len(front) == 2 else 1, "heads": heads, "kv_heads": heads, "sequence": q[s]}
    sizes.update({"kv_sequence": length, "head_size": q[d]})
    return sizes if same_dim(q[d], width) else {**sizes, "value_size": width}


def emit_meant(site: Site, builder: Builder, op: Callable[..., Any], mask: Any) -> Sequence[Node]:
    """The call on permuted operands; permutes are views."""
    axes, layout, out_layout = (site.extra[n] for n in ("axes", "layout", "out_layout"))
    call = site.extra["call"]
    tensors = []
    for name in "qkv":
        tensor = site.operands[name]
        if layout == "bhsd":
            tensor = _permuted(builder, tensor, axes[name])
            tensor = builder.call("unsqueeze", tensor, 0) if site.extra["rank"] == 3 else tensor
        tensors.append(tensor)
    out = builder.call(op, *tensors, mask, call.scale, call.is_causal, layout, out_layout)
    if site.extra["rank"] == 3:
        out = builder.call("squeeze", out, 0)
    roles = axes["out"] if out_layout == "bhsd" else [axes["out"][a] for a in _TURN]
    return [_permuted(builder, out, [list(roles).index(a) for a in range(len(roles))])]


def _permuted(builder: Builder, tensor: Node, axes: Sequence[int]) -> Node:
    return tensor if list(axes) == list(range(len(axes))) else builder.call("permute", tensor, *axes)
