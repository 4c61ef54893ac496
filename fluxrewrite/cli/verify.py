"""`fluxrewrite verify`: a model with its kernels, or the kernels by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import InputError
from .common import Dtype, Format, PolicyName, writable
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
from .ranks import leads, ranked
from .verify_kernels import KernelCheck, check_kernels
from .verify_model import ModelCheck, check_model

__all__ = ["OptionalKernels", "verify"]

_ALL = "all"


class SimulatorName(StrEnum):
    """What runs the kernels."""

    EMULATOR = "emulator"
    NKI = "nki"
    BOTH = "both"


class OptionalKernels(TyperCommand):
    """A command whose `--kernels` takes an optional value; without one it means all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a bare `--kernels` its value, since typer has no options with an optional one."""
        bare = [a == "--kernels" and (not after or after[0].startswith("-")) for a, after in _followed(args)]
        given = [f"--kernels={_ALL}" if lone else a for a, lone in zip(args, bare, strict=True)]
        result: list[str] = super().parse_args(ctx, given)
        return result


def _followed(args: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    return ((a, args[i + 1 :]) for i, a in enumerate(args))


@dataclass(frozen=True)
class VerifyArguments:
    """The command line of `fluxrewrite verify`."""

    ctx: typer.Context
    model: Annotated[
        str | None, typer.Argument(help="A preset, a diffusers folder or config.json, or module:callable.")
    ] = None
    kernels: Annotated[
        str | None,
        typer.Option(
            help="With MODEL: comma-separated kinds, each with an optional form (qkv:triple,attention). Without MODEL: the kernels "
            "to check against float64. Default: all."
        ),
    ] = None
    image_tokens: ImageTokens = 256
    text_tokens: TextTokens = 512
    batch: Batch = 1
    dtype: Annotated[Dtype, typer.Option(help="Dtype of weights and activations.")] = Dtype.BF16
    policy: Annotated[PolicyName, typer.Option(help="Which of the sites are rewritten, as for inspect.")] = (
        PolicyName.ALL
    )
    device: Annotated[str, typer.Option(help="Device profile that the policy auto predicts with, as for inspect.")] = (
        "trn2"
    )
    execution: Annotated[
        Execution,
        typer.Option(
            help="What a kernel call runs. reference: the op's body in torch; emulate: the NKI kernel in the emulator (slow); "
            "device: the NKI kernel on the device."
        ),
    ] = Execution.REFERENCE
    inner: Annotated[
        str, typer.Option(help="Backend that compiles the rewritten model for the loop: eager, inductor, ...")
    ] = "eager"
    steps: Annotated[int, typer.Option(help="Number of steps in the denoising loop.")] = 4
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest error of a site, relative to the largest expected value; the limit on the norm is half of it. "
            "Default: 1e-5 (fp32), 1e-2 (bf16), 1.25e-3 (fp16)."
        ),
    ] = None
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Without MODEL: check a representative subset of the cases, in about 15 seconds."),
    ] = False
    filter: Annotated[
        str | None,
        typer.Option(help="Without MODEL: check only cases whose name contains this text, such as 'rope fp32'."),
    ] = None
    simulator: Annotated[
        SimulatorName | None,
        typer.Option(
            help="Without MODEL: what runs the kernels: emulator (this project's), nki (AWS's) or both. Default: both if nki is "
            "installed, otherwise emulator."
        ),
    ] = None
    provider: Annotated[str, typer.Option(help="Provider of the kernels, as for inspect.")] = "builtin"
    seed: Seed = 0
    tp: TensorParallel = None
    rank_timeout: RankTimeout = 300.0
    format: Annotated[Format, typer.Option(help="text: a table; json: every figure.")] = Format.TEXT
    output: Output = None

    @property
    def kernel_names(self) -> str | None:
        """The kernels that are named, None for all."""
        return None if self.kernels == _ALL else self.kernels

    def check(self) -> None:
        """Raise InputError for options that do not go together or cannot be."""
        if self.model is None and self.kernels is None:
            raise InputError(
                "nothing to verify; give a model (fluxrewrite verify flux2-klein-mini) "
                "or --kernels (fluxrewrite verify --kernels --quick)"
            )
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: must be 0 or more")


@options_from(VerifyArguments)
def verify(arguments: VerifyArguments) -> None:
    """Compare MODEL with and without kernels.

    Every rewritten site runs on the model's own activations next to the original operations, then a denoising loop runs with both
    models. Weights and inputs are random unless MODEL is a folder with weights.

    Without MODEL, --kernels checks the kernels by themselves: in a simulator, against float64.

    To divide MODEL among four ranks, run torchrun --nproc-per-node 4 -m fluxrewrite verify MODEL (gloo, on the CPU). Each rank
    checks its own shards, and the first rank prints the worst result of each site.
    """
    with ranked(arguments.tp, arguments.rank_timeout) as rank_group:
        arguments.check()
        if leads(rank_group):
            writable(arguments.output)
        if arguments.model is not None:
            _refuse(arguments.ctx, _OF_KERNELS, "checks the kernels by themselves; leave out MODEL to use it")
            check_model(_model_check(arguments, arguments.model), rank_group, arguments.format, arguments.output)
            return
        _refuse(arguments.ctx, _OF_MODEL, "needs a model: fluxrewrite verify MODEL")
        if rank_group is not None:
            raise InputError("one process checks the kernels by themselves; run this without torchrun")
        check_kernels(_kernel_check(arguments), arguments.format, arguments.output)


def _model_check(arguments: VerifyArguments, model: str) -> ModelCheck:
    from ..measure.verify import VerifyOptions
    from ..models.registry import Shapes

    return ModelCheck(
        model=model,
        shapes=Shapes(arguments.image_tokens, arguments.text_tokens, arguments.batch),
        dtype=arguments.dtype,
        seed=arguments.seed,
        options=VerifyOptions(
            kernels=arguments.kernel_names,
            policy=arguments.policy.value,
            provider=arguments.provider,
            execution=arguments.execution.value,
            device=arguments.device,
            inner=arguments.inner,
            steps=arguments.steps,
            tolerance=arguments.tolerance,
        ),
    )


def _kernel_check(arguments: VerifyArguments) -> KernelCheck:
    return KernelCheck(
        kernels=arguments.kernel_names,
        quick=arguments.quick,
        filter=arguments.filter,
        provider=arguments.provider,
        simulator=None if arguments.simulator is None else arguments.simulator.value,
        seed=arguments.seed,
    )


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


def _refuse(ctx: typer.Context, names: Sequence[str], why: str) -> None:
    """Raise InputError for an option that has no effect here. Its default is no error, so what matters is who gave it."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--{name.replace('_', '-')} {why}")
