"""`fluxrewrite inspect`."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Dtype, PolicyName, ProofName, Regime, progress, torch_dtype, writable
from .formats import InspectFormat, check_forms, emit, read_runs, timed

if TYPE_CHECKING:
    from ..report.budget import BudgetLimit
    from ..rewrite.selection import Selection

__all__ = ["inspect"]


def inspect(
    model: Annotated[str, typer.Argument(help="Preset (flux2-klein-4b, flux2-klein-9b, flux2-klein-mini, flux2-dev, flux1-dev), "
                                         "diffusers folder or config.json, or module:callable that returns (model, inputs).")],
    image_tokens: Annotated[int, typer.Option(help="Image tokens; a 1024x1024 picture is 4096 of them.")] = 256,
    text_tokens: Annotated[int, typer.Option(help="Text tokens.")] = 512,
    batch: Annotated[int, typer.Option(help="Batch size.")] = 1,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of weights and activations.")] = Dtype.BF16,
    kernels: Annotated[str | None, typer.Option(help="Kinds, with an optional form: qkv:triple,attention. Default: all.")] = None,
    policy: Annotated[PolicyName, typer.Option(help="auto: what makes each block fastest, as predicted; all: every eligible site; "
                                                    "none: only report.")] = PolicyName.ALL,
    device: Annotated[str, typer.Option(help="Profile that times are predicted with: trn1, trn2, trn3, cpu, or a file "
                                        "(fluxrewrite calibrate -o FILE).")] = "trn2",
    regime: Annotated[Regime, typer.Option(help="compile: one executable, in which a kernel call is a barrier; lazy: a call "
                                           "also ends the executable, as in the XLA stack.")] = Regime.COMPILE,
    compiler: Annotated[str | None, typer.Option(help="What fuses the rest: inductor, neuronx, xla, or a file of rules. "
                                                 "Default: the device's.")] = None,
    evidence: Annotated[list[Path] | None, typer.Option(help="File of measured runs (fluxrewrite calibrate --from) beside those "
                                                        "that ship; may be repeated.")] = None,
    proof: Annotated[ProofName, typer.Option(help="numeric: each distinct site and its replacement run on random inputs first, and "
                                             "one that differs is left alone; structural: not.")] = ProofName.NUMERIC,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Trace with symbolic sizes; they break limits on them.")] = False,
    provider: Annotated[str, typer.Option(help="Whose kernels: builtin, nkilib, nkilib@2.27 (its limits in that SDK version), or "
                                          "reference (the ops' own bodies, every shape).")] = "builtin",
    tp: Annotated[int, typer.Option(help="Ranks that the model's own _tp_plan divides it among: one is traced.")] = 1,
    fail_on: Annotated[list[str] | None, typer.Option(help="Exit with 1 if this holds: 'barriers>10', 'predicted_slowdown>1.02', "
                                                      "'kernels.qkv<30'; may be repeated. A wrong metric lists all.")] = None,
    budget: Annotated[Path | None, typer.Option(help="TOML file of limits: a table [limits] (barriers = 10: the most it may be), "
                                                "a list fail_on of expressions.")] = None,
    artifacts: Annotated[Path | None, typer.Option(help="Folder that TorchNeuron kept of a compile (docs/neuron.md): its "
                                                   "NEFFs and kernel calls beside the predicted ones.")] = None,
    format: Annotated[InspectFormat, typer.Option(help="text for people, html for a page in one file, svg and dot for the boundary "
                                                  "map as a picture, json for programs, model-explorer for both graphs in "
                                                  "ai-edge-model-explorer.")] = InspectFormat.TEXT,
    site: Annotated[str | None, typer.Option(help="With svg or dot: draw the neighbourhood of the site with this id.")] = None,
    runs: Annotated[Path | None, typer.Option(help="With text or html: a file of fluxrewrite bench --save, whose table and curves "
                                              "stand beside the predictions.")] = None,
    timelines: Annotated[bool, typer.Option("--timelines", help="With text, html or json: run each distinct kernel call in the "
                                            "emulator and show how busy its engines are; seconds a call.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.")] = None,
) -> None:  # fmt: skip
    """Trace MODEL without weights and report which parts of it kernels can replace, and why not more."""
    from ..analysis import Options, inspect_graphs
    from ..models.registry import Shapes, find_model
    from ..report.artifacts import compared, read_artifacts
    from ..report.budget import check

    check_forms(format, site, runs, timelines)
    known, how = tuple(evidence or ()), proof.value
    options = Options(kernels, policy.value, dynamic, provider, tp, device, regime.value, compiler, known, how)
    selection, target = options.resolve()  # a wrong name is told before the model is traced
    limits = _limits(fail_on or (), budget, selection)
    spec = find_model(model)
    writable(output)
    kept, measured = read_artifacts(artifacts) if artifacts else None, read_runs(runs)
    with progress(f"tracing {model}"), _uncollected():
        report, graphs = inspect_graphs(spec, Shapes(image_tokens, text_tokens, batch), torch_dtype(dtype), options)
    report = report if kept is None else compared(report, kept)
    report = timed(report, target.device) if timelines else report
    emit(report, format, output, site, measured, graphs)
    check(report, limits)


def _limits(fail_on: Sequence[str], budget: Path | None, selection: Selection) -> list[BudgetLimit]:
    from ..report.budget import parse_limit, read_budget

    limits = [parse_limit(text, kinds=selection.passes) for text in fail_on]
    return limits + (read_budget(budget, selection.passes) if budget else [])


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: a traced model is millions of objects, which one collection after another would visit."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
