"""Compare two runs of a denoising loop step by step, as the published experiments did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from ...errors import InputError, RankError, RewriteError, one_line
from ...models.workload import Call, Workload
from ...parallel import degree, of_transport
from .records import LoopResult, StepResult
from .tensor_error import difference, moments

__all__ = ["chain_of", "compared", "origin", "run_loop"]

Done = Callable[[StepResult], None]


def run_loop(workload: Workload, call: Call, steps: int, least: float, done: Done = lambda _: None) -> LoopResult:
    """Run the loop with the original and the rewritten model in step; each continues from its own latents.

    Errors therefore accumulate as they would in a real run. An error of `call` ends the loop, and its note says so.

    Args:
        workload: the model and its inputs.
        call: the rewritten model.
        steps: number of steps, 1 or more.
        least: smallest allowed cosine between the latents after each step.
        done: called with the result of each step.

    Raises:
        InputError: the original model fails.
        RewriteError: `call` fails on one of several ranks: the others are blocked inside it, so the loop cannot end normally.
        Exception: torch's own error that another rank has ended.
    """
    found: list[StepResult] = []
    original = _model_steps(workload, steps)
    try:
        for step in compared(original, workload.steps(steps, call), least):
            found.append(step)
            done(step)
    except InputError:
        raise
    except Exception as error:
        _raise_if_lost(error)
        note = f"step {len(found) + 1} of the rewritten model fails: {one_line(origin(error))}"
        if degree(workload.model) > 1:
            raise RewriteError(note) from error
        return LoopResult(steps=tuple(found), note=note)
    return LoopResult(steps=tuple(found))


def _model_steps(workload: Workload, steps: int) -> Iterator[Tensor]:
    try:
        yield from workload.steps(steps)
    except Exception as error:
        _raise_if_lost(error)
        raise InputError(f"{workload.name}: the model itself fails ({type(error).__name__}: {error})") from error


def _raise_if_lost(error: Exception) -> None:
    """Raise the error that another rank ended or does not answer, if that is the cause of this one."""
    lost = next((e for e in chain_of(error) if isinstance(e, RankError) or of_transport(e)), None)
    if lost is not None:
        raise lost


def compared(original: Iterable[Tensor], rewritten: Iterable[Tensor], least: float) -> Iterator[StepResult]:
    """Compare the latents of two loops after each step, until either ends; `least` is the smallest allowed cosine."""
    for number, (expected, got) in enumerate(zip(original, rewritten, strict=False), 1):
        error = difference(got, expected)
        figures = (None,) * 3 if error.note else (error.max_abs, error.relative, error.cosine)
        yield StepResult(
            step=number,
            original=moments(expected),
            rewritten=moments(got),
            max_abs=figures[0],
            relative=figures[1],
            cosine=figures[2],
            least_cosine=least,
            note=error.note,
        )


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, down to the first. Dynamo wraps a backend's error without setting it as the cause."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = getattr(found, "inner_exception", None) or found.__cause__


def origin(error: BaseException) -> BaseException:
    """The error that was raised first."""
    *_, first = chain_of(error)
    return first
