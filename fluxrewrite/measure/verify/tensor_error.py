"""The error of one tensor relative to another, computed in float64, a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .records import Moments

__all__ = [
    "COSINE",
    "NORM",
    "TOLERANCES",
    "TensorError",
    "difference",
    "least_cosine",
    "moments",
    "tolerance_of",
    "worst",
]

COSINE = 0.9999
"""Smallest allowed cosine, as in the published experiments; it corresponds to an error of 1.4 % of the norm."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1.25e-3}
"""Largest allowed error relative to the largest expected value, by the dtype of a site.

One unit in the last place of the largest value is at most 2^-7 of it in bfloat16 (0.78 %) and 2^-10 in float16 (0.098 %). The
limits allow one such unit, but not two. In float32 the unit is 2^-23; sums of some thousand products in a different order differ
by about ten units, 1e-6, and the limit is ten times that, as in `fluxrewrite verify --kernels`.
"""
NORM = 0.5
"""Largest allowed norm of the error over the expected norm, as a fraction of the tolerance.

The largest error alone does not distinguish rounding from a wrong factor: in bfloat16 both can be one unit in the last place. The
norm does. Two roundings of each value leave at most 0.23 % of the norm, the emulated norm_rope_attention, which rounds q and k
after the norm, leaves 0.37 %, and a factor that is 1 % off leaves 1 %.
"""
_CHUNK = 1 << 22


@dataclass(frozen=True)
class TensorError:
    """The difference between two tensors of the same shape.

    Attributes:
        max_abs: largest absolute error.
        relative: that error over the largest absolute value expected.
        norm: norm of the error over the expected norm.
        cosine: between the two as vectors; 1 if they are equal.
        note: why there are no figures, which are then NaN; "" if there are.
    """

    max_abs: float
    relative: float
    norm: float
    cosine: float
    note: str = ""

    @classmethod
    def none(cls, note: str) -> TensorError:
        """No figures, for this reason."""
        return cls(*(math.nan,) * 4, note)


def tolerance_of(dtype: torch.dtype, given: float | None = None) -> float:
    """`given`, or by default the limit of the dtype; dtypes without a limit have that of float32."""
    return TOLERANCES.get(dtype, TOLERANCES[torch.float32]) if given is None else given


def least_cosine(tolerance: float) -> float:
    """The smallest allowed cosine: `COSINE`, or less if the tolerance t is larger; an error of t in the norm gives 1 - t^2 / 2."""
    return min(COSINE, 1 - tolerance**2 / 2)


def difference(found: Tensor, expected: Tensor) -> TensorError:
    """Compare two tensors of any float dtype. If shapes or dtypes differ, or a value is NaN or inf, there are no figures."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        what, wanted = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (found, expected))
        return TensorError.none(f"the replacement returns {what}, expected {wanted}")
    for name, tensor in (("original", expected), ("replacement", found)):
        if not bool(tensor.isfinite().all()):
            return TensorError.none(f"the {name} computes NaN or inf")
    largest = error = off = product = size = other = 0.0
    for a, b in _pieces(found, expected):
        delta = a - b
        largest, error = max(largest, float(b.abs().max())), max(error, float(delta.abs().max()))
        off += float(delta @ delta)
        product, size, other = product + float(a @ b), size + float(b @ b), other + float(a @ a)
    if error == 0:
        return TensorError(0.0, 0.0, 0.0, 1.0)
    if size == 0:
        return TensorError.none(f"values up to {error:.2g}, expected only zeros")
    cosine = min(product / math.sqrt(size) / math.sqrt(other), 1.0) if other else 0.0
    return TensorError(error, error / largest, math.sqrt(off / size), cosine)


def _pieces(found: Tensor, expected: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors as float64 vectors, in pieces: a copy of a whole tensor would take eight bytes per value."""
    a, b = found.detach().reshape(-1), expected.detach().reshape(-1)
    for start in range(0, a.numel(), _CHUNK):
        yield a[start : start + _CHUNK].double(), b[start : start + _CHUNK].double()


def worst(differences: Sequence[TensorError]) -> TensorError:
    """The largest errors and the smallest cosine of several; if one has no figures, that one."""
    missing = next((d for d in differences if d.note), None)
    if missing is not None:
        return missing
    return TensorError(
        max(d.max_abs for d in differences),
        max(d.relative for d in differences),
        max(d.norm for d in differences),
        min(d.cosine for d in differences),
    )


def moments(tensor: Tensor) -> Moments:
    """Range, mean and standard deviation in float64; all None if a value is not finite."""
    if not bool(tensor.isfinite().all()):
        return Moments(min=None, max=None, mean=None, std=None)
    values = tensor.detach().double()
    return Moments(
        min=float(values.min()), max=float(values.max()), mean=float(values.mean()), std=float(values.std(correction=0))
    )
