"""Attention that no pattern matches, found by what it computes.

Each softmax or exponential outside known attention anchors a region: from the product of two tensors above it to the product
with a third below it. The region runs on random inputs (`rewrite.proof.probe`). It is attention if each result is a mean of the
values whose weights have the logarithms scale * q k^T + mask, up to a constant for each row, with one number as the scale, and
with a mask that is a value of the graph, or causal.

Not a pass: the attention pass uses what is found here, and the replacement is proved like that of any site.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from fluxrewrite.passes.attention.softmax_test import AttentionFacts, NotAttention, recognise_attention
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.shapes import hint, same_shape
from fluxrewrite.rewrite.guards import only_checks
from fluxrewrite.rewrite.proof.probe import CannotProbe, Probe, ProbeRegion, budget_of, depending, feeding
from fluxrewrite.rewrite.proof.region import UNKNOWN
from fluxrewrite.rewrite.proof.size_independence import unsure
from fluxrewrite.site import Code, Miss, Reason

__all__ = ["ProbedAttention", "probed_attention"]

_EXPONENTIALS = ("softmax", "exp", "exp2", "log_softmax", "logsumexp")
_PRODUCTS = frozenset({"matmul", "baddbmm", "addbmm", "einsum", "tensordot", "inner"})
_ROOTS = frozenset({"linear", "rms_norm", "layer_norm", "group_norm", "sdpa", "output", "conv1d", "conv2d", "conv3d"})
_AFTER = frozenset({"div", "mul", "cast", "copy"})
"""What may follow the second product and still belong to attention: a division by the sum of weights, and casts."""


@dataclass(frozen=True)
class ProbedAttention:
    """A region that computes attention.

    Attributes:
        out: the result.
        query, key, value: as they enter the products.
        interior: nodes that have no use once `out` is replaced.
        axes: of "q", "k", "v" and "out", in the order [B, H, S, D], or [H, S, D] where there are 3.
        scale: factor on q k^T.
        masking, mask: as in `AttentionCall`; "causal" for a mask that is not a value of the graph.
    """

    out: Node
    query: Node
    key: Node
    value: Node
    interior: tuple[Node, ...]
    axes: Mapping[str, tuple[int, ...]]
    scale: float
    masking: str
    mask: Node | None


@dataclass(frozen=True)
class _Region:
    """From the product of `first` and `second` to the product with `value`; `outs` are the possible results, nearest first."""

    scores: Node
    first: Node
    second: Node
    value: Node
    outs: tuple[Node, ...]


def probed_attention(
    view: GraphView, taken: Collection[Node], near: Mapping[str, Code]
) -> tuple[list[ProbedAttention | Miss], dict[str, str]]:
    """The attention computations other than those that hold `taken`, and near misses.

    Args:
        view: the graph.
        taken: nodes of known attention.
        near: codes of near misses of known forms, by the name of their node. Any code but a pattern mismatch means a form that is
            known and refused, so the region is not probed.

    Returns:
        What was found; then, by node with a near miss, what the probe found there.
    """
    found: dict[Node, ProbedAttention | Miss] = {}
    notes: dict[str, str] = {}
    seen: set[Node] = set()
    for anchor in view.with_op(*_EXPONENTIALS):
        region = None if anchor in taken else _region(view, anchor)
        if region is None or region.outs[0] in seen:
            continue
        seen.add(region.outs[0])
        inside = {n.name for n in _between(view, region, region.outs[-1])}
        near_misses = [n for n in near if n in inside]
        if any(near[n] != Code.PATTERN for n in near_misses):
            continue
        answer = _answer(view, region)
        if isinstance(answer, ProbedAttention):
            found[answer.out] = answer
        elif near_misses:
            notes.update(dict.fromkeys(near_misses, answer.message))
        else:
            found[region.outs[0]] = Miss("attention", view.path(region.outs[0]), answer, "probed")
    return list(found.values()), notes


def _region(view: GraphView, anchor: Node) -> _Region | None:
    """The two products around an exponential, if there is exactly one on each side."""
    below = _below(view, anchor)
    if below is None:
        return None
    product, weights, value = below
    limit = budget_of(view).limits.nodes
    products, pending = dict[Node, None](), [weights]
    passed: set[Node] = set()
    while pending and len(passed) < limit:
        node = pending.pop()
        if node in passed or view.op(node) in _ROOTS:
            continue
        passed.add(node)
        if view.op(node) in _PRODUCTS:
            products[node] = None
        else:
            pending += node.all_input_nodes
    pairs = [(p, _operands(view, p)) for p in products]
    if len(pairs) != 1 or pairs[0][1] is None or anchor not in passed:
        return None
    (scores, operands) = pairs[0]
    assert operands is not None
    return _Region(scores, *operands, value, tuple(_outs(view, product)))


def _below(view: GraphView, anchor: Node) -> tuple[Node, Node, Node] | None:
    """The next product of a value that depends on `anchor` with one that does not; then the former and the latter."""
    order, seen = [(view.order(anchor), anchor.name)], {anchor}
    for _ in range(budget_of(view).limits.nodes):
        if not order:
            return None
        node = view.named[heapq.heappop(order)[1]]
        if view.op(node) in _PRODUCTS:
            operands = _operands(view, node) or ()
            inside, outside = [n for n in operands if n in seen], [n for n in operands if n not in seen]
            return (node, inside[0], outside[0]) if len(inside) == 1 else None
        for user in node.users:
            if user not in seen and view.op(user) not in _ROOTS:
                seen.add(user)
                heapq.heappush(order, (view.order(user), user.name))
    return None


def _operands(view: GraphView, product: Node) -> tuple[Node, Node] | None:
    """The two different tensors that a product multiplies."""
    names = {"matmul": ("input", "other"), "baddbmm": ("batch1", "batch2")}.get(view.op(product))
    found = [view.arg(product, n) for n in names] if names else product.all_input_nodes
    tensors = [n for n in dict.fromkeys(found) if isinstance(n, Node) and view.tensor(n) is not None]
    return (tensors[0], tensors[1]) if len(tensors) == len(found) == 2 else None


def _outs(view: GraphView, product: Node) -> Iterator[Node]:
    """A product, then each node of a chain below it that may still belong to attention and is the only reader of the last."""
    node = product
    yield node
    for _ in range(3):
        users = [u for u in node.users if not only_checks(u)]
        if (
            len(users) != 1
            or view.op(users[0]) not in _AFTER
            or not same_shape(view.shape(users[0]) or (), view.shape(node) or ())
        ):
            return
        node = users[0]
        yield node


def _between(view: GraphView, region: _Region, out: Node) -> set[Node]:
    """The nodes from the first product to `out`: all that depend on query, key or value."""
    given = {region.first, region.second, region.value}
    above = feeding(view, [out], budget_of(view).limits.nodes, given)
    return depending(sorted(above, key=view.order), given) - given


def _answer(view: GraphView, region: _Region) -> ProbedAttention | Reason:
    """The attention that the region computes, or why it computes none."""
    reason = Reason(Code.PROBED, "")
    for out in region.outs:
        where = f"from {region.scores.name} to {out.name}"
        try:
            return _trial(view, region, out)
        except NotAttention as error:
            code, why = Code.PROBED, str(error)
        except CannotProbe as error:
            code, why = Code.NOT_PROBED, str(error)
        reason = Reason(code, f"{where}: {why}", out.name)
    return reason


def _trial(view: GraphView, region: _Region, out: Node) -> ProbedAttention:
    budget = budget_of(view)
    operands = (region.first, region.second, region.value)
    inside = _between(view, region, out)
    entering = [i for n in sorted(inside, key=view.order, reverse=True) for i in n.all_input_nodes if i not in inside]
    above = feeding(view, entering, budget.limits.nodes - len(inside), {*operands, *inside})
    part = ProbeRegion.of(view, {*inside, *above}, operands)
    members = part.members
    candidates = sorted((n for n in members if n not in inside and n not in operands), key=_mask_order(view, region))

    def probe_region() -> AttentionFacts | NotAttention:
        """The facts from two sets of random values: a scale or a mask that differs between them depends on the values."""
        probes = [Probe(view, part, _shapes(view, region), budget, seed) for seed in (0, 1)]
        try:
            a, b = (recognise_attention(p, operands, out, candidates) for p in probes)
        except NotAttention as error:
            return error
        if abs(a.scale - b.scale) > 1e-9 * abs(a.scale):
            return NotAttention("the scale of the scores is not a constant")
        doubt = unsure(view, probes[0], out, operands, [candidates[a.mask]] if a.mask >= 0 else [])
        if doubt:
            return NotAttention(doubt)
        differs = replace(a, scale=b.scale) != b
        return NotAttention("what masks the scores is not the same for other values") if differs else a

    found = budget.answer(part.digest(view, members.index(out), [members.index(c) for c in candidates]), probe_region)
    if isinstance(found, NotAttention):
        raise found
    mask = candidates[found.mask] if found.mask >= 0 else None
    query, key = operands[:2] if found.first else operands[1::-1]
    size = hint((view.shape(query) or ())[found.axes["q"][-1]], UNKNOWN)
    scale = _scale_in_graph(view, found.scale, inside, size)
    if scale is None:
        raise NotAttention(
            f"scores are scaled by {found.scale:g}, which is neither a number written in the graph nor a product of two"
        )
    interior = _interior(part, inside, {*operands, out, mask})
    return ProbedAttention(
        out, query, key, region.value,
        interior=interior, axes=found.axes, scale=scale, masking=found.masking, mask=mask,
    )  # fmt: skip


def _mask_order(view: GraphView, region: _Region) -> Any:
    """Sort key of candidates for the mask: those of the scores' dtype, then bool ones, then the nearest to the scores."""
    dtype = view.dtype(region.first)
    return lambda n: (view.dtype(n) != dtype, view.dtype(n) != torch.bool, -view.order(n))


