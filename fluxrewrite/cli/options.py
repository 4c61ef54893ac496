"""Commands whose options are the fields of a frozen dataclass, and the options that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

__all__ = [
    "Batch",
    "Execution",
    "ImageTokens",
    "Output",
    "RankTimeout",
    "Seed",
    "TensorParallel",
    "TextTokens",
    "options_from",
]

T = TypeVar("T")

ImageTokens = Annotated[int, typer.Option(help="Number of image tokens; a 1024x1024 image has 4096.")]
TextTokens = Annotated[int, typer.Option(help="Number of text tokens.")]
Batch = Annotated[int, typer.Option(help="Batch size.")]
Seed = Annotated[int, typer.Option(help="Seed of random weights and inputs.")]
TensorParallel = Annotated[
    int | None,
    typer.Option(help="Number of ranks to divide MODEL among; it has to be the number that torchrun started."),
]
RankTimeout = Annotated[float, typer.Option(help="Under torchrun: how many seconds a rank waits for another.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of standard output.")]


class Execution(StrEnum):
    """What a kernel call runs."""

    REFERENCE = "reference"
    EMULATE = "emulate"
    DEVICE = "device"


def options_from(record: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Decorate a function of one frozen dataclass, so that typer sees an option for each field.

    Typer reads options off a signature. Written out, the signature of a command with twenty options fills a screen, and its body
    has to pass each of them on by name; as a record they are declared once and passed on as a whole.

    Args:
        record: a dataclass whose fields are annotated as typer's parameters are. Its docstring is not shown; the help text is
            the docstring of the decorated function.
    """
    hints = get_type_hints(record, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(record)  # type: ignore[arg-type]
    ]

    def decorate(run: Callable[[T], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            run(record(**given))

        command.__name__, command.__doc__ = run.__name__, run.__doc__
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate
