"""Rotations that no pattern matches, found by what they compute.

Where no known rotation lies between a query or key of an attention and its projection, the parts in between that read tables
and move channels run on random inputs (`fluxrewrite.rewrite.proof.probe`). A part is a rotation if it

    is linear in x, and maps 0 to 0
    computes each row, of one batch, position and head, from that row alone
    mixes pairs of channels only, all of them neighbours or all half a head apart
    has factors that depend on the position, at most on the batch too, and that are those of a table in the graph

Not a pass: the rope pass uses what is found here, and the replacement is proved like that of any site.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxrewrite.passes.attention.attention import attention_calls
from fluxrewrite.passes.attention.call import AttentionCall
from fluxrewrite.passes.rope.rotation_test import Factors, factors_of, not_proportional
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
_KEEPS_CHANNELS = frozenset(_WORDS.split())
"""Operations that never bring two channels of a tensor together: a region of these alone is no rotation, and is not run."""
_TRIALS = 24
"""Pairs of x and result that are tried for one query or key."""


@dataclass(frozen=True)
class Rotation:
    """A region that rotates: `out` is `x` with its pairs of channels rotated by tables.

    Attributes:
        x, out: values of one shape, [B, S, H, D], [B, H, S, D], [B, S, D] or [S, H, D].
        interior: nodes that have no use once `out` is replaced.
        interleaved: pairs are neighbours, else half a head apart.
        tables: values of the graph, and the axis of x that holds the positions.
    """

    x: Node
    out: Node
    interior: tuple[Node, ...]
    interleaved: bool
    tables: NamedTables


@dataclass(frozen=True)
class _Route:
    """The values between one query or key and its projection.

    Attributes:
        nodes: these values.
        complete: whether they are all, within the limit on a region.
        active: values of the graph that come from layers; the rest are tables and constants.
    """

    nodes: frozenset[Node]
    complete: bool
    active: Collection[Node]


def probed_rotations(view: GraphView, findings: Sequence[Finding]) -> tuple[list[Rotation | Miss], dict[str, str]]:
    """Rotations that are not among `findings`, and near misses; then, by node with a near miss, what the probe found there."""
    found: dict[Node, Rotation] = {}
    misses: dict[str, Miss] = {}
    notes: dict[str, str] = {}
    known = {view.bare(s.outputs[0]) for s in findings if isinstance(s, Site)}
    near = {f.reason.node: f.reason.code for f in findings if isinstance(f, Miss)}
    for operand in _operands(view):
        route = _route(view, operand, known)
        # A refusal other than a mismatch is of a known form: there is nothing for a probe to find out.
        if route is None or any(near.get(n.name, Code.PATTERN) != Code.PATTERN for n in route.nodes):
            continue
        answer = _search(view, route)
        if isinstance(answer, Rotation):
            found.setdefault(answer.out, answer)
        elif answer is not None:
            near_misses = [n.name for n in route.nodes if n.name in near]
            notes.update(dict.fromkeys(near_misses, answer.message))
            if not near_misses:
                misses.setdefault(answer.node, Miss("rope", view.path(view.named[answer.node]), answer, "probed"))
    return [*found.values(), *misses.values()], notes


def _operands(view: GraphView) -> Iterator[Node]:
    calls = [c for c in attention_calls(view) if isinstance(c, AttentionCall)]
    yield from dict.fromkeys(n for c in calls for n in (c.query, c.key))


def _route(view: GraphView, operand: Node, known: Collection[Node]) -> _Route | None:
    """From a query or key up to its projections; None where a known rotation lies between, or nothing that could be one."""
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
    complete = all(n in nodes or view.op(n) in _ROOTS for n in pending)
    moves = any(view.op(n) not in _KEEPS_CHANNELS for n in nodes if not _is_plain_getitem(view, n))
    return _Route(frozenset(nodes), complete, active) if moves else None


def _is_plain_getitem(view: GraphView, node: Node) -> bool:
    """Whether `node` is an element of a tuple, or basic indexing, neither of which moves channels."""
    return view.op(node) == "getitem" and (
        view.forwards(node) or view.tensor(view.fact(node).args.get("input")) is None
    )


def _active(view: GraphView) -> Collection[Node]:
    """Values that come from layers, or from inputs of the size of a query or key, as where a graph starts after its layers."""
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


def _search(view: GraphView, route: _Route) -> Rotation | Reason | None:
    """The rotation nearest to the attention; else why the widest region is not one, for the x that comes closest.

    None where no region is a candidate.
    """
    best: tuple[int, Reason] | None = None
    trials = 0
    # Attention looks through casts and views that change nothing (`GraphView.bare`): a call that ended below one would be
    # read by nobody.
    for out in sorted((n for n in route.nodes if view.bare(n) is n), key=view.order, reverse=True):
        here: tuple[int, Reason] | None = None
        for dominator, between in _dominators(view, route, out):
            x = view.strip(dominator)
            nodes = [*between, *view.between(dominator, x)]
            if trials == _TRIALS or not _is_candidate(view, x, out, nodes, route.active):
                continue
            trials += 1
            answer = _answer(view, x, out, nodes, route.active)
            if isinstance(answer, Rotation):
                return answer
            here = answer if here is None or answer[0] > here[0] else here
        best = best or here
    if best is None and not route.complete:
        last = max(route.nodes, key=view.order)
        message = f"more than {len(route.nodes)} operations lie between {last.name} and its projection"
        return Reason(Code.NOT_PROBED, message, last.name)
    return None if best is None else best[1]


def _dominators(view: GraphView, route: _Route, out: Node) -> Iterator[tuple[Node, list[Node]]]:
    """Values through which all dependence of `out` on layers passes, nearest first; and the nodes between.

    Only such a value can be x: with any other, the region would have a second input that is not a table.
    """
    live, passed = {out}, list[Node]()
    while live:
        node = max(live, key=view.order)  # the last in graph order: nothing else that is live depends on it
        if node not in route.nodes:
            return
        live.remove(node)
        passed.append(node)
        live |= {i for i in node.all_input_nodes if i in route.active}
        if len(live) == 1:
            yield next(iter(live)), list(passed)


def _answer(
    view: GraphView, x: Node, out: Node, nodes: Sequence[Node], active: Collection[Node]
) -> Rotation | tuple[int, Reason]:
    """As `_trial`, with failures as a Reason."""
    code = Code.PROBED
    try:
        found = _trial(view, x, out, nodes, active)
    except CannotProbe as error:
        found, code = (-1, str(error)), Code.NOT_PROBED
    if isinstance(found, Rotation):
        return found
    return found[0], Reason(code, f"from {x.name} to {out.name}: {found[1]}", out.name)


def _is_candidate(view: GraphView, x: Node, out: Node, nodes: Sequence[Node], active: Collection[Node]) -> bool:
    """Whether x and out have one shape with an even last axis, and something between them moves channels and reads a table."""
    before, after = view.tensor(x), view.tensor(out)
    if before is None or after is None or not before.is_floating_point() or not after.is_floating_point():
        return False
    shape = tuple(before.shape)
    even = len(shape) in (3, 4) and isinstance(shape[-1], int) and shape[-1] >= 4 and shape[-1] % 2 == 0
    if not even or not same_shape(shape, tuple(after.shape)):
        return False
    tables = {i for n in nodes for i in n.all_input_nodes if i not in active}
    return any(view.op(n) not in _KEEPS_CHANNELS and not _is_plain_getitem(view, n) for n in nodes) and any(
        _is_table(view, t) for t in tables
    )


def _is_table(view: GraphView, node: Node) -> bool:
    value = view.tensor(node)
    return value is not None and (value.is_floating_point() or value.is_complex()) and _count(tuple(value.shape)) > 1


def _trial(
    view: GraphView, x: Node, out: Node, nodes: Sequence[Node], active: Collection[Node]
) -> Rotation | tuple[int, str]:
    """The rotation from x to out, or how many of the tests passed and what the next one found."""
    budget = budget_of(view)
    entering = [i for n in reversed(nodes) for i in n.all_input_nodes if i not in active]
    above = feeding(view, entering, budget.limits.nodes - len(nodes), active)
    part = ProbeRegion.of(view, {*nodes, *above}, (x,))
    members = part.members
    size = view.shape(x) or ()

    def probe_region() -> tuple[int, str] | tuple[bool, NamedTables, tuple[int, int]]:
        probe = Probe(view, part, _shapes(size), budget)
        factors = factors_of(probe, x, out)
        if not isinstance(factors, Factors):
            return factors
        tables = tables_of(view, probe, [n for n in members if n is not x and n not in nodes], factors)
        if isinstance(tables, str):
            return 4, tables
        doubt = not_proportional(probe, x, out, (tables.cos, tables.sin))
        doubt = doubt or unsure(view, probe, out, (x,), (tables.cos, tables.sin))
        if doubt:
            return 5, doubt
        return factors.interleaved, tables, (members.index(tables.cos), members.index(tables.sin))

    answer = budget.answer(part.digest(view, members.index(out)), probe_region)
    if len(answer) == 2:
        return answer
    interleaved, tables, (cos, sin) = answer
    named = tables.at(view, members[cos], members[sin])
    return Rotation(x, out, _interior(view, part, x, out, named), interleaved, named)


def _shapes(size: Sequence[Any]) -> Mapping[str, int]:
    """Sizes of x by the names that `small_sizes` cuts by."""
    *front, head = (hint(n, UNKNOWN) for n in size)
    # The layout is not known yet: the larger of the two middle axes counts as the positions.
    middle = sorted(front[1:], reverse=True)
    names = ("sequence", "heads") if len(front) == 3 else ("sequence",)
    return {"batch": front[0], **dict(zip(names, middle, strict=True)), "head_size": head}


def _interior(view: GraphView, part: ProbeRegion, x: Node, out: Node, tables: NamedTables) -> tuple[Node, ...]:
    """What lies between x and out, and what is computed from the tables for this rotation only."""
    kept, on_x = {x, tables.cos, tables.sin}, depending(part.nodes, [x])
    inside = {out}
    for node in reversed(part.nodes):
        uses = [u for u in node.users if not only_checks(u)]
        depends = any(i in inside for i in uses)
        if node not in kept and depends and (all(u in inside for u in uses) or node in on_x):
            inside.add(node)
    return tuple(n for n in part.nodes if n in inside and n is not out)
