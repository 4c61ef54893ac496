"""What can go wrong, as exceptions.

FluxrewriteError
├── InputError     what the user gave cannot be used; the message names it and the remedy (the CLI exits with 2)
├── RankError      another process of the same run ended, failed or did not answer in time
├── RewriteError   a replacement did not keep shape, dtype or device, and the site is left alone; or ranks plan differently
└── CheckFailed    a check or budget did not hold (the CLI exits with 1)
"""

from __future__ import annotations

__all__ = ["CheckFailed", "FluxrewriteError", "InputError", "RankError", "RewriteError"]


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
