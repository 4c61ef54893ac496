"""Where the last axis of a tensor is split into pairs, and where these are put together again, through any views.

Not a pass: rotations by complex numbers and by matrices share it.
"""

from __future__ import annotations

from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph import views as st
from fluxrewrite.graph.index_map import pure_reshape, viewed
from fluxrewrite.graph.shapes import Shape, same_dim, same_shape
from fluxrewrite.rewrite.guards import only_checks

__all__ = ["column", "together", "whole"]

MOST = 8
"""Views that may lie between pairs and the axis that they make up."""


def whole(view: GraphView, pairs: Node, shape: Shape) -> Node | None:
    """The value of `shape` that `pairs` is another shape of, above casts that lose nothing."""
    for source, taken in view.chain(pairs):
        if not all(s.lossless for s in taken if isinstance(s, st.Cast)):
            return None
        if same_shape(view.shape(source) or (), shape) and pure_reshape(shape, taken, view.shape(pairs) or ()):
            bare: Node = view.strip(source)
            return bare
    return None


def together(view: GraphView, pairs: Node, shape: Shape) -> list[Node] | None:
    """The views from `pairs`, each the only use of the one before, down to the first that has `shape`; None if that has others
    than its elements in order.
    """
    passed: list[Node] = []
    node = pairs
    for _ in range(MOST):
        users = [u for u in node.users if not only_checks(u)]
        if len(users) != 1 or view.dtype(users[0]) != view.dtype(pairs):
            return None
        (node,) = users
        passed.append(node)
        if same_shape(view.shape(node) or (), shape):
            taken = next((steps for source, steps in view.chain(node) if source is pairs), None)
            return passed if taken is not None and pure_reshape(view.shape(pairs) or (), taken, shape) else None
    return None


def column(view: GraphView, node: Node) -> tuple[Node, int] | None:
    """(source, index) where `node` is source[..., index] of a last axis of two, and nothing else."""
    for source, taken in view.chain(node):
        shape = view.shape(source) or ()
        if any(isinstance(s, st.Cast) for s in taken):
            return None
        seen = viewed(shape, taken)
        if seen is None or not shape or not same_dim(shape[-1], 2):
            continue
        for index in (0, 1):
            picked = viewed(shape, [st.Select(len(shape) - 1, index)])
            if picked is not None and seen.same(picked):
                return source, index
    return None
