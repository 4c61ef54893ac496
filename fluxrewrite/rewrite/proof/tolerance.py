"""The error of a replacement, and how large it may be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TOLERANCE", "TRACED", "MaxError", "max_error"]

TOLERANCE = 1e-6
"""Largest error relative to the largest value expected, in float64.

It separates rounding from mistakes. Sums in another order differ by 1e-14, and an op whose body rounds to float32 by 1e-7. A norm
with an epsilon of 1e-5 instead of 1e-6 differs by 1e-2 in the small rows that `random_inputs.Maker` draws.
"""
TRACED = {torch.bfloat16: 2e-2, torch.float16: 2.5e-3}
"""The same for regions that run in the graph's own dtypes; 1e-5 for any other dtype. These are twice the limits of
`fluxrewrite verify`, because random inputs cover every scale."""


@dataclass(frozen=True)
class MaxError:
    """The largest error relative to the largest value expected; NaN, with a note that says why, if it is not defined."""

    error: float
    note: str = ""


def max_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> MaxError:
    """The largest error of pairs (found, expected). The expected values must be finite."""
    worst = 0.0
    for found, expected in pairs:
        if found.shape != expected.shape:
            return MaxError(math.nan, f"it has shape {tuple(found.shape)} where {tuple(expected.shape)} is expected")
        found, expected = _plain(found), _plain(expected)
        if not bool(found.isfinite().all()):
            return MaxError(math.nan, "it has NaN or inf where finite values are expected")
        if expected.numel():
            # Not element by element: near zero, sums in another order differ by any ratio.
            error, largest = float((found - expected).abs().max()), float(expected.abs().max())
            if error and not largest:
                return MaxError(math.nan, f"it has up to {error:.2g} where only zeros are expected")
            worst = max(worst, error / largest if error else 0.0)
    return MaxError(worst)


def _plain(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()).double() if tensor.is_complex() else tensor.double()
