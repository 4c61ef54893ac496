"""What a rewrite costs a compiler's fusion, and how well one account of it agrees with another."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ...fusion import Fusion

__all__ = ["Agreement", "Edge", "agreement", "lost_fusions", "rank_agreement"]

Edge = tuple[str, str]
"""Names of a producer and of a consumer of its value, in the traced graph."""


def lost_fusions(before: Fusion, after: Fusion, edges: Iterable[Edge]) -> frozenset[Edge]:
    """The edges whose two ends shared a kernel before a rewrite and do not after it.

    Nodes that a rewrite leaves keep their names; those that a kernel call takes the place of vanish. So an edge with one end
    inside a kernel call is lost if it was fused before. An edge with both ends inside the same call is not lost but
    absorbed: the caller leaves such edges out, as well as edges to views, which no kernel computes.

    Args:
        before: what is fused in the graph as traced.
        after: what is fused in the rewritten graph, by the same compiler.
        edges: producer and consumer pairs by name, views looked through.
    """
    return frozenset(e for e in edges if before.fused(*e) and not after.fused(*e))


@dataclass(frozen=True)
class Agreement:
    """How a prediction compares with what was found.

    Attributes:
        precision: share of the predicted that is true; 1 if nothing was predicted.
        recall: share of the true that was predicted; 1 if nothing is true.
        predicted: number of things predicted.
        actual: number of things found.
        both: number of things that were predicted and found.
    """

    precision: float
    recall: float
    predicted: int
    actual: int
    both: int


def agreement(predicted: Collection[Edge], actual: Collection[Edge]) -> Agreement:
    """Precision and recall of `predicted`; both are 1 where neither side has any, as nothing was wrong."""
    guessed, found = frozenset(predicted), frozenset(actual)
    both = len(guessed & found)
    return Agreement(
        precision=both / len(guessed) if guessed else 1.0,
        recall=both / len(found) if found else 1.0,
        predicted=len(guessed),
        actual=len(found),
        both=both,
    )


def rank_agreement(predicted: Mapping[str, float], actual: Mapping[str, float]) -> float:
    """Kendall's tau-b between two orders of the same variants, by their extra bytes: 1 same order, -1 reversed.

    Ties count as in M. G. Kendall, "The treatment of ties in ranking problems", Biometrika 33 (1945). Where one side ties
    all variants there is no order: then 1 if the other ties them all too, else 0.

    Raises ValueError when the two do not name the same variants.
    """
    if predicted.keys() != actual.keys():
        names = sorted(predicted.keys() ^ actual.keys())
        raise ValueError(f"variants on one side only: {', '.join(names)}")
    signs = [
        (_sign(predicted[a] - predicted[b]), _sign(actual[a] - actual[b]))
        for a, b in itertools.combinations(predicted, 2)
    ]
    ordered = [sum(bool(pair[side]) for pair in signs) for side in (0, 1)]
    if not all(ordered):
        return 0.0 if any(ordered) else 1.0
    return float(sum(x * y for x, y in signs) / (ordered[0] * ordered[1]) ** 0.5)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
