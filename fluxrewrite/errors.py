"""What can go wrong, as exceptions.

FluxrewriteError
├── InputError     what the user gave cannot be used; the message names it and the remedy (the CLI exits with 2)
├── RankError      another process of the same run ended, failed or did not answer in time
├── RewriteError   a replacement did not keep shape, dtype or device, and the site is left alone; or ranks plan differently
└── CheckFailed    a check or budget did not hold (the CLI exits with 1)
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
    """An argument, file, model or package that cannot be used. One line: what was wrong, and what would work."""


class RewriteError(FluxrewriteError):
    """A rewrite that would change shape, dtype or device of a value, or that is not the same on every rank."""


class RankError(FluxrewriteError):
    """Another rank ended, failed, or did not answer in time."""


class CheckFailed(FluxrewriteError):
    """Checks that the user asked for did not hold: an argument for each, shown as a line."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


@dataclass(frozen=True)
class KernelCall:
    """Which kernel an error came from, and the shapes and dtypes of the tensors that it was given."""

    kernel: str
    signature: tuple[Any, ...]


def mark(error: Exception, kernel: str, arguments: Sequence[Any]) -> None:
    """Note on an error which kernel call it came from; the error stays what it is."""
    setattr(error, _MARK, KernelCall(kernel, signature(arguments)))


def call_of(error: BaseException) -> KernelCall | None:
    """The kernel call that an error is marked with."""
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
    """Shapes and dtypes of the tensors among some values, whatever holds them."""
    if isinstance(values, (list, tuple)):
        return tuple(s for v in values for s in signature(v))
    return ((tuple(values.shape), values.dtype),) if hasattr(values, "shape") and hasattr(values, "dtype") else ()
