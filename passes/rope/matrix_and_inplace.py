"""Rotations that no single pattern describes: by matrices, and written into the halves of an empty tensor.

    matrix     sum(R * x[..., None, :], -1), or R[..., 0] * x[..., 0] + R[..., 1] * x[..., 1]     x as pairs [D/2, 1, 2]
    written    out = empty; out[..., 0::2] = first*cos - second*sin; out[..., 1::2] = first*sin + second*cos

R is [D/2, 2, 2] for each position. Any R can be expressed, rotation or not: the op has a factor for each element.

Not a pass: the rope pass tries these along with its patterns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fluxrewrite.passes.rope.pairs import flattened_pairs, pair_element, split_source
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.shapes import same_dim, same_shape
from fluxrewrite.pattern import Attempt, Join

__all__ = ["match_inplace_rotation", "match_matrix_rotation"]

_FRESH = frozenset({"empty_like", "empty", "new_empty", "zeros_like", "zeros", "new_zeros"})


def match_matrix_rotation(view: GraphView, node: Node) -> Attempt | None:
    """A sum that multiplies each pair of x by the matrix of its position; None for any other sum.

    The attempt captures x, the matrices as "cos" and "sin", and the result as "flat".
    """
    shape = view.shape(node) or ()
    if len(shape) < 3 or not same_dim(shape[-1], 2):
        return None
    attempt = Attempt(view)
    found = _summed(view, node, attempt) if view.op(node) == "sum" else _products(view, node, attempt)
    axis = (*shape[:-2], shape[-2] * 2)
    flat = flattened_pairs(view, node, axis)
    if found is None or flat is None:
        return None
    matrices, pairs = found
    x = split_source(view, pairs, axis)
    table = view.shape(matrices) or ()
    # Matrices shared by all pairs broadcast in the graph; the op needs one for each pair.
    if x is None or len(table) < 3 or not same_dim(table[-3], shape[-2]):
        return None
    attempt.take_between(pairs, x)
    attempt.take(node, *flat)
    attempt.captures.update(x=x, cos=matrices, sin=matrices, flat=flat[-1])
    attempt.tags["style"] = "interleaved"
    attempt.matched = True
    return attempt


def _summed(view: GraphView, node: Node, attempt: Attempt) -> tuple[Node, Node] | None:
    """(matrices, pairs) of sum(matrices * pairs, -1)."""
    dim = view.arg(node, "dim")
    dim = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    product = attempt.look_through(view.arg(node, "input"))
    rank = len(view.shape(product) or ())
    if view.op(product) != "mul" or view.arg(node, "dtype") is not None or dim not in (-1, rank - 1):
        return None
    attempt.take(product)
    a, b = view.arg(product, "input"), view.arg(product, "other")
    for matrices, pairs in ((a, b), (b, a)):
        if _of_pairs(view, matrices):
            return _stripped(attempt, matrices), pairs
    return None


def _products(view: GraphView, node: Node, attempt: Attempt) -> tuple[Node, Node] | None:
    """(matrices, pairs) of matrices[..., 0] * pairs[..., 0] + matrices[..., 1] * pairs[..., 1]."""
    if view.arg(node, "alpha", 1) != 1:
        return None
    one, two = (_term(view, view.arg(node, name), attempt) for name in ("input", "other"))
    if one is None or two is None:
        return None
    (first, x_first, i), (second, x_second, j) = one, two
    if not view.alike(first, second) or not view.alike(x_first, x_second) or {i, j} != {0, 1}:
        return None
    return _stripped(attempt, first), x_first


def _term(view: GraphView, value: Any, attempt: Attempt) -> tuple[Node, Node, int] | None:
    """(matrices, pairs, column) of one product of columns."""
    product = attempt.look_through(value)
    if view.op(product) != "mul":
        return None
    attempt.take(product)
    left, right = (_column(view, view.arg(product, name), attempt) for name in ("input", "other"))
    if left is None or right is None or left[1] != right[1]:
        return None
    (a, column), (b, _) = left, right
    return (a, b, column) if _of_pairs(view, a) else (b, a, column)


def _column(view: GraphView, value: Any, attempt: Attempt) -> tuple[Node, int] | None:
    """(source, index) of source[..., index]."""
    bare = attempt.look_through(value)
    found = pair_element(view, bare)
    if found is not None:
        attempt.take_between(bare, found[0])
    return found


def _stripped(attempt: Attempt, value: Node) -> Node:
    """`value` above lossless casts, which are recorded."""
    bare: Node = attempt.view.strip(value)
    attempt.take_between(value, bare)
    return bare


def _of_pairs(view: GraphView, value: Any) -> bool:
    """Whether the last two axes are those of 2x2 matrices."""
    return same_shape((view.shape(value) or ())[-2:], (2, 2))


def match_inplace_rotation(view: GraphView, node: Node, pairwise: Join) -> tuple[Attempt, Node] | None:
    """The rotation whose second half the setitem `node` writes, and the tensor written to; None for any other write.

    The tensor must be freshly allocated, written by these two writes only, and read only after both.
    """
    if view.op(node) != "setitem" or not isinstance(node.args[0], Node):
        return None
    buffer = node.args[0]
    writes = view.writers(buffer)
    if (
        view.op(buffer) not in _FRESH
        or len(writes) != 2
        or writes[1] is not node
        or not _only_written(view, buffer, writes)
    ):
        return None
    halves = dict(_half_writes(view, buffer, writes))
    styles = {style for style, _ in halves}
    if len(styles) != 1 or len(halves) != 2:
        return None
    attempt = Attempt(view)
    attempt.tags["style"] = style = styles.pop()
    attempt.matched = pairwise.first.match(attempt, halves[style, 0]) and pairwise.second.match(
        attempt, halves[style, 1]
    )
    attempt.take(*writes)
    return attempt, buffer


def _only_written(view: GraphView, buffer: Node, writes: list[Node]) -> bool:
    """Whether each use of `buffer` before the last write is one of the writes to it."""
    last = view.order(writes[-1])
    return all(u in writes for u in buffer.users if view.order(u) <= last)


def _half_writes(view: GraphView, buffer: Node, writes: list[Node]) -> Iterator[tuple[tuple[str, int], Any]]:
    """((style, which half), value) of each write to one half of the last axis."""
    shape = view.shape(buffer) or ()
    size = shape[-1] if shape and isinstance(shape[-1], int) else 1
    spots = {  # start, stop and step of a slice, as `slice.indices` normalises them, so that any spelling matches
        (0, size, 2): ("interleaved", 0), (1, size, 2): ("interleaved", 1),
        (0, size // 2, 1): ("half", 0), (size // 2, size, 1): ("half", 1),
    }  # fmt: skip
    for write in writes:
        given: Any = write.args[1]
        index: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
        *front, last = index
        plain = all(i is Ellipsis or i == slice(None) for i in front)
        full = Ellipsis in front or len(index) == len(shape)
        if not (isinstance(last, slice) and plain and full):
            continue
        if any(isinstance(n, Node) for n in (last.start, last.stop, last.step)):
            continue
        spot = spots.get(last.indices(size))
        if spot is not None and same_shape(view.shape(write.args[2]) or (), (*shape[:-1], size // 2)):
            yield spot, write.args[2]
