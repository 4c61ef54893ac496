"""`fluxrewrite bench`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CheckFailed, InputError, RankError
from .common import Dtype, progress, show, torch_dtype, writable, write
from .ranks import leads, ranked, terminable

if TYPE_CHECKING:
    from ..cost.runs import Runs, Setup
    from ..measure.bench.variants import Chosen
    from ..measure.rendezvous import RankGroup

__all__ = ["bench"]

_SLOW = 2.0  # about half of the least that was seen without instructions for bfloat16: see `bfloat16_slowdown`
_VARIANTS = "vanilla,qkv,attention,qkv+attention,norm_rope_attention,auto"


class TableFormat(StrEnum):
    """Output formats of `bench`."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


class Execution(StrEnum):
    """What a kernel call runs."""

    REFERENCE = "reference"
    EMULATE = "emulate"
    DEVICE = "device"


def bench(
    model: Annotated[str, typer.Argument(help="Preset (flux2-klein-mini for small machines), diffusers folder or config.json, or "
                                         "module:callable, as for inspect. Without a folder's weights: random ones.")],
    variants: Annotated[str, typer.Option(help="What to run, in order. vanilla: torch.compile alone, which all are compared with; "
                                          "eager: no compile; kernels as inspect takes them, joined by + (qkv:triple+attention): "
                                          "just these, at every site; auto, measure, all, none: that policy.")] = _VARIANTS,
    inner: Annotated[str | None, typer.Option(help="Backend that compiles. Default: neuron where it is installed with a device, "
                                              "else inductor.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of a denoising loop.")] = 4,
    runs: Annotated[int, typer.Option(help="Loops of a variant: the first is cold, the others warm.")] = 4,
    image_tokens: Annotated[int, typer.Option(help="Image tokens; a 1024x1024 picture is 4096 of them.")] = 256,
    text_tokens: Annotated[int, typer.Option(help="Text tokens.")] = 512,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 1,
    dtype: Annotated[Dtype | None, typer.Option(help="Dtype of weights and activations. Default: bf16; fp32 on a processor "
                                                "where a bf16 matrix product takes twice as long.")] = None,
    provider: Annotated[str | None, typer.Option(help="Whose kernels, as for inspect. Default: reference where the execution is "
                                                 "reference, so that no limit leaves a site alone; else builtin.")] = None,
    execution: Annotated[Execution | None, typer.Option(help="What a kernel call runs: the op's body in torch, the NKI kernel "
                                                        "emulated (slow) or on the device. Default: device with inner neuron, or "
                                                        "openxla with Neuron's packages, else reference.")] = None,
    device: Annotated[str, typer.Option(help="Torch device to run on: cpu, cuda, neuron.")] = "cpu",
    profile: Annotated[str | None, typer.Option(help="Device profile that auto predicts with, as --device of inspect. "
                                                "Default: trn2 with inner neuron, else cpu.")] = None,
    evidence: Annotated[list[Path] | None, typer.Option(help="Measured runs that auto knows, beside those that ship.")] = None,
    seed: Annotated[int, typer.Option(help="Of random weights and inputs.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. Default: as many as it uses.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a variant may take. Default: no limit.")] = None,
    tp: Annotated[int | None, typer.Option(help="Ranks that the model is divided among: as many as torchrun started.")] = None,
    rank_timeout: Annotated[float, typer.Option(help="Under torchrun: seconds that a rank waits for another one.")] = 300.0,
    save: Annotated[Path | None, typer.Option(help="Keep all runs in this file, after each one, for calibrate --from.")] = None,
    format: Annotated[TableFormat, typer.Option(help="text or markdown for people, csv a row for each variant, json the content of "
                                                "--save.")] = TableFormat.TEXT,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.")] = None,
) -> None:  # fmt: skip
    """Time denoising loops of MODEL with and without kernels, cold and warm, each variant in a process of its own.

    torchrun --nproc-per-node 4 -m fluxrewrite bench MODEL divides the model among four ranks (gloo, CPU): a step takes as long as
    on the slowest, and the first rank prints and saves.
    """
    with ranked(tp, rank_timeout) as rank_group:
        _check_numbers((("steps", steps, 1), ("runs", runs, 1), ("seed", seed, 0), ("threads", threads, 1)), timeout)
        if leads(rank_group):
            writable(save)
            writable(output)
        with progress("checking", leads(rank_group)):
            from ..dynamo.inner import default_inner, inner_backend
            from ..measure.bench.variants import parse_variants

            inner = inner or default_inner()
            runs_on = execution.value if execution else inner_backend(inner).default_execution()
            setup = _setup(
                model=model, image_tokens=image_tokens, text_tokens=text_tokens, batch=batch,
                dtype=str(torch_dtype(dtype or _dtype(device, rank_group))).removeprefix("torch."), inner=inner,
                provider=provider or ("reference" if runs_on == "reference" else "builtin"), execution=runs_on,
                device=device, profile=profile, evidence=tuple(map(str, evidence or ())), seed=seed, threads=threads,
                steps=steps, runs=runs,
            )  # fmt: skip
            chosen = parse_variants(variants)
            _check(setup, chosen, rank_group)
        _run(setup, chosen, timeout, _Kept(save if leads(rank_group) else None), format, output, rank_group)


