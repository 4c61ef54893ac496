"""When two tensors count as equal in a probe."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["TOLERANCE", "close"]

TOLERANCE = 1e-9
"""Of the largest value: sums in another order leave 1e-15 of it in float64, a table that was rounded to float32 6e-8."""


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors that broadcast to each other are equal up to rounding; NaN and infinity are equal to nothing."""
    largest = max((float(t.abs().max()) for t in (a, b) if t.numel()), default=0.0)
    return math.isfinite(largest) and bool(((a - b).abs() <= TOLERANCE * largest).all())
