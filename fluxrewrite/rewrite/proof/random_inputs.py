"""Random inputs of the kinds that models have: activations, weights, tables, masks, indices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...graph.shapes import hint
from .region import UNKNOWN

__all__ = ["Maker"]

DECADES = 2.0
"""Rows differ in magnitude by up to this power of ten. In small rows the epsilon of a norm shows, and a softmax is not one key."""


class Maker:
    """Makes tensors on the CPU from a seed.

    Args:
        seed: seed of all draws.
        index: integers are smaller than this.
    """

    def __init__(self, seed: int, index: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._index = index

    def __call__(self, like: Tensor, sizes: Sequence[int], dtype: torch.dtype, mask: bool = False) -> Tensor:
        """A tensor of `sizes`, with its axes in memory in the same order as those of `like`.

        A boolean tensor has a True and a False in each row. Tables of cosines and sines are normal numbers like all other inputs:
        an identity that holds for arbitrary numbers also holds for real angles, scaled or not.

        Args:
            like: a traced value.
            sizes: size of each axis.
            dtype: dtype of the result.
            mask: whether it is a mask that is added to scores: zeros, -inf and other numbers, at least one of them finite in each
                row.
        """
        # A region may call view(), which accepts some strides only. So the strides are ordered as in the traced graph.
        strides = [hint(s, UNKNOWN) for s in like.stride()]
        order = sorted(range(len(sizes)), key=lambda axis: (-strides[axis], axis))
        plain = self._values([sizes[axis] for axis in order], dtype, mask, order)
        return plain.permute([order.index(axis) for axis in range(len(sizes))])

    def _values(self, sizes: list[int], dtype: torch.dtype, mask: bool, order: list[int]) -> Tensor:
        last = order.index(len(order) - 1) if order else 0
        if dtype == torch.bool:
            return self._booleans(sizes, last)
        if dtype.is_floating_point and mask:
            return self._additive(sizes, last).to(dtype)
        if dtype.is_complex:
            parts = [self._normal(sizes) for _ in range(2)]
            return torch.complex(parts[0], parts[1]).to(dtype)
        if dtype.is_floating_point:
            return (self._normal(sizes) * self._rows(sizes, last)).to(dtype)
        return torch.randint(self._index, sizes, generator=self._generator).to(dtype)

    def _normal(self, sizes: Sequence[int]) -> Tensor:
        return torch.randn(sizes, generator=self._generator, dtype=torch.float64, device="cpu")

    def _uniform(self, sizes: Sequence[int]) -> Tensor:
        return torch.rand(sizes, generator=self._generator, dtype=torch.float64, device="cpu")

    def _rows(self, sizes: Sequence[int], last: int) -> Tensor:
        """A factor for each row; 1 for the first row, for vectors and for single numbers."""
        if len(sizes) < 2:
            return torch.ones((), dtype=torch.float64)
        rows = [1 if axis == last else n for axis, n in enumerate(sizes)]
        factors = 10 ** (-DECADES * self._uniform(rows))
        factors.view(-1)[:1] = 1.0
        return factors

    def _picked(self, sizes: Sequence[int], last: int) -> Tensor:
        """One index in each row."""
        rows = [1 if axis == last else n for axis, n in enumerate(sizes)]
        return torch.randint(sizes[last], rows, generator=self._generator)

    def _booleans(self, sizes: Sequence[int], last: int) -> Tensor:
        found = self._uniform(sizes) < 0.7
        # A row without a key to attend to gives NaN, and one that excludes no key does not show whether the mask is used.
        if not sizes or sizes[last] < 2:
            return found
        place = self._picked(sizes, last)
        return found.scatter_(last, place, True).scatter_(last, (place + 1) % sizes[last], False)

    def _additive(self, sizes: Sequence[int], last: int) -> Tensor:
        kind = self._uniform(sizes)
        found = torch.where(kind < 0.6, self._normal(sizes), torch.zeros(sizes, dtype=torch.float64))
        found = found.masked_fill(kind < 0.3, -math.inf)
        return (
            found.scatter_(last, self._picked(sizes, last), 0.0) if sizes else torch.zeros(sizes, dtype=torch.float64)
        )
