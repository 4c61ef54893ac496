"""Rotations that no pattern knows, found by what they compute.

For each query and key of an attention with no known rotation on the way from its projection: parts of that way which read
tables and move channels are run on made-up inputs (`fluxrewrite.rewrite.proof.probe`). One is a rotation where it

    is linear in x, and maps 0 to 0
    gives each row, of one batch, position and head, from that row alone
    mixes pairs of channels only, all of them neighbours or all half a head apart
    has factors that depend on the position, and on the batch at most, and are those of a table in the graph

Not a pass: the pass of rotations asks for what is found here, and what its replacement computes is proved as that of any site.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxrewrite.passes.attention.attention import AttentionCall, attention_calls
from fluxrewrite.passes.rope.rotation_test import Factors, factors_of, not_for_all
from fluxrewrite.passes.rope.table_search import NamedTables, tables_of
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.shapes import hint, hints, same_shape
from fluxrewrite.rewrite.guards import only_checks
from fluxrewrite.rewrite.proof.probe import CannotProbe, Probe, ProbeRegion, budget_of, depending, feeding
from fluxrewrite.rewrite.proof.region import UNKNOWN
from fluxrewrite.rewrite.proof.size_independence import unsure
from fluxrewrite.site import Code, Finding, Miss, Reason, Site

__all__ = ["Rotation", "probed_rotations"]

_ROOTS = frozenset(
    {"linear", "rms_norm", "layer_norm", "group_norm", "sdpa", "placeholder", "conv1d", "conv2d", "conv3d"}
)
_WORDS = """
    add sub mul div neg abs exp sqrt rsqrt pow square tanh sigmoid silu gelu relu mean where masked_fill clamp dropout
    copy cast reshape permute transpose t expand getattr slice narrow select chunk split unbind repeat
    repeat_interleave
