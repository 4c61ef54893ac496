"""The command line, with one file per command."""

from __future__ import annotations

import sys

import typer

from ..errors import CheckFailed, FluxrewriteError, InputError
from . import kernels
from .bench import bench
from .calibrate import calibrate
from .devices import devices
from .diff import diff
from .inspect import inspect
from .show import show
from .verify import OptionalKernels, verify

__all__ = ["app", "main"]

app = typer.Typer(
    name="fluxrewrite",
    help="Find the parts of a diffusers transformer that NKI kernels can replace, and predict what each kernel call costs, before "
    "anything is compiled. No weights, GPU or Neuron device are needed. Every figure states its basis: measured, modelled or "
    "assumed.",
    epilog="Start with: fluxrewrite inspect flux2-klein-4b. For examples and exit codes: fluxrewrite COMMAND --help.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command(
    short_help="Report what kernels can replace, and why not the rest.",
    epilog="The report contains the predicted effect and its basis, a verdict for each kind of kernel, the memory traffic and the "
    "broken fusions of each kernel call, and a reason for every site that is not replaced. Nothing is compiled or run. "
    "Exit codes: 0 success, 1 a limit is exceeded, 2 bad input. "
    "Example: fluxrewrite inspect flux2-klein-4b --kernels qkv:triple,attention --fail-on 'predicted_slowdown>1.02'",
)(inspect)
app.command(
    short_help="Compare two reports.",
    epilog="Exit codes: 0 success, 1 the reports differ and --exit-code is given, 2 bad input. "
    "Example: fluxrewrite diff old.json new.json",
)(diff)
app.command(
    short_help="Show a saved report in another format.",
    epilog="Exit codes: 0 success, 2 bad input. Example: fluxrewrite show report.json --format html -o report.html",
)(show)
app.command(
    cls=OptionalKernels,
    short_help="Compare a model with and without kernels.",
    epilog="Exit codes: 0 everything is within its limits, 1 a limit is exceeded, 2 bad input or nothing to rewrite. "
    "Examples: fluxrewrite verify flux2-klein-mini --kernels qkv,attention; fluxrewrite verify --kernels --quick",
)(verify)
app.command(
    short_help="Time denoising loops with and without kernels.",
    epilog="Exit codes: 0 success, 1 a variant failed, 2 bad input or a file that cannot be written, 130 interrupted. Except for "
    "bad input, a table of the finished runs is always printed. Example: fluxrewrite bench flux2-klein-mini --save runs.json",
)(bench)
app.add_typer(kernels.app, name="kernels", short_help="List kernels and their limits; profile a call.")
app.command(
    short_help="List device profiles and the source of each figure.",
    epilog="Exit codes: 0 success, 2 bad input. Example: fluxrewrite devices trn2",
)(devices)
app.command(
    short_help="Measure this machine, or turn runs into evidence.",
    epilog="Exit codes: 0 success, 2 bad input. Examples: fluxrewrite calibrate --quick -o here.json; "
    "fluxrewrite calibrate --from runs.json -o evidence.json",
)(calibrate)


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 for success, 1 if a check failed, 2 for bad input, 130 if interrupted.

    An error is one line on stderr; a failed check has one line for each limit that is exceeded.

    Args:
        args: the arguments without the program's name; those of the process when None.
    """
    args = sys.argv[1:] if args is None else args
    try:
        result = app(args=args or ["--help"], prog_name="fluxrewrite", standalone_mode=False)
    except InputError as error:
        return _fail(str(error), 2)
    except CheckFailed as error:
        return max(_fail(str(line), 1) for line in error.args)
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