def _shapes(view: GraphView, region: _Region) -> dict[str, int]:
    """Sizes of the region by the names that `small_sizes` cuts by."""
    scores, first, value = (
        [hint(n, UNKNOWN) for n in view.shape(n) or ()] for n in (region.scores, region.first, region.value)
    )
    front = dict(zip(("batch", "heads") if len(scores) > 3 else ("heads",), scores[:-2], strict=False))
    sizes = {"head_size": _unshared(first, scores), "value_size": _unshared(value, scores)}
    return {**front, "sequence": scores[-2], "kv_sequence": scores[-1], **sizes} if len(scores) > 1 else sizes


def _unshared(sizes: Sequence[int], scores: Sequence[int]) -> int:
    """The size of the axis that the scores do not have."""
    left = list(scores)
    for n in sizes:
        if n not in left:
            return n
        left.remove(n)
    return sizes[-1] if sizes else 0


def _scale_in_graph(view: GraphView, scale: float, nodes: Collection[Node], head_size: int) -> float | None:
    """The scale as a number of the graph, or a product of two; None where it is neither.

    The probe runs at small sizes, where a scale may be a count of positions by chance. A number of the graph is the same at all
    sizes, as are 1 / sqrt(D), since the size of a head is never cut, and log(2), which exp2 in place of exp brings in.
    """
    values = [view.number(v) for n in nodes for v in (*n.args, *n.kwargs.values())]
    numbers = [abs(float(n)) for n in values if isinstance(n, (int, float)) and not isinstance(n, bool) and n]
    single = [1.0, 1.0 / math.sqrt(head_size), math.log(2), *numbers, *(1.0 / n for n in numbers)]
    for one, other in itertools.product(single, single):
        if math.isclose(abs(scale), one * other, rel_tol=1e-9):
            return math.copysign(one * other, scale)
    return None


def _interior(part: ProbeRegion, inside: Collection[Node], kept: Collection[Node | None]) -> tuple[Node, ...]:
    """The region, and what is computed for it only."""
    taken = set(inside)
    for node in reversed(part.nodes):
        uses = [u for u in node.users if not only_checks(u)]
        if node not in kept and uses and all(u in taken for u in uses):
            taken.add(node)
    return tuple(n for n in part.nodes if n in taken and n not in kept)
