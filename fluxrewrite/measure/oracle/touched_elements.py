"""The number of distinct elements of a buffer that a kernel accesses, from the index expressions of its loads and stores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

__all__ = ["Access", "touched"]

_FUNCTIONS = {
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "ModularIndexing": lambda x, divisor, modulus: (x // divisor) % modulus,
    "PythonMod": lambda a, b: a % b,
    "Mod": lambda a, b: a % b,
    "Identity": lambda x: x,
}


@dataclass(frozen=True)
class Access:
    """A load or store in a nest of loops: `index` over `variables`, each of which runs from 0 to its size - 1.

    If `index` is None, the address depends on data or on more than the loops, and the access covers the whole buffer.
    """

    index: sympy.Expr | None
    variables: tuple[sympy.Symbol, ...] = ()
    sizes: tuple[int, ...] = ()


def touched(size: int, accesses: Iterable[Access]) -> int:
    """Number of distinct elements of a buffer of `size` elements that `accesses` cover; addresses outside it do not count."""
    pending = tuple(accesses)
    if size == 0 or not pending:
        return 0
    if any(a.index is None for a in pending):
        return size
    if len(pending) == 1 and _covers(pending[0], size):
        return size
    seen = np.zeros(size, dtype=bool)
    for access in pending:
        _mark(seen, access)
    return int(np.count_nonzero(seen))


def _covers(access: Access, size: int) -> bool:
    return len(access.variables) == 1 and access.sizes[0] == size and access.index == access.variables[0]


def _mark(seen: np.ndarray[Any, np.dtype[np.bool_]], access: Access) -> None:
    index = sympy.sympify(access.index)
    if 0 in access.sizes:
        return
    steps = [index.coeff(v) for v in access.variables]
    offset = index - sum(s * v for s, v in zip(steps, access.variables, strict=True))
    numbers = [sympy.sympify(n) for n in (offset, *steps)]
    if all(n.is_Integer for n in numbers) and _inside(len(seen), numbers, access.sizes):
        start, strides = int(numbers[0]), [int(n) for n in numbers[1:]]
        np.lib.stride_tricks.as_strided(seen[start:], access.sizes, strides)[...] = True
        return
    grid = np.ogrid[tuple(slice(0, s) for s in access.sizes)]
    address = sympy.lambdify(access.variables, index, [_FUNCTIONS, "numpy"])(*grid)
    flat = np.asarray(address).reshape(-1)
    seen[flat[(flat >= 0) & (flat < len(seen))]] = True


def _inside(size: int, numbers: Sequence[sympy.Expr], sizes: Sequence[int]) -> bool:
    """Whether a linear index (offset, then a step for each variable) has no negative number and stays in the buffer."""
    last = numbers[0] + sum(step * (n - 1) for step, n in zip(numbers[1:], sizes, strict=True))
    return bool(min(numbers) >= 0 and last < size)
