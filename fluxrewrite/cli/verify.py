"""`fluxrewrite verify`: a model with its kernels, or the kernels by themselves."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from typer.core import TyperCommand

from ..errors import InputError
from .common import Dtype, Format, PolicyName, progress, show, torch_dtype, writable, write
from .ranks import leads, leave, ranked
from .verify_kernels import check_kernels
from .watchdog import watched

if TYPE_CHECKING:
    from ..measure.rendezvous import RankGroup
    from ..measure.verify import Progress, Verification, VerifyOptions
    from ..models.registry import ModelSpec, Shapes

__all__ = ["OptionalKernels", "verify"]

_ALL = "all"


class SimulatorName(StrEnum):
    """What runs the kernels."""

    EMULATOR = "emulator"
    NKI = "nki"
    BOTH = "both"


class ExecutionName(StrEnum):
    """What a kernel call runs."""

    REFERENCE = "reference"
    EMULATE = "emulate"
    DEVICE = "device"


class OptionalKernels(TyperCommand):
    """A command whose `--kernels` may stand without a value: then it means all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the base class, which has no options with an optional value."""
        alone = [a == "--kernels" and (not after or after[0].startswith("-")) for a, after in _followed(args)]
        given = [f"--kernels={_ALL}" if lone else a for a, lone in zip(args, alone, strict=True)]
        result: list[str] = super().parse_args(ctx, given)
        return result


def _followed(args: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    return ((a, args[i + 1 :]) for i, a in enumerate(args))


def verify(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Preset, diffusers folder or config.json, or module:callable.")] = None,
    kernels: Annotated[str | None, typer.Option(help="With MODEL: kinds, with an optional form: qkv:triple,attention; all if left "
                                                "out. Without: check these kernels, or all, against float64.")] = None,
    image_tokens: Annotated[int, typer.Option(help="Image tokens.")] = 256,
    text_tokens: Annotated[int, typer.Option(help="Text tokens.")] = 512,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 1,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of weights and activations.")] = Dtype.BF16,
    policy: Annotated[PolicyName, typer.Option(help="Which sites are rewritten, as for inspect.")] = PolicyName.ALL,
    device: Annotated[str, typer.Option(help="Profile that --policy auto predicts with, as for inspect.")] = "trn2",
    execution: Annotated[ExecutionName, typer.Option(help="reference: the ops' bodies in torch; emulate: the NKI kernels on the "
                                                     "CPU (slow); device: the NKI kernels.")] = ExecutionName.REFERENCE,
    inner: Annotated[str, typer.Option(help="What compiles the rewritten model for the loop: eager, inductor, ...")] = "eager",
    steps: Annotated[int, typer.Option(help="Steps of the denoising loop.")] = 4,
    tolerance: Annotated[float | None, typer.Option(help="Greatest error of a site over the largest value expected; half of that "
                                                    "in the norm. Default: 1e-5 (fp32), 1e-2 (bf16), 1.25e-3 (fp16).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Without MODEL: a representative part, in half a minute.")] = False,
    filter: Annotated[str | None, typer.Option(help="Without MODEL: only cases with this in their name: 'rope fp32'.")] = None,
    simulator: Annotated[SimulatorName | None, typer.Option(help="Without MODEL: emulator: this project's; nki: AWS's; both. "
                                                             "Default: nki where it is installed, beside ours.")] = None,
    provider: Annotated[str, typer.Option(help="Whose kernels, as for inspect.")] = "builtin",
    seed: Annotated[int, typer.Option(help="Of random weights and inputs.")] = 0,
    tp: Annotated[int | None, typer.Option(help="Ranks that MODEL is divided among: as many as torchrun started.")] = None,
    rank_timeout: Annotated[float, typer.Option(help="Under torchrun: seconds that a rank waits for another one.")] = 300.0,
    format: Annotated[Format, typer.Option(help="text for people, json for programs.")] = Format.TEXT,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.")] = None,
) -> None:  # fmt: skip
    """Compare MODEL with and without kernels: every rewritten site on the model's own activations, and a denoising loop.

    Weights and inputs are random but for a folder with weights. Without MODEL, --kernels checks the kernels by themselves,
    in a simulator and against float64.

    torchrun --nproc-per-node 4 -m fluxrewrite verify MODEL divides the model among four ranks (gloo, CPU); each checks its own
    shards, and the first one tells where a site is worst.
    """
    with ranked(tp, rank_timeout) as rank_group:
        if model is None and kernels is None:
            raise InputError(
                "nothing to verify; give a model (fluxrewrite verify flux2-klein-mini) "
                "or --kernels (fluxrewrite verify --kernels --quick)"
            )
        if seed < 0:
            raise InputError(f"--seed {seed}: a number from 0 on")
        if leads(rank_group):
            writable(output)
        named = None if kernels == _ALL else kernels
        if model is None:
            _refuse(ctx, _OF_MODEL, "a model: fluxrewrite verify MODEL")
            if rank_group is not None:
                raise InputError("the kernels by themselves are checked by one process; run it without torchrun")
            simulated = None if simulator is None else simulator.value
            check_kernels(named, quick, filter, provider, simulated, seed, format, output)
            return
        _refuse(ctx, _OF_KERNELS, "the kernels by themselves: leave out MODEL")
        options_given: dict[str, Any] = {
            "kernels": named,
            "policy": policy.value,
            "provider": provider,
            "device": device,
        }
        options_given |= {"execution": execution.value, "inner": inner, "steps": steps, "tolerance": tolerance}
        _check_model(
            model, (image_tokens, text_tokens, batch), dtype, options_given, seed, rank_group, (format, output)
        )


def _check_model(
    model: str,
    tokens: tuple[int, int, int],
    dtype: Dtype,
    options_given: dict[str, Any],
    seed: int,
    rank_group: RankGroup | None,
    out: tuple[Format, Path | None],
) -> None:
    from ..measure.verify import VerifyOptions, judge
    from ..models.registry import Shapes

    found = _verified(model, Shapes(*tokens), dtype, VerifyOptions(**options_given), seed, rank_group)
    if leads(rank_group):
        _out(found, *out)
    judge(found)


_OF_KERNELS = ("quick", "filter", "simulator")
_OF_MODEL = (
    "image_tokens",
    "text_tokens",
    "batch",
    "dtype",
    "policy",
    "device",
    "execution",
    "inner",
    "steps",
    "tolerance",
    "tp",
    "rank_timeout",
)


def _refuse(ctx: typer.Context, names: Sequence[str], meant: str) -> None:
    """Raise InputError for an option that was given and says nothing here."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')} is for {meant}")


