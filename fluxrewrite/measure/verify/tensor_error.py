"""How far one tensor is from another, in float64 and a piece at a time."""

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
"""Least cosine, as the published experiments had it; it goes with an error of 1.4 % of the norm."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1.25e-3}
"""Greatest error relative to the largest expected value, by the dtype of a site.

One unit in the last place of the largest value is at most 2^-7 of it in bfloat16 (0.78 %) and 2^-10 in float16 (0.098 %): the
limits let one such step pass, and not two. Float32 has units of 2^-23; sums of some thousand products in another order differ
by ten of these, 1e-6, and the limit is ten times that, as in `fluxrewrite verify --kernels`.
"""
NORM = 0.5
"""Greatest norm of the error over the norm expected, as a share of the tolerance.

Two roundings of each value leave at most 0.23 % of the norm in bfloat16, however large the error of one value; the emulated
norm_rope_attention, which rounds q and k after the norm, leaves 0.37 %. A factor that is 1 % off leaves 1 %.
"""
_CHUNK = 1 << 22


@dataclass(frozen=True)
class TensorError:
    """What lies between two tensors of one shape.

    Attributes:
        max_abs: greatest absolute error.
        relative: that error over the largest absolute value expected.
        norm: norm of the error over the norm expected.
        cosine: of the two as vectors; 1 where they are equal.
        note: why there are no figures, which are NaN then; "" where there are.
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
    """`given`, or the limit of a dtype; that of float32 for dtypes without one."""
    return TOLERANCES.get(dtype, TOLERANCES[torch.float32]) if given is None else given


def least_cosine(tolerance: float) -> float:
    """0.9999, or less where a larger error is allowed: an error of t in the norm alone makes the cosine 1 - t^2 / 2."""
    return min(COSINE, 1 - tolerance**2 / 2)


def difference(found: Tensor, expected: Tensor) -> TensorError:
    """Compare two tensors of any float dtype; a shape or dtype that differs, NaN and inf leave a note and no figures."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        what, wanted = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (found, expected))
        return TensorError.none(f"the replacement gives {what}, expected {wanted}")
    for name, tensor in (("original", expected), ("replacement", found)):
        if not bool(tensor.isfinite().all()):
            return TensorError.none(f"the {name} computes NaN or inf")
    largest = error = off = product = size = other = 0.0
    for a, b in _pieces(found, expected):
        apart = a - b
        largest, error = max(largest, float(b.abs().max())), max(error, float(apart.abs().max()))
        off += float(apart @ apart)
        product, size, other = product + float(a @ b), size + float(b @ b), other + float(a @ a)
    if error == 0:
        return TensorError(0.0, 0.0, 0.0, 1.0)
    if size == 0:
        return TensorError.none(f"up to {error:.2g} where only zeros are expected")
    cosine = min(product / math.sqrt(size) / math.sqrt(other), 1.0) if other else 0.0
    return TensorError(error, error / largest, math.sqrt(off / size), cosine)


def _pieces(found: Tensor, expected: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both as float64 vectors, piece by piece: a copy of all would take eight bytes a value."""
    a, b = found.detach().reshape(-1), expected.detach().reshape(-1)
    for start in range(0, a.numel(), _CHUNK):
        yield a[start : start + _CHUNK].double(), b[start : start + _CHUNK].double()


def worst(differences: Sequence[TensorError]) -> TensorError:
    """The greatest errors and the least cosine of several; the first without figures, if there is one."""
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
    """Range, mean and standard deviation in float64; no figures where one value is not finite."""
    if not bool(tensor.isfinite().all()):
        return Moments(min=None, max=None, mean=None, std=None)
    values = tensor.detach().double()
    return Moments(
        min=float(values.min()), max=float(values.max()), mean=float(values.mean()), std=float(values.std(correction=0))
    )
