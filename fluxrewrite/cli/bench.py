"""`fluxrewrite bench`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CheckFailed, InputError, RankError
from ..measure.bench import DEFAULT_VARIANTS
from .common import Dtype, progress, show, torch_dtype, writable, write
from .options import (
    Batch,
    Execution,
    ImageTokens,
    Output,
    RankTimeout,
    Seed,
    TensorParallel,
    TextTokens,
    options_from,
)
from .ranks import leads, ranked, terminable

if TYPE_CHECKING:
    from ..cost.runs import Runs, Setup
    from ..measure.bench.variants import Chosen
    from ..measure.rendezvous import RankGroup

__all__ = ["bench"]

_SLOW = 2.0  # about half of the smallest ratio seen without bfloat16 instructions: see `bfloat16_slowdown`


class TableFormat(StrEnum):
    """Output formats of `bench`."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


@dataclass(frozen=True)
class BenchArguments:
    """The command line of `fluxrewrite bench`."""

    model: Annotated[
        str,
        typer.Argument(
            help="A preset (flux2-klein-mini suits small machines), a diffusers folder or config.json, or module:callable, as for "
            "inspect. Weights are random unless a folder has its own."
        ),
    ]
    variants: Annotated[
        str,
        typer.Option(
            help="Comma-separated variants to run, in this order. vanilla: torch.compile alone, the baseline of all others; "
            "eager: no compile; kernels as for inspect, joined by + (qkv:triple+attention): only these, at every site; "
            "auto, measure, all, none: that policy."
        ),
    ] = DEFAULT_VARIANTS
    inner: Annotated[
        str | None,
        typer.Option(
            help="Backend that compiles. Default: neuron if it is installed with a device, otherwise inductor."
        ),
    ] = None
    steps: Annotated[int, typer.Option(help="Number of steps in a denoising loop.")] = 4
    runs: Annotated[int, typer.Option(help="Number of loops per variant; the first is cold, the rest are warm.")] = 4
    image_tokens: ImageTokens = 256
    text_tokens: TextTokens = 512
    batch: Batch = 1
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Dtype of weights and activations. Default: bf16, or fp32 on a CPU where a bf16 matrix product takes more than "
            "twice as long."
        ),
    ] = None
    provider: Annotated[
        str | None,
        typer.Option(
            help="Provider of the kernels, as for inspect. Default: builtin, or reference with --execution reference, where no "
            "limit of a provider excludes a site."
        ),
    ] = None
    execution: Annotated[
        Execution | None,
        typer.Option(
            help="What a kernel call runs. reference: the op's body in torch; emulate: the NKI kernel in the emulator (slow); "
            "device: the NKI kernel on the device. Default: device with --inner neuron, or openxla with Neuron's packages, "
            "otherwise reference."
        ),
    ] = None
    device: Annotated[str, typer.Option(help="Torch device to run on: cpu, cuda, neuron.")] = "cpu"
    profile: Annotated[
        str | None,
        typer.Option(
            help="Device profile that the policy auto predicts with, like --device of inspect. Default: trn2 with --inner neuron, "
            "otherwise cpu."
        ),
    ] = None
    evidence: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="File of measured runs for the policy auto, in addition to those shipped. Can be repeated.",
        ),
    ] = None
    seed: Seed = 0
    threads: Annotated[int | None, typer.Option(help="Number of torch threads. Default: torch's own.")] = None
    timeout: Annotated[float | None, typer.Option(help="Time limit of a variant in seconds. Default: none.")] = None
    tp: TensorParallel = None
    rank_timeout: RankTimeout = 300.0
    save: Annotated[
        Path | None,
        typer.Option(help="Write all runs to this JSON file, updated after each one, for calibrate --from."),
    ] = None
    format: Annotated[
        TableFormat,
        typer.Option(help="text or markdown: a table; csv: one row per variant; json: what --save writes."),
    ] = TableFormat.TEXT
    output: Output = None

    def check(self) -> None:
        """Raise InputError for a number below its minimum."""
        minima = (
            ("steps", self.steps, 1),
            ("runs", self.runs, 1),
            ("seed", self.seed, 0),
            ("threads", self.threads, 1),
        )
        for name, value, least in minima:
            if value is not None and value < least:
                raise InputError(f"--{name} {value}: must be {least} or more")
        if self.timeout is not None and not self.timeout > 0:
            raise InputError(f"--timeout {self.timeout:g}: must be more than 0 seconds")


@options_from(BenchArguments)
def bench(arguments: BenchArguments) -> None:
    """Time denoising loops of MODEL with and without kernels.

    Each variant runs in a process of its own, with empty compiler caches. Its first loop is the cold run, the rest are warm.

    To divide MODEL among four ranks, run torchrun --nproc-per-node 4 -m fluxrewrite bench MODEL (gloo, on the CPU). A step then
    takes as long as on the slowest rank, and the first rank prints and saves.
    """
    with ranked(arguments.tp, arguments.rank_timeout) as rank_group:
        arguments.check()
        if leads(rank_group):
            writable(arguments.save)
            writable(arguments.output)
        with progress("checking", leads(rank_group)):
            from ..measure.bench.variants import parse_variants

            setup = _setup(arguments, rank_group)
            chosen = parse_variants(arguments.variants)
            _check(setup, chosen, rank_group)
        _run(arguments, setup, chosen, rank_group)