def _verified(
    name: str, shapes: Shapes, dtype: Dtype, options: VerifyOptions, seed: int, rank_group: RankGroup | None
) -> Verification:
    """What there is to say of a model. Kernels and models that print do not print into the result."""
    with progress("loading torch"):
        from ..measure.verify import verify as run
        from ..models.registry import find_model
        from ..models.workload import realise

    def refused() -> ModelSpec:
        options.backend()  # a wrong name is told before the weights are made
        return find_model(name)

    spec = refused() if rank_group is None else rank_group.together("the check of what was asked for", refused)
    with contextlib.redirect_stdout(io.StringIO()), _group(rank_group) as world:
        with progress(f"making {name}", leads(rank_group)):
            workload = realise(spec, shapes, torch_dtype(dtype), seed, world=world)
        with _bars(options.steps, leads(rank_group)) as bars:
            return run(workload, options, shapes, seed, bars, rank_group)


@contextlib.contextmanager
def _group(rank_group: RankGroup | None) -> Iterator[int]:
    """The process group of the ranks; yields how many they are."""
    if rank_group is None:
        yield 1
        return
    from ..parallel import process_group

    with (
        watched(rank_group, leave),
        process_group(
            rank_group.here.rank, rank_group.here.world, rank_group.part("verify"), rank_group.wait_s
        ) as here,
    ):
        yield here.world


@contextlib.contextmanager
def _bars(steps: int, leads: bool = True) -> Iterator[Progress]:
    """Bars for sites and steps with the time left, on stderr, only where somebody looks; others' logs are kept quiet."""
    from ..measure.verify import Progress

    logging.disable(logging.ERROR)
    console = Console(stderr=True)
    counts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    columns = (*counts, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not (leads and console.is_terminal)) as bars:
        sites, loop = bars.add_task("sites", total=None), bars.add_task("steps", total=steps, start=False)

        def found(count: int) -> None:
            bars.update(sites, total=(bars.tasks[sites].total or 0) + count)

        def step(_: Any = None) -> None:
            bars.start_task(loop)
            bars.update(loop, advance=1)

        try:
            yield Progress(found, lambda s: bars.update(sites, advance=1, description=f"sites {s.kind}:{s.form}"), step)
        finally:
            logging.disable(logging.NOTSET)


def _out(found: Verification, format: Format, output: Path | None) -> None:
    if format is Format.JSON:
        write(found.to_json(), output)
        return
    from ..measure.verify.text import rendered

    show(rendered(found), output)
