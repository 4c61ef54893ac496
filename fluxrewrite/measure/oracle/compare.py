"""Fusions that a rewrite loses, and how well a prediction of them agrees with a compiler."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ...fusion import Fusion

__all__ = ["Agreement", "Edge", "agreement", "lost_fusions", "rank_agreement"]

Edge = tuple[str, str]
"""Names of a producer and of a consumer of its value in the traced graph."""


def lost_fusions(before: Fusion, after: Fusion, edges: Iterable[Edge]) -> frozenset[Edge]:
    """The edges whose two ends share a kernel before a rewrite and not after it.

    A rewrite keeps the names of nodes that stay, and nodes that a kernel call replaces disappear. So an edge with one end inside a
    kernel call is lost if it was fused before. An edge with both ends inside the same call is absorbed and not lost: the caller
    leaves out such edges, and edges to views, which no kernel computes.

    Args:
        before: the fusion of the traced graph.
        after: the fusion of the rewritten graph, by the same compiler.
        edges: pairs of producer and consumer by name; views between them are skipped.
    """
    return frozenset(e for e in edges if before.fused(*e) and not after.fused(*e))


@dataclass(frozen=True)
class Agreement:
    """How a prediction of edges compares with the edges found.

    Attributes:
        precision: fraction of the predicted edges that were found; 1 if none was predicted.
        recall: fraction of the edges found that were predicted; 1 if none was found.
        predicted: number of edges predicted.
        actual: number of edges found.
        both: number of edges both predicted and found.
    """

    precision: float
    recall: float
    predicted: int
    actual: int
    both: int


def agreement(predicted: Collection[Edge], actual: Collection[Edge]) -> Agreement:
    """Precision and recall of `predicted`; both are 1 if neither side has an edge, since nothing was wrong."""
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
    """Kendall's tau-b between two orders of the same variants by extra bytes: 1 for the same order, -1 for the reverse.

    Ties count as in M. G. Kendall, "The treatment of ties in ranking problems", Biometrika 33 (1945). If all variants are tied on
    one side, there is no order; the result is then 1 if they are all tied on the other side as well, otherwise 0.

    Raises ValueError when the two do not have the same variants.
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
