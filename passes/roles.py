"""Where the query, key and value of an attention come from: the walk from its operands up to the linear layers.

Not a pass: passes that need roles share it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.steps import same_shape
from fluxrewrite.vocabulary import ELEMENTWISE

__all__ = ["ROLES", "WALK_LIMIT", "Reach", "walk"]

ROLES = ("query", "key", "value")
WALK_LIMIT = 512
"""Nodes that a walk may pass; FLUX.2 needs 40."""
_NORMS = frozenset({"rms_norm", "layer_norm"})


@dataclass(frozen=True)
class Reach:
    """The linear layers that one operand of attention comes from, all nodes passed, and where the walk could not go on."""

    linears: tuple[Node, ...]
    passed: frozenset[Node]
    stopped: Node | None
    exhausted: bool = False


def walk(view: GraphView, start: Node) -> Reach:
    """Up from an operand of attention along the values of its own size, to linear layers."""
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
        above = _above(view, node)
        if not above:
            stopped = stopped or node
        pending.extend(above)
    return Reach(tuple(linears), frozenset(passed), stopped)


def _above(view: GraphView, node: Node) -> list[Node]:
    """The operands that `node` is a normed, rotated, rescaled, joined or viewed form of."""
    fact = view.fact(node)
    if fact.op in ("cat", "stack"):
        tensors = fact.args.get("tensors", ())
        return [t for t in tensors if isinstance(t, Node)]
    if fact.op in ELEMENTWISE or fact.op == "fluxrewrite.rope":
        shape = view.shape(node)
        return [n for n in node.all_input_nodes if shape is not None and same_shape(view.shape(n) or (), shape)]
    if fact.op in _NORMS or view.forwards(node) or fact.op in ("view_as_complex", "view_as_real", "getitem"):
        source = fact.args.get("input")
        return [source] if isinstance(source, Node) else []
    return []