def _dtype(device: str, rank_group: RankGroup | None) -> Dtype:
    """The dtype that models run in unless it makes matrix products slow; the first rank decides for all."""
    if device != "cpu":
        return Dtype.BF16
    from ..measure.bench.default_dtype import bfloat16_slowdown

    mine = Dtype.FP32 if bfloat16_slowdown() > _SLOW else Dtype.BF16
    return mine if rank_group is None else Dtype(rank_group.gather("dtype", mine.value)[0])


def _check_numbers(counts: tuple[tuple[str, int | None, int], ...], timeout: float | None) -> None:
    """Raise InputError for an option below its least value."""
    for name, value, least in counts:
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: {least} or more")
    if timeout is not None and not timeout > 0:
        raise InputError(f"--timeout {timeout:g}: more than 0 seconds")


def _check(setup: Setup, chosen: tuple[Chosen, ...], rank_group: RankGroup | None) -> None:
    """Raise InputError, on every rank, for what no worker could run on one of them."""
    from ..measure.bench.run import check_setup

    if rank_group is None:
        check_setup(setup, chosen)
    else:
        rank_group.together(
            "the check of what was asked for", lambda: check_setup(setup, chosen, rank_group.here.world)
        )


def _setup(**fields: Any) -> Setup:
    from ..cost.runs import Setup
    from ..models.registry import Shapes

    # Shapes says what is wrong in the words of the options.
    Shapes(fields["image_tokens"], fields["text_tokens"], fields["batch"])
    return Setup(**fields)


class _Kept:
    """The runs so far, and their file: when that cannot be written, the bench goes on and says so at the end."""

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


def _run(
    setup: Setup,
    chosen: tuple[Chosen, ...],
    timeout: float | None,
    kept: _Kept,
    format: TableFormat,
    output: Path | None,
    rank_group: RankGroup | None,
) -> None:
    """All variants, then the table of what finished, then what went wrong."""
    from ..measure.bench.run import bench as run_all

    stopped: KeyboardInterrupt | RankError | None = None
    try:
        with terminable(), _bars(setup, leads(rank_group)) as report_event:
            kept(run_all(setup, chosen, kept, report_event, timeout, rank_group=rank_group))
    except (KeyboardInterrupt, RankError) as error:
        stopped = error
    if kept.runs is not None and leads(rank_group):
        _out(kept.runs, format, output)
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
    """A bar for each variant, on stderr, only where somebody looks. Yields what to call with each event of a worker."""
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
                which = f"run {event['run'] + 1} of {setup.runs}" if wanted else "beside others"
                bar.update(task, advance=int(wanted), description=f"{chosen.name}: {which}, {event['s']:.3g} s")

        yield report_event
