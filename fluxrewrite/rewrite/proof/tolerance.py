"""How far a replacement may be from what it replaces, and how far it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TOLERANCE", "TRACED", "MaxError", "max_error"]

TOLERANCE = 1e-6
"""Greatest error over the largest value expected, in float64.

Sums in another order leave 1e-14. An op whose body rounds to float32 inside leaves 1e-7; the epsilon of a norm that is 1e-5 in
the place of 1e-6 leaves 1e-2 in the small rows that `inputs.Maker` draws.
"""
TRACED = {torch.bfloat16: 2e-2, torch.float16: 2.5e-3}
"""The same for regions that run in the graph's own dtypes, 1e-5 where not named: twice what `fluxrewrite verify` lets pass, for
inputs are drawn anew at every scale."""


@dataclass(frozen=True)
class MaxError:
    """The greatest error over the largest value expected; NaN with a note where there is no such figure."""

    error: float
    note: str = ""


def max_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> MaxError:
    """The worst of pairs (found, expected); the expected values are finite."""
    worst = 0.0
    for found, expected in pairs:
        if found.shape != expected.shape:
            return MaxError(math.nan, f"it has shape {tuple(found.shape)} where {tuple(expected.shape)} is expected")
        found, expected = _plain(found), _plain(expected)
        if not bool(found.isfinite().all()):
            return MaxError(math.nan, "it has NaN or inf where finite values are expected")
        if expected.numel():
            error, largest = float((found - expected).abs().max()), float(expected.abs().max())
            if error and not largest:
                return MaxError(math.nan, f"it has up to {error:.2g} where only zeros are expected")
            worst = max(worst, error / largest if error else 0.0)
    return MaxError(worst)


def _plain(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()).double() if tensor.is_complex() else tensor.double()
