"""Whether a function of three tensors is softmax(scale * q k^T + mask) v, from its results on random values.

Not a pass: the search for attention uses it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fluxrewrite.passes.numeric import TOLERANCE, close
from torch import Tensor
from torch.fx import Node

from fluxrewrite.rewrite.proof.probe import Probe

__all__ = ["AttentionFacts", "NotAttention", "recognise_attention"]

Run = Callable[[Mapping[str, Tensor]], Tensor]
SHIFT = 600.0
"""Added to all scores of a row: a softmax does not change, but a clamp or an epsilon shows. exp(600) is finite in float64."""
FAR = 1e5
"""A larger one, for code that subtracts the largest score first. Without that its exponentials overflow, which proves nothing."""


class NotAttention(Exception):
    """The function is something else; the text says what."""


@dataclass(frozen=True)
class AttentionFacts:
    """What identifies the attention.

    Attributes:
        first: whether the first operand of the product is the query.
        axes: of "q", "k", "v" and "out", in the order [B, H, S, D], or [H, S, D] where there are 3.
        scale: factor on q k^T.
        masking: "none", "additive", "keep" (a key takes part where True), "drop" or "causal".
        mask: number of the mask among the candidates; -1 for none.
    """

    first: bool
    axes: Mapping[str, tuple[int, ...]]
    scale: float
    masking: str
    mask: int = -1


def recognise_attention(
    probe: Probe, operands: Sequence[Node], out: Node, candidates: Sequence[Node]
) -> AttentionFacts:
    """The facts of `out` as attention on the two operands of the first product and on the value.

    Args:
        probe: of the region.
        operands: the two of the product, and the value.
        out: the result.
        candidates: values that may be the mask, the likeliest first.

    Raises NotAttention for any other function.
    """
    fn = probe.function(out, *operands)
    given = [probe.values[n] for n in operands]
    drawn = [_normal(t.shape, i) for i, t in enumerate(given)]
    base = fn(*drawn)
    if not bool(base.isfinite().all()):
        raise NotAttention("the result is not finite")
    problem = NotAttention("the key has no axis of positions next to one of channels")
    # Where sizes are equal the key's axes are ambiguous: each reading is tried, and a wrong one fails below.
    for first, axes in _axis_roles([_shared_axes(fn, drawn, i, base) for i in range(3)], base, drawn):
        try:
            return _facts(probe, fn, drawn, out, candidates, first=first, axes=axes)
        except NotAttention as error:
            problem = error
    raise problem


def _facts(
    probe: Probe,
    fn: Callable[..., Tensor],
    drawn: Sequence[Tensor],
    out: Node,
    candidates: Sequence[Node],
    *,
    first: bool,
    axes: Mapping[str, tuple[int, ...]],
) -> AttentionFacts:
    """As `recognise_attention`, for one reading of the axes."""
    names = ("q", "k", "v") if first else ("k", "q", "v")

    def run(values: Mapping[str, Tensor]) -> Tensor:
        return fn(*(_in_tensor_order(values[n], axes[n]) for n in names)).permute(axes["out"])

    made = {n: t.permute(axes[n]) for n, t in zip(names, drawn, strict=True)}
    scale, unscored = _scale(run, made)
    _check_score_shifts(run, made, scale)
    masking, mask, added = _mask(probe, out, unscored, candidates)
    if masking == "additive":
        node = candidates[mask]
        masked = probe.function(out, node)
        _check_shifts(masked(probe.values[node]), lambda shift: masked(probe.values[node] + shift))
    _check_new_values(run, made, scale, added)
    return AttentionFacts(first, axes, scale, masking, mask)


def _normal(shape: Iterable[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _in_tensor_order(values: Tensor, axes: Sequence[int]) -> Tensor:
    """Values with axes in the order of roles, permuted to the order that the function takes."""
    return values.permute([axes.index(a) for a in range(len(axes))])


def _shared_axes(fn: Callable[..., Tensor], drawn: Sequence[Tensor], which: int, base: Tensor) -> dict[int, int]:
    """For axes of one argument: the axis of the result on which a change at one index shows at that index only."""
    found: dict[int, int] = {}
    for axis, size in enumerate(drawn[which].shape):
        may = [a for a, n in enumerate(base.shape) if n == size and size > 1]
        shown: set[int] = set()
        for index in sorted({0, 1, size - 1}) if may else ():
            changed = drawn[which].clone()
            changed.select(axis, index).copy_(_normal(changed.select(axis, index).shape, 7 + index))
            moved = (fn(*drawn[:which], changed, *drawn[which + 1 :]) - base).abs() > TOLERANCE * base.abs().max()
            places = {a: moved.movedim(a, 0).flatten(1).any(1).nonzero().flatten().tolist() for a in may}
            may = [a for a in may if places[a] in ([], [index])]
            shown.update(a for a in may if places[a])
        if len(may) == 1 and may[0] in shown:  # with a single key, a change of the query changes nothing
            found[axis] = may[0]
    return found


def _axis_roles(
    aligned: Sequence[Mapping[int, int]], out: Tensor, drawn: Sequence[Tensor]
) -> Iterator[tuple[bool, dict[str, tuple[int, ...]]]]:
    """Whether the first argument is the query, and the axes by role; several answers where sizes are equal."""
    rank = out.dim()
    a, b, v = ({j: i for i, j in found.items()} for found in aligned)  # axis of the result: axis of the argument
    rows = [j for j in range(rank) if (j in a) != (j in b) and j not in v]
    columns = [j for j in range(rank) if j in v and j not in a and j not in b]
    if rank not in (3, 4) or any(t.dim() != rank for t in drawn) or len(rows) != 1 or len(columns) != 1:
        raise NotAttention("no axis of the result belongs to the queries only, or none to the values only")
    first = rows[0] in a
    shared = [j for j in range(rank) if j not in (*rows, *columns)]
    if any(not (j in a and j in b and j in v) and out.shape[j] > 1 for j in shared):
        raise NotAttention("batches and heads of the result are not those of all of query, key and value")
    q, k = (a, b) if first else (b, a)
    tensors = {"q": drawn[0 if first else 1], "k": drawn[1 if first else 0], "v": drawn[2]}
    heads = {name: _shared(m, tensors[name], shared) for name, m in (("q", q), ("k", k), ("v", v))}
    left = {n: [i for i in range(rank) if i not in heads[n]] for n in heads}
    depth = next(i for i in left["q"] if i != q[rows[0]])
    size = tensors["q"].shape[depth]
    keys = next(i for i in left["v"] if i != v[columns[0]])
    length = tensors["v"].shape[keys]
    over = [i for i in left["k"] if tensors["k"].shape[i] == size]
    along = [i for i in left["k"] if tensors["k"].shape[i] == length]
    found = {"q": (*heads["q"], q[rows[0]], depth), "v": (*heads["v"], keys, v[columns[0]])}
    for position, channel in itertools.product(along, reversed(over)):
        if position != channel:
            yield first, {**found, "k": (*heads["k"], position, channel), "out": (*shared, rows[0], columns[0])}


def _shared(axis_of: Mapping[int, int], tensor: Tensor, shared: Sequence[int]) -> list[int]:
    """The axes of a tensor that are batches and heads: for one of size 1, which no change can reveal, an unused axis of size 1."""
    taken = set(axis_of.values())
    single = iter([i for i, n in enumerate(tensor.shape) if n == 1 and i not in taken])
    found = [axis_of[j] if j in axis_of else next(single, -1) for j in shared]
    if -1 in found:
        raise NotAttention("batches and heads of query, key and value do not go together")
    return found


def _probabilities(run: Run, made: Mapping[str, Tensor]) -> Tensor:
    """The weight of each value in each row of the result, [.., S, L].

    Values that are one at one position and channel, zero elsewhere, give the weights of as many positions a run as there are
    channels.
    """
    v = made["v"]
    length, width = v.shape[-2:]
    parts = []
    for start in range(0, length, width):
        here = min(width, length - start)
        chosen = torch.zeros_like(v)
        chosen[..., torch.arange(start, start + here), torch.arange(here)] = 1.0
        parts.append(run({**made, "v": chosen})[..., :here])
    found = torch.cat(parts, -1)
    if not bool(found.isfinite().all()) or float(found.min()) < 0:
        raise NotAttention("values are weighted by negative or infinite numbers")
    if not close(found.sum(-1), torch.ones(())):
        raise NotAttention("the weights of a row do not add up to 1, as those of a softmax over the keys do")
    return found


def _scale(run: Run, made: Mapping[str, Tensor]) -> tuple[float, Tensor]:
    """The factor on q k^T, and the weights for a query of zeros.

    A mask adds to the logarithms of both, so it cancels in their difference; so does the sum of a row once each row is centred.
    What is left is a multiple of q k^T.
    """
    unscored = _probabilities(run, {**made, "q": torch.zeros_like(made["q"])})
    weights = _probabilities(run, made)
    kept = (unscored > 0) & (weights > 0)
    count = kept.sum(-1, keepdim=True).clamp(min=1)

    def centred(t: Tensor) -> Tensor:
        t = torch.where(kept, t, 0.0)
        return torch.where(kept, t - t.sum(-1, keepdim=True) / count, 0.0)

    logs = centred(torch.where(kept, weights.clamp(min=1e-300).log() - unscored.clamp(min=1e-300).log(), 0.0))
    scores = centred(made["q"] @ made["k"].mT)
    scale = float((logs * scores).sum() / (scores * scores).sum())
    if not math.isfinite(scale) or scale == 0 or not bool(((unscored > 0) == (weights > 0)).all()):
        raise NotAttention("the weights do not depend on q k^T alone")
    if float((logs - scale * scores).abs().max()) > 1e-8 * float(logs.abs().max()):
        raise NotAttention("the logarithms of the weights are not a multiple of q k^T plus a mask")
    return scale, unscored


def _check_score_shifts(run: Run, made: Mapping[str, Tensor], scale: float) -> None:
    """Raise where a number added to all scores of a row shows: a vector added to all keys adds one."""
    vector = _normal(made["k"].shape[-1:], 11)
    unit = vector / float((scale * made["q"] @ vector).abs().max())
    _check_shifts(run(made), lambda shift: run({**made, "k": made["k"] + unit * shift}))


def _check_shifts(wanted: Tensor, shifted: Callable[[float], Tensor]) -> None:
    """Raise where the result changes with a number added to all scores of a row, to which a softmax is invariant."""
    for shift in (SHIFT, -SHIFT, FAR, -FAR):
        found = shifted(shift)
        overflows = abs(shift) == FAR and not bool(found.isfinite().all())
        if not overflows and not close(found, wanted):
            raise NotAttention(
                "a number added to all scores of a row changes its weights, which it does not in a softmax"
            )


def _mask(probe: Probe, out: Node, unscored: Tensor, candidates: Sequence[Node]) -> tuple[str, int, Tensor | None]:
    """How scores are masked, by which candidate, and what the mask adds to them.

    With a query of zeros all scores are 0, so the weights show the mask alone.
    """
    if close(unscored, torch.full_like(unscored, 1.0 / unscored.shape[-1])):
        return "none", -1, None
    refused = ""
    for number, node in enumerate(candidates):
        value = _broadcast(probe.values.get(node), unscored)
        if value is None:
            continue
        for masking in ("keep", "drop") if value.dtype == torch.bool else ("additive",):
            added = _as_added(value, masking)
            if close(torch.softmax(added, -1), unscored):
                if masking == "additive" or _removes_keys(probe, out, node, masking):
                    return masking, number, added
                refused = f"{node.name} does not remove keys: a row with all keys masked is neither NaN nor 0"
    causal = _as_added(torch.ones_like(unscored, dtype=torch.bool).tril(), "keep")
    if not refused and unscored.shape[-1] == unscored.shape[-2] and close(torch.softmax(causal, -1), unscored):
        return "causal", -1, causal
    raise NotAttention(refused or "scores are masked or biased by something that is not a value of the graph")


def _broadcast(value: Any, like: Tensor) -> Tensor | None:
    if not isinstance(value, Tensor) or not 2 <= value.dim() <= like.dim():
        return None
    if value.dtype != torch.bool and not value.is_floating_point():
        return None
    fits = all(m in (1, n) for m, n in zip(reversed(value.shape), reversed(like.shape), strict=False))
    return value.expand_as(like) if fits else None


def _as_added(value: Tensor, masking: str) -> Tensor:
    if masking == "additive":
        return value.double()
    kept = value if masking == "keep" else ~value
    return torch.zeros_like(kept, dtype=torch.float64).masked_fill(~kept, -math.inf)


def _removes_keys(probe: Probe, out: Node, mask: Node, masking: str) -> bool:
    """Whether a row with all keys masked gives NaN or 0: masked scores are then -inf, not merely small.

    A large negative fill gives such a row the mean of all values, so random masks with a key in each row show no difference.
    """
    empty = torch.full_like(probe.values[mask], masking == "drop")
    found = probe.function(out, mask)(empty)
    return bool((found.isnan() | (found == 0)).all())


def _check_new_values(run: Run, made: Mapping[str, Tensor], scale: float, mask: Tensor | None) -> None:
    """Raise where new random values, or large scores, give another result than attention."""
    q, k, v = (_normal(made[n].shape, 20 + i) for i, n in enumerate("qkv"))
    for far in (1.0, FAR):
        scores = far * scale * (q @ k.mT)
        wanted = torch.softmax(scores if mask is None else scores + mask, -1) @ v
        found = run({"q": far * q, "k": k, "v": v})
        overflows = far == FAR and not bool(found.isfinite().all())
        if not overflows and not close(found, wanted):
            raise NotAttention("other values give another result than attention")