"""
_STAYS = frozenset(_WORDS.split())
"""Operations that give no channel of a tensor a place beside another: without any other there is no rotation."""
_TRIALS = 24
"""Pairs of x and result that are tried for one query or key."""


@dataclass(frozen=True)
class Rotation:
    """What was found: `out` is `x` with its pairs of channels turned by tables.

    Attributes:
        x, out: values of one shape, [B, S, H, D], [B, H, S, D], [B, S, D] or [S, H, D].
        interior: what has no use once `out` is replaced.
        interleaved: pairs are neighbours, else half a head apart.
        tables: that are in the graph, and the axis of x that has the positions.
    """

    x: Node
    out: Node
    interior: tuple[Node, ...]
    interleaved: bool
    tables: NamedTables


@dataclass(frozen=True)
class _Way:
    """The values between one query or key and its projection: `nodes`, whether all of it, and which values come from layers."""

    nodes: frozenset[Node]
    whole: bool
    active: Collection[Node]


def probed_rotations(view: GraphView, findings: Sequence[Finding]) -> tuple[list[Rotation | Miss], dict[str, str]]:
    """The rotations beside those among `findings`, and what looked like one; and of nodes with a near miss, what a probe says."""
    found: dict[Node, Rotation] = {}
    misses: dict[str, Miss] = {}
    notes: dict[str, str] = {}
    known = {view.bare(s.outputs[0]) for s in findings if isinstance(s, Site)}
    near = {f.reason.node: f.reason.code for f in findings if isinstance(f, Miss)}
    for operand in _operands(view):
        way = _way(view, operand, known)
        if way is None or any(near.get(n.name, Code.PATTERN) != Code.PATTERN for n in way.nodes):
            continue
        answer = _search(view, way)
        if isinstance(answer, Rotation):
            found.setdefault(answer.out, answer)
        elif answer is not None:
            told = [n.name for n in way.nodes if n.name in near]
            notes.update(dict.fromkeys(told, answer.message))
            if not told:
                misses.setdefault(answer.node, Miss("rope", view.path(view.named[answer.node]), answer, "probed"))
    return [*found.values(), *misses.values()], notes


def _operands(view: GraphView) -> Iterator[Node]:
    calls = [c for c in attention_calls(view) if isinstance(c, AttentionCall)]
    yield from dict.fromkeys(n for c in calls for n in (c.query, c.key))


def _way(view: GraphView, operand: Node, known: Collection[Node]) -> _Way | None:
    """From a query or key up to its projections; None where a known rotation lies on it, or nothing that may be one."""
    active = view.memo("values of layers", _active)
    limit = budget_of(view).limits.nodes
    nodes: dict[Node, None] = {}
    pending = [operand]
    for node in pending:
        if node in nodes or (view.op(node) in _ROOTS):
            continue
        if view.bare(node) in known:
            return None
        if len(nodes) == limit:
            break
        nodes[node] = None
        pending += [i for i in node.all_input_nodes if i in active]
    whole = all(n in nodes or view.op(n) in _ROOTS for n in pending)
    moves = any(view.op(n) not in _STAYS for n in nodes if not _picks(view, n))
    return _Way(frozenset(nodes), whole, active) if moves else None


def _picks(view: GraphView, node: Node) -> bool:
    """Whether `node` is an element of a tuple, or basic indexing."""
    return view.op(node) == "getitem" and (
        view.forwards(node) or view.tensor(view.fact(node).args.get("input")) is None
    )


def _active(view: GraphView) -> Collection[Node]:
    """Values that come from layers; where a graph starts behind its layers, from what is as large as queries and keys are."""
    counts = {_count(shape) for n in _operands(view) if (shape := view.shape(n)) is not None}
    found: set[Node] = set()
    for node in view.nodes:
        op = view.op(node)
        entering = op == "placeholder" and _count(view.shape(node) or ()) in counts and len(view.shape(node) or ()) > 2
        layer = op in _ROOTS and op != "placeholder"
        if entering or layer or any(i in found for i in node.all_input_nodes):
            found.add(node)
    return found


def _count(shape: Sequence[Any]) -> int:
    return math.prod(hints(shape, UNKNOWN))


def _search(view: GraphView, way: _Way) -> Rotation | Reason | None:
    """The rotation nearest to the attention; or why the widest region is none, from where it comes closest to one.

    None where nothing might be one.
    """
    best: tuple[int, Reason] | None = None
    trials = 0
    # Not what changes nothing at the end: the attention is told to read what is above (`GraphView.bare`).
    for out in sorted((n for n in way.nodes if view.bare(n) is n), key=view.order, reverse=True):
        here: tuple[int, Reason] | None = None
        for neck, between in _necks(view, way, out):
            x = view.strip(neck)
            nodes = [*between, *view.between(neck, x)]
            if trials == _TRIALS or not _may_be(view, x, out, nodes, way.active):
                continue
            trials += 1
            answer = _answer(view, x, out, nodes, way.active)
            if isinstance(answer, Rotation):
                return answer
            here = answer if here is None or answer[0] > here[0] else here
        best = best or here
    if best is None and not way.whole:
        last = max(way.nodes, key=view.order)
        message = f"more than {len(way.nodes)} operations lie between {last.name} and its projection"
        return Reason(Code.NOT_PROBED, message, last.name)
    return None if best is None else best[1]


def _necks(view: GraphView, way: _Way, out: Node) -> Iterator[tuple[Node, list[Node]]]:
    """Values that `out` depends on alone, as far as it depends on layers, nearest first; and what lies between."""
    live, passed = {out}, list[Node]()
    while live:
        node = max(live, key=view.order)
        if node not in way.nodes:
            return
        live.remove(node)
        passed.append(node)
        live |= {i for i in node.all_input_nodes if i in way.active}
        if len(live) == 1:
            yield next(iter(live)), list(passed)


def _answer(
    view: GraphView, x: Node, out: Node, nodes: Sequence[Node], active: Collection[Node]
) -> Rotation | tuple[int, Reason]:
    """As `_trial`, with a reason."""
    code = Code.PROBED
    try:
        found = _trial(view, x, out, nodes, active)
    except CannotProbe as error:
        found, code = (-1, str(error)), Code.NOT_PROBED
    if isinstance(found, Rotation):
        return found
    return found[0], Reason(code, f"from {x.name} to {out.name}: {found[1]}", out.name)


def _may_be(view: GraphView, x: Node, out: Node, nodes: Sequence[Node], active: Collection[Node]) -> bool:
    """Whether x and out have one shape of pairs, and something between moves channels and reads a table."""
    before, after = view.tensor(x), view.tensor(out)
    if before is None or after is None or not before.is_floating_point() or not after.is_floating_point():
        return False
    shape = tuple(before.shape)
    even = len(shape) in (3, 4) and isinstance(shape[-1], int) and shape[-1] >= 4 and shape[-1] % 2 == 0
    if not even or not same_shape(shape, tuple(after.shape)):
        return False
    tables = {i for n in nodes for i in n.all_input_nodes if i not in active}
    return any(view.op(n) not in _STAYS and not _picks(view, n) for n in nodes) and any(
        _is_table(view, t) for t in tables
    )


def _is_table(view: GraphView, node: Node) -> bool:
    value = view.tensor(node)
    return value is not None and (value.is_floating_point() or value.is_complex()) and _count(tuple(value.shape)) > 1


def _trial(
    view: GraphView, x: Node, out: Node, nodes: Sequence[Node], active: Collection[Node]
) -> Rotation | tuple[int, str]:
    """The rotation that leads from x to out, or how far one was seen and what was seen there."""
    budget = budget_of(view)
    entering = [i for n in reversed(nodes) for i in n.all_input_nodes if i not in active]
    above = feeding(view, entering, budget.limits.nodes - len(nodes), active)
    part = ProbeRegion.of(view, {*nodes, *above}, (x,))
    members = part.members
    size = view.shape(x) or ()

    def ask() -> tuple[int, str] | tuple[bool, NamedTables, tuple[int, int]]:
        probe = Probe(view, part, _shapes(size), budget)
        factors = factors_of(probe, x, out)
        if not isinstance(factors, Factors):
            return factors
        tables = tables_of(view, probe, [n for n in members if n is not x and n not in nodes], factors)
        if isinstance(tables, str):
            return 4, tables
        doubt = not_for_all(probe, x, out, (tables.cos, tables.sin))
        doubt = doubt or unsure(view, probe, out, (x,), (tables.cos, tables.sin))
        if doubt:
            return 5, doubt
        return factors.interleaved, tables, (members.index(tables.cos), members.index(tables.sin))

    answer = budget.answer(part.digest(view, members.index(out)), ask)
    if len(answer) == 2:
        return answer
    interleaved, tables, (cos, sin) = answer
    named = tables.at(view, members[cos], members[sin])
    return Rotation(x, out, _interior(view, part, x, out, named), interleaved, named)


def _shapes(size: Sequence[Any]) -> Mapping[str, int]:
    """Sizes of x by the names that cutting goes by: positions and heads may be on either axis, the size of a head stays."""
    *front, head = (hint(n, UNKNOWN) for n in size)
    middle = sorted(front[1:], reverse=True)
    names = ("sequence", "heads") if len(front) == 3 else ("sequence",)
    return {"batch": front[0], **dict(zip(names, middle, strict=True)), "head_size": head}


def _interior(view: GraphView, part: ProbeRegion, x: Node, out: Node, tables: NamedTables) -> tuple[Node, ...]:
    """What lies between x and out, and what was made of the tables for this alone."""
    kept, turned = {x, tables.cos, tables.sin}, depending(part.nodes, [x])
    inside = {out}
    for node in reversed(part.nodes):
        uses = [u for u in node.users if not only_checks(u)]
        depends = any(i in inside for i in uses)
        if node not in kept and depends and (all(u in inside for u in uses) or node in turned):
            inside.add(node)
    return tuple(n for n in part.nodes if n in inside and n is not out)
