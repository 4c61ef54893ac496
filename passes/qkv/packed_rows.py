"""Which rows of a linear layer compute the query, the key or the value of an attention, or something else.

Not a pass: the qkv pass walks down from a layer with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fluxrewrite.passes.qkv.trace import Reach
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.index_map import Elements
from fluxrewrite.graph.shapes import Dim, size_of
from fluxrewrite.graph.views import AxisLanes, holds
from fluxrewrite.rewrite import Builder
from fluxrewrite.site import Code

__all__ = ["PackedRows", "Refusal", "emit_views", "parts_of"]


@dataclass(frozen=True)
class PackedRows:
    """A value that exposes one contiguous block of a linear layer's `height` rows.

    The role is "query", "key", "value", or "rest" for rows of no projection; `elements` are those of the layer's result that the
    value shows.
    """

    role: str
    linear: Node
    weight: Node
    bias: Node | None
    node: Node
    elements: Elements
    height: int | str

    @property
    def lanes(self) -> AxisLanes:
        """What the value exposes of the rows."""
        lanes = self.elements.lanes()
        assert lanes is not None
        return lanes

    @property
    def rows(self) -> tuple[int, int]:
        """First row and number of rows."""
        block = self.lanes.block
        assert block is not None
        return block


@dataclass(frozen=True)
class Refusal:
    """Why the rows of a layer cannot be assigned to roles, and the node where that shows."""

    code: Code
    message: str
    node: Node


def parts_of(view: GraphView, linear: Node, reaches: Mapping[str, Reach]) -> list[PackedRows] | Refusal:
    """Down from a linear layer through its views to the first values that serve at most one role."""
    shape = view.shape(linear) or ()
    parts: list[PackedRows] = []
    pending: list[tuple[Node, Elements]] = [(linear, Elements.of(shape))]
    while pending:
        node, seen = pending.pop()
        roles = [role for role, reach in reaches.items() if node in reach.passed]
        if len(roles) <= 1 and node.users:
            weight, bias = view.arg(linear, "weight"), view.arg(linear, "bias")
            role = roles[0] if roles else "rest"
            if seen.lanes() is None or view.dtype(node) != view.dtype(linear):
                message = (
                    f"{node.name} mixes the rows of {linear.name} with other axes, leaves some of these out, or casts"
                )
                return Refusal(Code.PACKED_LAYOUT, message, node)
            height = size_of((shape or (0,))[-1])
            parts.append(PackedRows(role, linear, weight, bias, node=node, elements=seen, height=height))
        for user in node.users if len(roles) > 1 else ():
            below = _below(view, linear, node, user, seen)
            if below is None:
                code = Code.SHARED_ROWS if any(user in reaches[r].passed for r in roles) else Code.INNER_USE
                code = Code.PACKED_LAYOUT if view.source(user) is not None else code
                verb = {Code.SHARED_ROWS: "shares", Code.PACKED_LAYOUT: "mixes with other axes"}.get(code, "uses")
                message = f"{user.name} ({view.op(user)}) {verb} rows of the {' and '.join(roles)} in {linear.name}"
                return Refusal(code, message, user)
            pending.extend(below)
    parts = _refined(view, parts)
    for part in parts:
        if part.lanes.block is None:
            message = f"the rows of the {part.role} in {linear.name} are not contiguous: {_rows(part.lanes)}"
            return Refusal(Code.PACKED_LAYOUT, message, part.node)
        others = sorted(a for a in part.lanes.axes if a >= 0 and a != part.lanes.tracked)
        if others != list(range(part.lanes.tracked)):
            message = f"{part.node.name} drops an axis of size 1 of {linear.name}"
            return Refusal(Code.PACKED_LAYOUT, message, part.node)
    return parts


def _below(view: GraphView, linear: Node, node: Node, user: Node, seen: Elements) -> list[tuple[Node, Elements]] | None:
    """The values that `user` makes of `node` by views alone, with the elements that each shows."""
    if view.op(user) in ("split", "chunk", "unbind"):
        pieces = [(u, view.source(u)) for u in user.users]
    else:
        pieces = [(user, view.source(user))]
    result: list[tuple[Node, Elements]] = []
    dtype = view.dtype(linear)  # a cast to a wider dtype loses nothing: casting back gives the same values
    for piece, found in pieces:
        if found is None or found[0] is not node:
            return None
        after: Elements | None = seen
        for step in found[1]:
            after = after and after.apply(step)
        if after is None or not holds(view.dtype(piece), dtype):
            return None
        result.append((piece, after))
    return result


def _refined(view: GraphView, parts: Sequence[PackedRows]) -> list[PackedRows]:
    """The parts, with those that overlap another role's rows replaced by the views below that pick fewer rows.

    A model may hand the whole packed tensor to each role and slice inside: the first value of one role then still has the rows of
    all.
    """
    done: list[PackedRows] = []
    pending = list(parts)
    while pending:
        part = pending.pop()
        if any(_overlap(part, other) for other in (*done, *pending) if other.role != part.role):
            below = [_below(view, part.linear, part.node, user, part.elements) for user in part.node.users]
            pieces = [piece for found in below for piece in found or ()]
            if None not in below and all(_rows_seen(p.lanes()) < _rows_seen(part.lanes) for _, p in pieces):
                pending.extend(replace(part, node=node, elements=seen) for node, seen in pieces)
                continue
        done.append(part)
    return done


def _rows_seen(lanes: AxisLanes | None) -> Dim | float:
    if lanes is None:
        return math.inf
    return math.prod(n for n, axis in zip(lanes.sizes, lanes.axes, strict=True) if axis == lanes.tracked)


def _overlap(a: PackedRows, b: PackedRows) -> bool:
    first, second = a.lanes.block, b.lanes.block
    if first is None or second is None or a.linear is not b.linear:
        return a.linear is b.linear
    return first[0] < sum(second) and second[0] < sum(first)


def _rows(lanes: AxisLanes) -> str:
    tracked = sorted(((s, n) for s, n in zip(lanes.strides, lanes.sizes, strict=True) if s), reverse=True)
    return f"from row {lanes.offset}, " + " of ".join(f"{n} every {s}" for s, n in tracked)


def emit_views(builder: Builder, result: Node, part: PackedRows) -> Node:
    """`result` [..., I] with the axes of the value that it replaces: the last one split, then permuted and unsqueezed."""
    lanes = part.lanes
    split = sorted(
        (d for d in range(len(lanes.axes)) if lanes.axes[d] == lanes.tracked), key=lambda d: -lanes.strides[d]
    )
    if len(split) > 1:
        result = builder.call("unflatten", result, -1, tuple(lanes.sizes[d] for d in split))
    kept = [d for d in range(len(lanes.axes)) if lanes.axes[d] >= 0]
    order = [lanes.tracked + split.index(d) if d in split else lanes.axes[d] for d in kept]
    if order != list(range(len(order))):
        result = builder.call("permute", result, *order)
    for dim in (d for d in range(len(lanes.axes)) if lanes.axes[d] < 0):
        result = builder.call("unsqueeze", result, dim)
    return result
