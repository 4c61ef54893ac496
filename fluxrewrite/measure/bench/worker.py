"""The process that times one variant: `python -m fluxrewrite.measure.bench.worker`, started by `worker_process`.

stdin: a line with the JSON of a `Spec`, then a line before each run after the first. It stays open while the parent lives.
stdout: one JSON object per line, each with "event": "ready", "step", "run" or "error".
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from ...analysis import peak_rss_mb
from ...cost.runs import Setup
from ...dynamo.machine import device_name
from ...errors import InputError, RankError, one_line
from ...models.registry import Shapes, find_model
from ...models.workload import Call, Workload, realise
from ...parallel import Ranks, of_transport
from .kernel_counts import Counted
from .machine_load import Load
from .ranks import joined, pooled
from .variants import Chosen, Spec, backend_of

__all__ = ["failure_text", "main", "work"]

ReportEvent = Callable[..., None]


def main() -> int:
    """Run the spec from stdin. Returns 0 if all runs finished, and 1 after an "error" event."""
    line = sys.stdin.readline()
    events = _take_stdout()

    def report_event(event: str, **fields: Any) -> None:
        events.write(json.dumps({"event": event, **fields}) + "\n")
        events.flush()

    turn = threading.Semaphore(0)
    threading.Thread(target=_listen, args=(turn,), daemon=True).start()
    try:
        work(Spec.model_validate_json(line), report_event, turn.acquire)
    except BaseException as error:  # also SystemExit and the like: the table of the bench has to show it
        report_event("error", error=failure_text(error), lost=_lost(error))
        return 1
    return 0


def _lost(error: BaseException) -> bool:
    """Whether the cause is on another rank."""
    inner = getattr(error, "inner_exception", None) or error
    return isinstance(inner, RankError) or of_transport(inner)


def _take_stdout() -> TextIO:
    """Reserve stdout for events, and send anything else that is printed to stderr, also what compilers print."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def _listen(turn: threading.Semaphore) -> None:
    """Release the semaphore for each line. Stdin ends when the parent is gone; then kill this process and its compilers."""
    while received := os.read(0, 4096):
        for _ in range(received.count(b"\n")):
            turn.release()
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def work(spec: Spec, report_event: ReportEvent, wait: Callable[[], object] = lambda: None) -> None:
    """Build the model, compile it, and run its denoising loops.

    Args:
        spec: the variant, and what to do with it.
        report_event: called with the name and the fields of every event.
        wait: called before each run after the first.

    Raises:
        RankError: the worker of another rank ended or does not answer.
        Exception: any error of the model or the compiler.
    """
    if spec.setup.threads is not None:
        torch.set_num_threads(spec.setup.threads)
    with joined(spec.meeting) as here:
        _work(spec, report_event, wait, here)


def _work(spec: Spec, report_event: ReportEvent, wait: Callable[[], object], here: Ranks | None) -> None:
    setup, device = spec.setup, torch.device(spec.setup.device)
    workload = _workload(setup, device, 1 if here is None else here.world)
    call, counted = _call(spec.chosen, setup, workload)
    report_event("ready", threads=torch.get_num_threads(), device=device_name(device), dtype=_dtype(workload))
    for run in range(setup.runs):
        if run:
            wait()
        step, load = functools.partial(report_event, "step", run=run), Load()
        steps_s, latents = _loop(workload, call, setup.steps, device, step)
        mine = {
            "steps_s": steps_s,
            "peak_rss_mb": round(peak_rss_mb(), 1),
            "peak_device_mb": _peak_device_mb(device),
            "output": _keep(latents, Path(spec.latents)),
        }
        report_event("run", **pooled(here, mine, load), **(counted.stats() if counted else {}))


def _workload(setup: Setup, device: torch.device, world: int) -> Workload:
    """The model with weights and inputs, or this rank's part of it."""
    shapes = Shapes(setup.image_tokens, setup.text_tokens, setup.batch)
    spec, dtype = find_model(setup.model), getattr(torch, setup.dtype)
    workload = realise(spec, shapes, dtype, seed=setup.seed, device=device, world=world)
    if workload.denoises:  # so that the import of the scheduler does not count as part of the first step
        next(workload.steps(1, lambda **inputs: inputs["hidden_states"]))
    return workload


def _call(chosen: Chosen, setup: Setup, workload: Workload) -> tuple[Call, Counted | None]:
    """What runs instead of the model, and what counts its kernel calls, None if it has none."""
    if chosen.name == "eager":
        return workload.model, None
    made = backend_of(chosen, setup)
    counted = None if made is None else Counted(made)
    call: Call = torch.compile(workload.model, backend=setup.inner if counted is None else counted)
    return (call, None) if counted is None else (counted.per_step(call), counted)


def _loop(
    workload: Workload, call: Call, count: int, device: torch.device, step: ReportEvent
) -> tuple[list[float], Tensor]:
    """Run the loop; return the seconds of each step and the last latents."""
    finish = (lambda: None) if device.type == "cpu" else (lambda: torch.accelerator.synchronize(device))
    seconds: list[float] = []
    steps = workload.steps(count, call)
    finish()
    latents = None
    for number in range(count):
        start = time.perf_counter()
        latents = next(steps)
        finish()
        seconds.append(time.perf_counter() - start)
        step(step=number, s=seconds[-1])
    assert latents is not None
    return seconds, latents


def _keep(latents: Tensor, path: Path) -> dict[str, Any]:
    """Save the latents and return their digest. They are renamed into place, so that the parent never reads half a file."""
    kept = latents.detach().to("cpu").contiguous()
    draft = path.with_suffix(".draft")
    torch.save(kept, draft)
    draft.replace(path)
    content = kept.reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"digest": hashlib.sha256(content).hexdigest(), "finite": bool(torch.isfinite(kept).all())}


def _dtype(workload: Workload) -> str:
    """The most frequent float dtype of parameters and inputs."""
    tensors = [*workload.model.parameters(), *(v for v in workload.inputs.values() if isinstance(v, Tensor))]
    dtypes = [t.dtype for t in tensors if t.dtype.is_floating_point]
    return str(max(dtypes, key=dtypes.count, default=torch.float32)).removeprefix("torch.")


def _peak_device_mb(device: torch.device) -> float | None:
    """Peak memory that torch allocated on an accelerator, in MB (10^6 bytes); None on the CPU or if it is not reported."""
    peak = getattr(torch.get_device_module(device), "max_memory_allocated", None) if device.type != "cpu" else None
    return round(peak(device) / 1e6, 1) if peak is not None else None


def failure_text(error: BaseException) -> str:
    """Why a variant failed, in one line: without the exception that Dynamo wraps around it, with the compiler's first error.

    Compilers print the command first and what is wrong with the code below it, so their first line alone says too little.
    """
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    text = one_line(inner, named=bool(lines) and not isinstance(inner, InputError))
    said = next((line for line in lines[1:] if "error: " in line), "")
    text += f" ({said[:200]})" if said else ""
    starved = isinstance(inner, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    return f"out of memory ({text})" if starved else text


if __name__ == "__main__":
    sys.exit(main())
