"""Sizes and shapes, concrete or symbolic: comparisons that add no guard, and one hint for a symbolic size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..errors import RewriteError

__all__ = ["LEFT_OUT", "SYMBOLS", "Dim", "Shape", "hint", "hints", "same_dim", "same_shape", "size_of"]

Dim = Any  # int or torch.SymInt
Shape = tuple[Dim, ...]
LEFT_OUT = 1
"""Fallback of `hint` where bytes and times are predicted: a size that is not known multiplies nothing."""
SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def same_dim(a: Dim, b: Dim) -> bool:
    """True when two sizes are equal for certain; never adds a guard to a symbolic size."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(statically_known_true(a == b))


def size_of(dim: Dim) -> int | str:
    """A size as an int where it is known, also when Dynamo has specialised a symbol; else the text of the symbol."""
    known = dim if isinstance(dim, int) else dim.node.maybe_as_int()
    return str(dim) if known is None else int(known)


def same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """True when two shapes are equal for certain."""
    return len(a) == len(b) and all(same_dim(x, y) for x, y in zip(a, b, strict=True))


def hint(number: Any, unknown: int | None) -> Any:
    """A size or number as it was when the graph was traced; anything that is not symbolic is returned as it is.

    Args:
        number: an int, float or bool, symbolic or not.
        unknown: the value of each symbol that only a run of the model can determine, such as the length of `nonzero`.

    Raises:
        RewriteError: `unknown` is None, or `number` is a float or bool, and it has no value before the model runs.
    """
    if not isinstance(number, SYMBOLS):
        return number
    if number.node.has_hint():
        return number.node.hint
    if unknown is None or not isinstance(number, torch.SymInt):
        raise RewriteError(f"{number} is not known before the model runs")
    env, size = number.node.shape_env, number.node.expr
    known = env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val  # its name before torch 2.10
    return int(size.xreplace({s: known.get(s, unknown) for s in size.free_symbols}))


def hints(shape: Iterable[Dim], unknown: int | None) -> tuple[int, ...]:
    """`hint` of each size of a shape. Raises RewriteError as `hint` does."""
    return tuple(hint(n, unknown) for n in shape)
