"""Floating-point operations of matrix products, from traced shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch.fx import Node

from ..graph.shapes import LEFT_OUT, hint
from ..graph.view import GraphView

__all__ = ["flops"]


def flops(view: GraphView, nodes: Iterable[Node]) -> int:
    """Multiplications and additions of the matrix products among `nodes`: 2 for each pair of elements multiplied.

    Counts linear, matmul, baddbmm and scaled_dot_product_attention; everything else counts as zero.
    """
    return sum(_one(view, node) for node in nodes)


def _one(view: GraphView, node: Node) -> int:
    op = view.op(node)
    if op not in ("linear", "matmul", "baddbmm", "sdpa"):
        return 0
    result = _sizes(view, node)
    if op == "sdpa":
        query, key = (_sizes(view, view.arg(node, name)) for name in ("query", "key"))
        return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + result[-1]) if query and key and result else 0
    left = _sizes(view, view.arg(node, "batch1" if op == "baddbmm" else "input"))
    return 2 * math.prod(result) * left[-1] if left else 0


def _sizes(view: GraphView, node: object) -> list[int]:
    return [hint(n, LEFT_OUT) for n in view.shape(node) or ()]
