"""Where views split the last axis of a tensor into pairs, and where they flatten the pairs again.

Not a pass: rotations by complex numbers and by matrices share it.
"""

from __future__ import annotations

from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph import views as st
from fluxrewrite.graph.index_map import pure_reshape, viewed
from fluxrewrite.graph.shapes import Shape, same_dim, same_shape
from fluxrewrite.rewrite.guards import only_checks

__all__ = ["flattened_pairs", "pair_element", "split_source"]

MAX_VIEWS = 8
"""Views that may lie between pairs and the axis they are flattened to."""


def split_source(view: GraphView, pairs: Node, shape: Shape) -> Node | None:
    """The value of `shape` that `pairs` is a reshape of, above lossless casts; None if there is none."""
    for source, taken in view.chain(pairs):
        if not all(s.lossless for s in taken if isinstance(s, st.Cast)):
            return None
        if same_shape(view.shape(source) or (), shape) and pure_reshape(shape, taken, view.shape(pairs) or ()):
            bare: Node = view.strip(source)
            return bare
    return None


def flattened_pairs(view: GraphView, pairs: Node, shape: Shape) -> list[Node] | None:
    """The views from `pairs` down to the first of `shape`, each the only use of the one before.

    None where there is no such chain, or where it reorders elements.
    """
    passed: list[Node] = []
    node = pairs
    for _ in range(MAX_VIEWS):
        users = [u for u in node.users if not only_checks(u)]
        if len(users) != 1 or view.dtype(users[0]) != view.dtype(pairs):
            return None
        (node,) = users
        passed.append(node)
        if same_shape(view.shape(node) or (), shape):
            taken = next((steps for source, steps in view.chain(node) if source is pairs), None)
            return passed if taken is not None and pure_reshape(view.shape(pairs) or (), taken, shape) else None
    return None


def pair_element(view: GraphView, node: Node) -> tuple[Node, int] | None:
    """(source, index) where `node` is exactly source[..., index] of a last axis of two."""
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
