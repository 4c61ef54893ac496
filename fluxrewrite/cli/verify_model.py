"""`fluxrewrite verify MODEL`: a model with and without its kernels."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from .common import Dtype, Format, progress, show, torch_dtype, write
from .ranks import leads, leave
from .watchdog import watched

if TYPE_CHECKING:
    from ..measure.rendezvous import RankGroup
    from ..measure.verify import Progress, Verification, VerifyOptions
    from ..models.registry import ModelSpec, Shapes

__all__ = ["ModelCheck", "check_model"]


@dataclass(frozen=True)
class ModelCheck:
    """What is verified of a model.

    Attributes:
        model: as `fluxrewrite.models.find_model` takes it.
        shapes: sizes of its inputs.
        dtype: of weights and activations.
        seed: of random weights and inputs.
        options: the kernels, and how they run.
    """

    model: str
    shapes: Shapes
    dtype: Dtype
    seed: int
    options: VerifyOptions


def check_model(check: ModelCheck, rank_group: RankGroup | None, format: Format, output: Path | None) -> None:
    """Verify a model and print the result, on the first rank if there are several.

    Raises CheckFailed, on every rank, when a site or a step is not within its limits, and whatever `measure.verify` raises.
    """
    found = _verified(check, rank_group)
    if leads(rank_group):
        _out(found, format, output)
    from ..measure.verify import judge

    judge(found)


def _verified(check: ModelCheck, rank_group: RankGroup | None) -> Verification:
    with progress("loading torch"):
        from ..measure.verify import verify
        from ..models.registry import find_model
        from ..models.workload import realise

    def spec_of_model() -> ModelSpec:
        check.options.backend()  # a wrong name is refused here, before minutes are spent on making weights
        return find_model(check.model)

    spec = spec_of_model() if rank_group is None else rank_group.together("checking the options", spec_of_model)
    # Kernels and models may print; stdout is for the result alone.
    with contextlib.redirect_stdout(io.StringIO()), _group(rank_group) as world:
        with progress(f"making {check.model}", leads(rank_group)):
            workload = realise(spec, check.shapes, torch_dtype(check.dtype), seed=check.seed, world=world)
        with _bars(check.options.steps, leads(rank_group)) as bars:
            return verify(
                workload, check.options, shapes=check.shapes, seed=check.seed, progress=bars, rank_group=rank_group
            )


@contextlib.contextmanager
def _group(rank_group: RankGroup | None) -> Iterator[int]:
    """The process group of the ranks; yields the number of ranks."""
    if rank_group is None:
        yield 1
        return
    from ..parallel import process_group

    rank, world = rank_group.here.rank, rank_group.here.world
    # A collective that another rank never joins blocks the main thread for good: only a thread can end the process then.
    with (
        watched(rank_group, leave),
        process_group(rank, world, rank_group.part("verify"), rank_group.wait_s) as here,
    ):
        yield here.world


@contextlib.contextmanager
def _bars(steps: int, leads: bool = True) -> Iterator[Progress]:
    """Progress bars for sites and steps, on stderr if that is a terminal; other libraries' logs are silenced meanwhile."""
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
