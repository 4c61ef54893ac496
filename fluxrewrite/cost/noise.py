"""Which differences of measured times are more than noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["NEUTRAL", "median_noise", "threshold"]

NEUTRAL = 0.01
"""Fraction of a step below which a difference is taken as noise.

Warm steps of one process repeat within 0.03 % in the shipped table. How far two processes, or two compiles of the same model,
differ was not measured there. 1 % is assumed: a smaller gain is not worth a compile. A bench in which two variants ran the same
program measures it: `Runs.drift`.
"""

_ENOUGH = 6
"""The median is outside the range of n values with probability 2 ** (1 - n): 3 % for six."""


def median_noise(values: Sequence[float]) -> float:
    """Half-width of the 95 % interval of the median of `values`, on its wider side, in their unit.

    Step times are skewed, so the interval comes from order statistics, which assume no distribution: the values at the ranks
    n/2 +- sqrt(n). Below eight values, these are the smallest and the largest. The range of fewer than six values contains the
    median less often (three: 75 %), so its width is doubled. The result is 0 for fewer than two values, which do not show their
    noise.
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
    """Fraction of a step below which the difference of two medians is noise.

    The noises are added linearly, which is the cautious choice: on a shared machine they are not independent.

    Args:
        one, other: noise of each, as a fraction of a step.
        drift: ratio by which runs of the same program in two processes were measured to differ.
    """
    return max(NEUTRAL, one + other, drift)
