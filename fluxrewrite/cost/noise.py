"""Which differences of measured times are differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["NEUTRAL", "median_noise", "threshold"]

NEUTRAL = 0.01
"""Share of a step below which a difference is no difference.

Warm steps of one process repeat within 0.03 % in the shipped table, but nothing there says how far two processes or two
compiles of the same model lie apart; 1 % is assumed for that, and it is less than anybody would compile for. A bench in which
two variants were one program says it of itself: `Runs.drift`.
"""


_ENOUGH = 6
"""The median lies outside the range of n values in 2 ** (1 - n) of all cases: 3 % for six."""


def median_noise(values: Sequence[float]) -> float:
    """Half-width of the 95 % interval of the median of `values`, the wider side of it, in their unit.

    By order statistics: the values at the ranks n/2 +- sqrt(n), whatever the distribution; below eight values these are the least
    and the largest. The range of fewer than six holds the median less often (three: 75 %): then it is twice the width. 0 for one
    value or none, which say nothing of their noise.
    """
    ordered = sorted(values)
    count = len(ordered)
    if count < 2:
        return 0.0
    middle = statistics.median(ordered)
    low = ordered[max(0, math.floor(count / 2 - math.sqrt(count)))]
    high = ordered[min(count - 1, math.ceil(count / 2 + math.sqrt(count)) - 1)]
    return max(high - middle, middle - low) * (1 if count >= _ENOUGH else 2)


def threshold(one: float, other: float, drift: float = 0.0) -> float:
    """Share of a step below which two medians do not differ.

    Args:
        one, other: noise of each, as a share of a step.
        drift: by how much runs of the same program in two processes were seen to differ.
    """
    return max(NEUTRAL, one + other, drift)
