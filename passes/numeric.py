"""When a probe counts two tensors as equal."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["TOLERANCE", "close"]

TOLERANCE = 1e-9
"""Relative to the largest value: above the 1e-15 that sums in another order leave in float64, below the 6e-8 of a table that was
rounded to float32."""


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors that broadcast to each other are equal up to rounding; NaN and infinity equal nothing."""
    largest = max((float(t.abs().max()) for t in (a, b) if t.numel()), default=0.0)
    return math.isfinite(largest) and bool(((a - b).abs() <= TOLERANCE * largest).all())
