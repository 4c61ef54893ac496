"""Arithmetic on shapes and strides, shared by the views."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import HardwareLimit, fail


def normal_index(index: int, size: int, what: str) -> int:
    """Return ``index`` counted from 0, refusing one outside ``size``."""
    i = index + size if index < 0 else index
    if not 0 <= i < size:
        fail(HardwareLimit.INDEX, what, f"index {index} is outside a dimension of size {size}")
    return i


def slice_bounds(key: slice, size: int, dim: int) -> tuple[int, int, int]:
    """Return ``(start, count, step)`` of a slice; out-of-range, empty and backward slices are errors."""
    step = 1 if key.step is None else int(key.step)
    start = 0 if key.start is None else int(key.start)
    stop = size if key.stop is None else int(key.stop)
    start = start + size if start < 0 else start
    stop = stop + size if stop < 0 else stop
    if step < 1 or not 0 <= start < stop <= size:
        fail(HardwareLimit.INDEX, "slice", f"{start}:{stop}:{step} of dimension {dim}, which has size {size}")
    return start, -(-(stop - start) // step), step


def infer_sizes(shape: Sequence[int], total: int, what: str) -> list[int]:
    """Return ``shape`` with a -1 resolved so that it holds ``total`` elements."""
    sizes = [int(n) for n in shape]
    if sizes.count(-1) == 1:
        known = math.prod(n for n in sizes if n != -1)
        sizes[sizes.index(-1)] = total // known if known else 0
    if math.prod(sizes) != total or any(n < 1 for n in sizes):
        fail(HardwareLimit.VIEW, what, f"{list(shape)} does not hold {total} elements")
    return sizes


def merge_dims(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return ``(count, stride)`` groups: size-1 dimensions dropped, contiguous neighbours merged."""
    out: list[tuple[int, int]] = []
    for n, s in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if out and out[-1][1] == s * n:
            out[-1] = (out[-1][0] * n, s)
        else:
            out.append((n, s))
    return out


def restride(merged: list[tuple[int, int]], sizes: Sequence[int]) -> list[int] | None:
    """Return strides that lay ``sizes`` over the merged ``(count, stride)`` groups, or None."""
    groups = list(reversed(merged))
    out: list[int] = []
    left, stride = groups.pop(0) if groups else (1, 1)
    for n in reversed(sizes):
        if left == 1 and n > 1:
            if not groups:
                return None
            left, stride = groups.pop(0)
        if left % n:
            return None
        out.append(stride)
        left //= n
        stride *= n
    return list(reversed(out)) if left == 1 and not groups else None


def bounding_box(
    base: Sequence[int], base_strides: Sequence[int], shape: Sequence[int], strides: Sequence[int], offset: int
) -> tuple[tuple[int, int], ...]:
    """Return ``(first, last)`` per dimension of the row-major ``base`` that a view's elements stay within."""
    lo, rest = [], offset
    for s in base_strides:
        q, rest = divmod(rest, s)
        lo.append(q)
    hi, spread = list(lo), len(base)
    for stride, n in zip(strides, shape, strict=True):
        if n == 1 or stride == 0:
            continue
        k = next(i for i, s in enumerate(base_strides) if s <= stride)
        q, rest = divmod((n - 1) * stride, base_strides[k])
        hi[k] += q
        if stride % base_strides[k]:
            # The steps drift through the inner dimensions and may carry into this one.
            hi[k] += 1
            spread = min(spread, k + 1)
    for k in range(len(base) - 1, 0, -1):
        if hi[k] >= base[k] or k >= spread:
            hi[k - 1] += hi[k] // base[k]
            lo[k], hi[k] = 0, base[k] - 1
    hi[0] = min(hi[0], base[0] - 1)
    return tuple(zip(lo, hi, strict=True))
