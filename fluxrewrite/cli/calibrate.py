"""`fluxrewrite calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .common import Dtype, counted, progress, show, torch_dtype, writable, write
from .devices import profile

if TYPE_CHECKING:
    import torch
    from rich.console import RenderableType

    from ..cost.devices import Device
    from ..cost.evidence import Evidence, Table
    from ..measure.kernel_times import TimedCall

__all__ = ["calibrate"]


def calibrate(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the profile or the evidence to this file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use fewer rounds and smaller arrays; takes 10 to 25 seconds.")] = False,
    threads: Annotated[int | None, typer.Option(help="Number of torch threads. Default: torch's own.")] = None,
    model: Annotated[str | None, typer.Option("--for", help="Also time each distinct kernel call of this model: a preset, folder "
                                              "or module:callable, as for inspect.")] = None,
    image_tokens: Annotated[int, typer.Option(help="With --for: number of image tokens.")] = 256,
    text_tokens: Annotated[int, typer.Option(help="With --for: number of text tokens.")] = 512,
    dtype: Annotated[Dtype, typer.Option(help="With --for: dtype of weights and activations.")] = Dtype.BF16,
    kernels: Annotated[str | None, typer.Option(help="With --for: kinds of site, as for inspect. Default: all.")] = None,
    table: Annotated[Path | None, typer.Option("--from", help="Measure nothing; turn this published table, or a file of "
                                                 "fluxrewrite bench --save, into evidence.")] = None,
    source: Annotated[str | None, typer.Option(help="With --from: who published the table. Default: the file name.")] = None,
) -> None:  # fmt: skip
    """Measure a device profile of this machine's processor, or turn a published table of runs into evidence."""
    writable(output)
    if table is None and source is not None:
        raise InputError("--source says who published a table; name the table with --from")
    if table is not None and (quick or threads is not None or model is not None):
        raise InputError(
            "--quick, --threads and --for have no effect with --from, which measures nothing; leave them out"
        )
    if table is not None:
        _evidence(table, source, output)
        return
    calls = [] if model is None else _calls(model, (image_tokens, text_tokens), torch_dtype(dtype), kernels)
    device = _timed(_measure(quick, threads), calls, quick, threads)
    show(profile(device))
    _restless(device)
    _keep(device.model_dump_json(by_alias=True, indent=2, exclude_none=True) + "\n", output, "--device")


def _measure(quick: bool, threads: int | None) -> Device:
    with progress("loading torch"):
        from ..measure import calibrate as measure

    with counted("measured", len(measure.steps())) as step:
        return measure.calibrate(measure.QUICK if quick else measure.FULL, threads=threads, step=step)


def _calls(model: str, tokens: tuple[int, int], dtype: torch.dtype, kernels: str | None) -> list[TimedCall]:
    """The distinct kernel calls of a model, traced without weights."""
    with progress(f"tracing {model}"):
        from ..measure.kernel_times import distinct_calls
        from ..models.capture import capture_spec
        from ..models.registry import Shapes, find_model
        from ..rewrite.selection import Selection

        selection = Selection.of(kernels, "reference")
        captured = capture_spec(find_model(model), Shapes(*tokens), dtype)
        found = [call for gm in captured.graphs for call in distinct_calls(gm, selection)]
    if not found:
        raise InputError(f"--for {model}: no kernel call to time; fluxrewrite inspect {model} says why")
    return found


def _timed(device: Device, calls: Sequence[TimedCall], quick: bool, threads: int | None) -> Device:
    """The profile, with the times of these calls added."""
    if not calls:
        return device
    from ..measure import calibrate as measure
    from ..measure.kernel_times import call_time

    effort = measure.QUICK if quick else measure.FULL
    with counted("timed", len(calls)) as step, measure.with_threads(threads):
        times = []
        for call in calls:
            times.append(call_time(call, effort))
            step(call.name)
    return device.model_copy(update={"calls": tuple(times)})


def _restless(device: Device) -> None:
    from rich.text import Text

    from ..measure.calibrate import RESTLESS

    names = [name for name, f in device.figures.items() if f.spread is not None and f.spread > RESTLESS]
    if names:
        which = ", ".join(names)
        why = f"The rounds differ by more than {RESTLESS:.0%} ({which}): other programs were running."
        show(Text(f"\n{why} Measure on an idle machine.", style="yellow"))


def _evidence(path: Path, source: str | None, output: Path | None) -> None:
    from ..cost.data_files import read_json
    from ..cost.published import from_table
    from ..cost.runs import REMEDY, RUNS_SCHEMA, load_runs
    from ..cost.runs_as_evidence import evidence_of

    content = read_json(path, REMEDY)
    if isinstance(content, dict) and content.get("schema") == RUNS_SCHEMA:
        evidence = evidence_of(load_runs(path), source or path.name)
    else:
        evidence = from_table(path, source)
    show(_runs(evidence))
    _keep(evidence.to_json(), output, "--evidence")


def _runs(evidence: Evidence) -> RenderableType:
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    parts: list[RenderableType] = []
    for table in evidence.tables:
        parts.append(Text(f"{table.case.device}, {table.case.regime}: {table.case}", style="bold"))
        parts.append(Text(table.stack, style="dim"))
        grid = Grid(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
        for name in ("kernels", "calls", "s a step", "change", "noise", "us a call", "first step, s"):
            grid.add_column(name, justify="left" if name == "kernels" else "right", no_wrap=True)
        for row in _rows(table):
            grid.add_row(*row)
        parts += [grid, Text("")]
    return Group(*parts)


def _rows(table: Table) -> list[tuple[str, ...]]:
    from ..cost.deltas import RUINOUS, Delta, noise

    rows: list[tuple[str, ...]] = []
    base = table.baseline.warm_s_per_step
    for run in table.runs:
        name = "+".join(run.kernels) or "none"
        ratio = run.warm_s_per_step / base
        change = "" if not run.kernels else f"{ratio - 1:+.1%}" if ratio < RUINOUS else f"{ratio:.1f} times"
        each = f"{Delta(run.kernels[0], table, run).us_per_call:+,.0f}" if len(run.kernels) == 1 else ""
        cold = f"{run.compile_s:.0f}" if run.compile_s else ""
        calls = str(sum(run.calls.values()))
        within = f"{noise(table, run):.1%}" if run.kernels else ""
        rows.append((name, calls, f"{run.warm_s_per_step:.3f}", change, within, each, cold))
    return rows


def _keep(text: str, output: Path | None, option: str) -> None:
    from rich.text import Text

    if output is None:
        show(Text(f"\nNot saved; use -o FILE to save it for {option} FILE.", style="dim"))
        return
    write(text, output)
    show(Text(f"\nSaved to {output}; use it with {option} {output}", style="dim"))
