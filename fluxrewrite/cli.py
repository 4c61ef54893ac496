"""The command line: `fluxrewrite inspect`, `fluxrewrite kernels`."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .errors import FluxrewriteError, InputError

if TYPE_CHECKING:  # torch takes a second to import: not for --help
    import torch

__all__ = ["app", "main"]

app = typer.Typer(
    name="fluxrewrite",
    help="Find what NKI kernels can replace in a diffusers transformer, before any compile.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Format(StrEnum):
    """Output formats of `inspect`."""

    TEXT = "text"
    JSON = "json"


class Dtype(StrEnum):
    """Dtypes of weights and activations."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


class PolicyName(StrEnum):
    """Policies of `inspect`."""

    ALL = "all"
    NONE = "none"


@app.callback()
def _group() -> None:
    """Find what NKI kernels can replace in a diffusers transformer, before any compile."""


@app.command(
    epilog="Exit codes: 0 done, 2 bad input. Example: fluxrewrite inspect flux2-klein-4b --kernels qkv:triple,attention"
)
def inspect(
    model: Annotated[str, typer.Argument(help="Preset (flux2-klein-4b, flux2-klein-9b, flux2-dev, flux1-dev), diffusers folder or "
                                         "config.json, or module:callable that returns (model, inputs).")],
    image_tokens: Annotated[int, typer.Option(help="Image tokens; a 1024x1024 picture is 4096 of them.")] = 256,
    text_tokens: Annotated[int, typer.Option(help="Text tokens.")] = 512,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 1,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of weights and activations.")] = Dtype.BF16,
    kernels: Annotated[str | None, typer.Option(help="Kinds, with an optional form: qkv:triple,attention. Default: all.")] = None,
    policy: Annotated[PolicyName, typer.Option(help="all: rewrite every eligible site; none: only report.")] = PolicyName.ALL,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Trace with symbolic sizes.")] = False,
    format: Annotated[Format, typer.Option(help="text for people, json for programs.")] = Format.TEXT,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.")] = None,
) -> None:  # fmt: skip
    """Trace MODEL without weights and report which parts of it kernels can replace, and why not more."""
    from .analysis import inspect_spec
    from .models import Shapes, find_model
    from .plan import Selection

    shapes = Shapes(image_tokens, text_tokens, batch)
    Selection.of(kernels)  # a wrong name is told before the model is traced
    spec = find_model(model)
    _writable(output)
    with _progress(f"tracing {model}"):
        report = inspect_spec(spec, shapes, _torch_dtype(dtype), kernels=kernels, policy=policy.value, dynamic=dynamic)
    if format is Format.JSON:
        _write(report.to_json(), output)
        return
    from .report.text import render

    if output is None:
        render(report, Console())
        return
    console = Console(width=100, file=io.StringIO())
    with console.capture() as captured:
        render(report, console)
    _write(captured.get(), output)


@app.command()
def kernels() -> None:
    """List the kernels, what each takes, and the limits within which it is used."""
    from rich.table import Table

    from .kernel import load_kernels
    from .plan import Selection

    selection = Selection.of(None)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in ("kernel", "provider", "limits", "forms found", "what it does"):
        table.add_column(name, overflow="fold")
    for kernel in load_kernels().values():
        forms = [f for p in selection.passes.values() if p.kernel == kernel.name for f in p.forms]
        limits = "; ".join(map(str, kernel.limits)) or "none"
        table.add_row(kernel.name, kernel.provider, limits, ", ".join(forms), kernel.summary)
    Console().print(table)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """A spinner with the time taken, on stderr, only where somebody looks; other libraries' logs are kept quiet."""
    logging.disable(logging.ERROR)  # torch and diffusers log at length what then comes as one line
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _torch_dtype(dtype: Dtype) -> torch.dtype:
    import torch

    return {Dtype.BF16: torch.bfloat16, Dtype.FP16: torch.float16, Dtype.FP32: torch.float32}[dtype]


def _writable(path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    if path is not None and path.is_dir():
        raise InputError(f"{path} is a folder; give a file name")


def _write(text: str, path: Path | None) -> None:
    if path is None:
        sys.stdout.write(text)
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 a check failed, 2 bad input; one line on stderr for each."""
    args = sys.argv[1:] if args is None else args
    try:
        result = app(args=args or ["--help"], prog_name="fluxrewrite", standalone_mode=False)
    except InputError as error:
        return _fail(str(error), 2)
    except FluxrewriteError as error:
        return _fail(str(error), 1)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's usage errors; their classes are private to it
            raise
        where = getattr(getattr(error, "ctx", None), "command_path", "fluxrewrite")
        return _fail(f"{error.format_message().replace('Value error, ', '')} (see {where} --help)", 2)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"fluxrewrite: {' '.join(message.split())}\n")
    return code
