"""Sizes and shapes, concrete or symbolic: comparisons that add no guard, and the value of a symbolic size when it was traced."""

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
"""Fallback of `hint` for predictions of bytes and times. An unknown size then leaves the product as it is."""
SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def same_dim(a: Dim, b: Dim) -> bool:
    """Whether two sizes are provably equal."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    # `a == b` of SymInts in an `if` would guard on the answer, and the user's model would recompile for other sizes.
    return bool(statically_known_true(a == b))


def size_of(dim: Dim) -> int | str:
    """A size as an int if it is known, also when Dynamo has specialised its symbol; else the text of the symbol."""
    known = dim if isinstance(dim, int) else dim.node.maybe_as_int()
    return str(dim) if known is None else int(known)


def same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes are provably equal."""
    return len(a) == len(b) and all(same_dim(x, y) for x, y in zip(a, b, strict=True))


def hint(number: Any, unknown: int | None) -> Any:
    """The value that a size or number had when the graph was traced. A number that is not symbolic is returned unchanged.

    Args:
        number: an int, float or bool, symbolic or not.
        unknown: value to use for each symbol that only a run of the model determines, such as the length of `nonzero`. None to
            raise instead.

    Raises:
        RewriteError: `number` has no value before the model runs, and either `unknown` is None or `number` is a float or bool.
    """
    if not isinstance(number, SYMBOLS):
        return number
    if number.node.has_hint():
        return number.node.hint
    if unknown is None or not isinstance(number, torch.SymInt):
        raise RewriteError(f"{number} is not known before the model runs")
    # `node.hint` exists for an expression of known symbols only. So the known ones among its symbols are filled in one by one.
    env, size = number.node.shape_env, number.node.expr
    known = env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val  # its name before torch 2.10
    return int(size.xreplace({s: known.get(s, unknown) for s in size.free_symbols}))


def hints(shape: Iterable[Dim], unknown: int | None) -> tuple[int, ...]:
    """`hint` of each size of a shape. Raises RewriteError as `hint` does."""
    return tuple(hint(n, unknown) for n in shape)
