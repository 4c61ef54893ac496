"""Which linear layers the query, key and value of an attention come from: the walk up from its operands.

Not a pass: passes that need roles share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fluxrewrite.passes.rope.rope import Rope
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.op_table import ELEMENTWISE
from fluxrewrite.graph.shapes import same_shape
from fluxrewrite.site import Site

__all__ = ["ROLES", "WALK_LIMIT", "Reach", "walk"]

ROLES = ("query", "key", "value")
WALK_LIMIT = 512
"""Nodes that a walk may pass; FLUX.2 needs 40."""
_NORMS = frozenset({"rms_norm", "layer_norm"})
_REPEATS = frozenset({"repeat", "repeat_interleave"})  # grouped heads, written out


@dataclass(frozen=True)
class Reach:
    """The linear layers that one operand of attention comes from, all nodes passed, and the node where the walk stopped."""

    linears: tuple[Node, ...]
    passed: frozenset[Node]
    stopped: Node | None
    exhausted: bool = False


def walk(view: GraphView, start: Node) -> Reach:
    """Up from an operand of attention along values of its own size, to linear layers.

    A walk that stops elsewhere starts again with each known rotation as one step.
    """
    reach = _walk(view, start, {})
    if reach.stopped is None or reach.exhausted:
        return reach
    # Some rotations are no chain of elementwise operations, as by matrices or by writes into halves: the walk stops inside.
    rotations = {view.bare(s.outputs[0]): s for s in Rope().find(view) if isinstance(s, Site)}
    return _walk(view, start, rotations) if rotations else reach


def _walk(view: GraphView, start: Node, rotations: Mapping[Node, Site]) -> Reach:
    linears: list[Node] = []
    passed: set[Node] = set()
    stopped: Node | None = None
    pending = [start]
    while pending:
        node = pending.pop()
        if node in passed:
            continue
        passed.add(node)
        if len(passed) > WALK_LIMIT:
            return Reach((), frozenset(passed), node, exhausted=True)
        if view.op(node) == "linear":
            linears.append(node)
            continue
        if node in rotations:
            passed.update(rotations[node].interior)
            passed.discard(rotations[node].operands["x"])
            pending.append(rotations[node].operands["x"])
            continue
        above = _sources(view, node)
        if not above:
            stopped = stopped or node
        pending.extend(above)
    return Reach(tuple(linears), frozenset(passed), stopped)


def _sources(view: GraphView, node: Node) -> list[Node]:
    """The operands of which `node` is a normed, rotated, rescaled, joined or viewed form."""
    fact = view.fact(node)
    if fact.op in ("cat", "stack"):
        tensors = fact.args.get("tensors", ())
        return [t for t in tensors if isinstance(t, Node)]
    if fact.op in ELEMENTWISE or fact.op == "fluxrewrite.rope":
        shape = view.shape(node)
        return [n for n in node.all_input_nodes if shape is not None and same_shape(view.shape(n) or (), shape)]
    if (
        fact.op in _NORMS
        or fact.op in _REPEATS
        or view.forwards(node)
        or fact.op in ("view_as_complex", "view_as_real", "getitem")
    ):
        source = fact.args.get("input")
        return [source] if isinstance(source, Node) else []
    return []