def _setup(arguments: BenchArguments, rank_group: RankGroup | None) -> Setup:
    """What the workers run, with the defaults that depend on this machine filled in."""
    from ..cost.runs import Setup
    from ..dynamo.inner import default_inner, inner_backend
    from ..models.registry import Shapes

    inner = arguments.inner or default_inner()
    runs_on = arguments.execution.value if arguments.execution else inner_backend(inner).default_execution()
    dtype = arguments.dtype or _dtype(arguments.device, rank_group)
    # Setup refuses bad sizes as well, but only Shapes names the option that has to change.
    shapes = Shapes(arguments.image_tokens, arguments.text_tokens, arguments.batch)
    return Setup(
        model=arguments.model,
        image_tokens=shapes.image_tokens,
        text_tokens=shapes.text_tokens,
        batch=shapes.batch,
        dtype=str(torch_dtype(dtype)).removeprefix("torch."),
        inner=inner,
        provider=arguments.provider or ("reference" if runs_on == "reference" else "builtin"),
        execution=runs_on,
        device=arguments.device,
        profile=arguments.profile,
        evidence=tuple(map(str, arguments.evidence or ())),
        seed=arguments.seed,
        threads=arguments.threads,
        steps=arguments.steps,
        runs=arguments.runs,
    )


def _dtype(device: str, rank_group: RankGroup | None) -> Dtype:
    """bfloat16, which models run in, unless it makes matrix products slow on this CPU.

    The first rank decides for all: ranks that measured near the threshold would otherwise disagree.
    """
    if device != "cpu":
        return Dtype.BF16
    from ..measure.bench.default_dtype import bfloat16_slowdown

    mine = Dtype.FP32 if bfloat16_slowdown() > _SLOW else Dtype.BF16
    return mine if rank_group is None else Dtype(rank_group.gather("dtype", mine.value)[0])


def _check(setup: Setup, chosen: tuple[Chosen, ...], rank_group: RankGroup | None) -> None:
    """Raise InputError, on every rank, if one of them refuses what the workers are to run."""
    from ..measure.bench.run import check_setup

    if rank_group is None:
        check_setup(setup, chosen)
    else:
        rank_group.together("checking the setup", lambda: check_setup(setup, chosen, rank_group.here.world))


class _Kept:
    """The runs so far, and the file that they are saved in.

    A file that cannot be written does not stop the bench: the error is printed at once and raised at the end, unless a later
    write succeeds.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.runs: Runs | None = None
        self.problem: InputError | None = None

    def __call__(self, runs: Runs) -> None:
        from ..cost.runs import save_runs

        self.runs = runs
        if self.path is None:
            return
        try:
            save_runs(runs, self.path)
        except InputError as error:
            if self.problem is None:
                sys.stderr.write(f"fluxrewrite: {error}; the bench goes on\n")
            self.problem = error
        else:
            self.problem = None


def _run(arguments: BenchArguments, setup: Setup, chosen: tuple[Chosen, ...], rank_group: RankGroup | None) -> None:
    """Run all variants, print the table of what finished, and raise what went wrong.

    The table comes first in every case: an interrupted bench has taken minutes, and what finished is still good.
    """
    from ..measure.bench.run import bench as run_all

    kept = _Kept(arguments.save if leads(rank_group) else None)
    stopped: KeyboardInterrupt | RankError | None = None
    try:
        with terminable(), _bars(setup, leads(rank_group)) as report_event:
            runs = run_all(
                setup,
                chosen,
                kept,
                report_event=report_event,
                timeout_s=arguments.timeout,
                rank_group=rank_group,
            )
            kept(runs)
    except (KeyboardInterrupt, RankError) as error:
        stopped = error
    if kept.runs is not None and leads(rank_group):
        _out(kept.runs, arguments.format, arguments.output)
    _raise_problem(stopped, kept)


def _raise_problem(stopped: KeyboardInterrupt | RankError | None, kept: _Kept) -> None:
    """Raise the worst of what went wrong: an early end, then a file that is not written, then variants that failed."""
    if isinstance(stopped, RankError):
        raise stopped
    if stopped is not None:
        raise typer.Abort from stopped
    if kept.problem is not None:
        raise kept.problem
    failed = [v for v in (kept.runs.variants if kept.runs else ()) if v.error]
    if failed:
        raise CheckFailed(*(f"{v.name} failed: {v.error}" for v in failed))


def _out(runs: Runs, format: TableFormat, output: Path | None) -> None:
    from ..report.runs_table import as_csv, as_markdown

    if format is TableFormat.TEXT:
        from ..report.text.runs import rendered

        show(rendered(runs), output)
    else:
        texts = {TableFormat.JSON: runs.to_json, TableFormat.CSV: lambda: as_csv(runs)}
        write(texts.get(format, lambda: as_markdown(runs))(), output)


@contextlib.contextmanager
def _bars(setup: Setup, leads: bool = True) -> Iterator[Callable[[Chosen, Mapping[str, Any]], None]]:
    """A progress bar for each variant, on stderr if that is a terminal. Yields what to call with each event of a worker."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console, transient=True, disable=not (leads and console.is_terminal)) as bar:

        def report_event(chosen: Chosen, event: Mapping[str, Any]) -> None:
            if chosen.name not in tasks:
                tasks[chosen.name] = bar.add_task(f"{chosen.name}: building", total=setup.runs * setup.steps)
            task = tasks[chosen.name]
            if event["event"] == "ready":
                bar.update(task, description=f"{chosen.name}: compiling")
            elif event["event"] == "step":
                wanted = event["run"] < setup.runs
                which = f"run {event['run'] + 1} of {setup.runs}" if wanted else "baseline of others"
                bar.update(task, advance=int(wanted), description=f"{chosen.name}: {which}, {event['s']:.3g} s")

        yield report_event
