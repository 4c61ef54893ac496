"""Shared by the commands: names of dtypes and formats, progress on stderr, writing of files."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..errors import InputError

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    import torch
    from rich.console import RenderableType

__all__ = [
    "Dtype",
    "Format",
    "PolicyName",
    "ProofName",
    "Regime",
    "counted",
    "progress",
    "show",
    "torch_dtype",
    "writable",
    "write",
]


class Format(StrEnum):
    """Output formats of most commands; `inspect` and `show` have more (`formats.py`)."""

    TEXT = "text"
    JSON = "json"


class Dtype(StrEnum):
    """Dtypes of weights and activations."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


class PolicyName(StrEnum):
    """Policies of `inspect`."""

    AUTO = "auto"
    ALL = "all"
    NONE = "none"


class ProofName(StrEnum):
    """How a site is checked before it is replaced (`fluxrewrite.backend(proof=...)`)."""

    NUMERIC = "numeric"
    STRUCTURAL = "structural"


class Regime(StrEnum):
    """How graphs run on the device."""

    COMPILE = "compile"
    LAZY = "lazy"


@contextlib.contextmanager
def progress(what: str, shown: bool = True) -> Iterator[None]:
    """A spinner with the time taken, on stderr if that is a terminal. Logs of other libraries are silenced meanwhile."""
    logging.disable(logging.ERROR)  # torch and diffusers log at length an error that is then shown in one line
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        progress.add_task(what)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar for `total` steps, on stderr if that is a terminal. Yields a function to call after each step, with its name."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda text: bar.update(task, advance=1, description=f"{what} {text}")


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The `torch.dtype` with this name."""
    import torch

    return {Dtype.BF16: torch.bfloat16, Dtype.FP16: torch.float16, Dtype.FP32: torch.float32}[dtype]


def writable(path: Path | None) -> None:
    """Raise InputError where no file can be written; called before the work, so that it is not lost."""
    if path is not None and not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    if path is not None and path.is_dir():
        raise InputError(f"{path} is a folder; give a file name")


def show(content: RenderableType, path: Path | None = None) -> None:
    """Print on the terminal, or write to a file as plain text of 100 columns."""
    if path is None:
        Console().print(content)
        return
    console = Console(width=100, file=io.StringIO())
    with console.capture() as captured:
        console.print(content)
    write(captured.get(), path)


def write(text: str, path: Path | None) -> None:
    """Write to a file, or to the terminal. Raises InputError when the file cannot be written."""
    if path is None:
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
