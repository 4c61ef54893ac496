"""The exceptions of fluxrewrite.

FluxrewriteError
├── InputError     an input cannot be used; the message names it and the remedy (the CLI exits with 2)
├── RankError      another process of the same run ended, failed or did not answer in time
├── RewriteError   a replacement did not keep shape, dtype or device, and the site is left alone; or ranks plan differently
└── CheckFailed    a check or budget failed (the CLI exits with 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CheckFailed",
    "FluxrewriteError",
    "InputError",
    "KernelCall",
    "RankError",
    "RewriteError",
    "call_of",
    "mark",
    "one_line",
    "signature",
]

_MARK = "fluxrewrite_call"


class FluxrewriteError(Exception):
    """Base of every error that fluxrewrite raises on purpose."""


class InputError(FluxrewriteError):
    """An argument, file, model or package cannot be used. The message is one line: what is wrong, and what would work."""


class RewriteError(FluxrewriteError):
    """A rewrite would change the shape, dtype or device of a value, or would not be the same on every rank."""


class RankError(FluxrewriteError):
    """Another rank ended, failed, or did not answer in time."""


class CheckFailed(FluxrewriteError):
    """Checks that the user requested failed: one argument for each, shown as a line."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


@dataclass(frozen=True)
class KernelCall:
    """The kernel that an error came from, and the shapes and dtypes of its arguments.

    Attributes:
        kernel: name of the kernel.
        signature: (shape, dtype) of each tensor argument.
    """

    kernel: str
    signature: tuple[Any, ...]


def mark(error: Exception, kernel: str, arguments: Sequence[Any]) -> None:
    """Record on an error which kernel call it came from."""
    # An attribute and not a wrapping exception: compilers and users catch the errors of torch by their types.
    setattr(error, _MARK, KernelCall(kernel, signature(arguments)))


def call_of(error: BaseException) -> KernelCall | None:
    """The kernel call that an error came from; None if it was not marked."""
    return getattr(error, _MARK, None)


def one_line(error: BaseException, named: bool = True) -> str:
    """An error in one line, for a message, a report or a log: "ValueError: no such size".

    Messages of compilers and of pydantic run over many lines; the first one that is not blank says what happened.

    Args:
        error: any exception.
        named: put the name of its type first. Leave it out where the type tells the reader nothing, as with `InputError`.

    Returns:
        The line, stripped. For an error without a message, "ValueError: no message", or the name alone unless `named`.
    """
    name = type(error).__name__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not named:
        return line or name
    return f"{name}: {line or 'no message'}"


def signature(values: Any) -> tuple[Any, ...]:
    """(shape, dtype) of each tensor in `values`, also in nested lists and tuples."""
    if isinstance(values, (list, tuple)):
        return tuple(s for v in values for s in signature(v))
    return ((tuple(values.shape), values.dtype),) if hasattr(values, "shape") and hasattr(values, "dtype") else ()
