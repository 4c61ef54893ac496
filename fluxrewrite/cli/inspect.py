"""`fluxrewrite inspect`."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Dtype, PolicyName, ProofName, Regime, progress, torch_dtype, writable
from .formats import (
    DetailsOption,
    InspectFormat,
    OutputOption,
    RunsOption,
    SiteOption,
    TimelinesOption,
    View,
    emit,
    timed,
)

if TYPE_CHECKING:
    from ..analysis import Options
    from ..fusion.boundary.planned_graph import PlannedGraph
    from ..report.model import Report

__all__ = ["inspect"]

# fmt: off
_Model = Annotated[str, typer.Argument(
    help="Preset (flux2-klein-4b, flux2-klein-9b, flux2-klein-mini, flux2-dev, flux1-dev), diffusers folder or config.json, or "
         "module:callable that returns (model, inputs).")]
_ImageTokens = Annotated[int, typer.Option(help="Image tokens; a 1024x1024 picture has 4096.")]
_TextTokens = Annotated[int, typer.Option(help="Text tokens.")]
_Batch = Annotated[int, typer.Option(help="Batch size.")]
_Dtype = Annotated[Dtype, typer.Option(help="Dtype of weights and activations.")]
_Kernels = Annotated[str | None, typer.Option(help="Kinds, with an optional form: qkv:triple,attention. Default: all.")]
_Policy = Annotated[PolicyName, typer.Option(
    help="auto: the set of kernels that is predicted to be fastest in each block; all: every eligible site; none: only report.")]
_Device = Annotated[str, typer.Option(
    help="Profile to predict times with: trn1, trn2, trn3, cpu, or a file (fluxrewrite calibrate -o FILE).")]
_Regime = Annotated[Regime, typer.Option(
    help="compile: one executable, in which a kernel call is a barrier; lazy: a call also ends the executable, as in the XLA "
         "stack.")]
_Compiler = Annotated[str | None, typer.Option(
    help="What fuses the rest: inductor, neuronx, xla, or a file of rules. Default: the device's.")]
_Evidence = Annotated[list[Path] | None, typer.Option(
    help="File of measured runs (fluxrewrite calibrate --from) to use with those that ship; may be repeated.")]
_Proof = Annotated[ProofName, typer.Option(
    help="numeric: run each distinct site and its replacement on random inputs first, and leave it alone if they differ; "
         "structural: do not.")]
_Dynamic = Annotated[bool, typer.Option("--dynamic",
    help="Trace with symbolic sizes. A kernel that limits such a size does not take the site.")]
_Provider = Annotated[str, typer.Option(
    help="Whose kernels: builtin, nkilib, nkilib@2.27 (its limits in that SDK version), or reference (the ops' own bodies, every "
         "shape).")]
_Tp = Annotated[int, typer.Option(help="Number of ranks to divide the model among by its own _tp_plan; one of them is traced.")]
_FailOn = Annotated[list[str] | None, typer.Option(
    help="Exit with 1 if this holds: 'barriers>10', 'predicted_slowdown>1.02', 'kernels.qkv<30'; may be repeated. A wrong metric "
         "lists all of them.")]
_Budget = Annotated[Path | None, typer.Option(
    help="TOML file of limits: a table [limits] with maxima (barriers = 10), and a list fail_on of expressions.")]
_Artifacts = Annotated[Path | None, typer.Option(
    help="Folder that TorchNeuron kept of a compile (docs/neuron.md): compare its NEFFs and kernel calls with the predicted "
         "ones.")]
_Format = Annotated[InspectFormat, typer.Option(
    help="text for people, html for a page in one file, svg and dot for the boundary map as a picture, json for programs, "
         "model-explorer for both graphs in ai-edge-model-explorer.")]
# fmt: on


def inspect(
    model: _Model,
    *,
    image_tokens: _ImageTokens = 256,
    text_tokens: _TextTokens = 512,
    batch: _Batch = 1,
    dtype: _Dtype = Dtype.BF16,
    kernels: _Kernels = None,
    policy: _Policy = PolicyName.ALL,
    device: _Device = "trn2",
    regime: _Regime = Regime.COMPILE,
    compiler: _Compiler = None,
    evidence: _Evidence = None,
    proof: _Proof = ProofName.NUMERIC,
    dynamic: _Dynamic = False,
    provider: _Provider = "builtin",
    tp: _Tp = 1,
    fail_on: _FailOn = None,
    budget: _Budget = None,
    artifacts: _Artifacts = None,
    format: _Format = InspectFormat.TEXT,
    details: DetailsOption = None,
    site: SiteOption = None,
    runs: RunsOption = None,
    timelines: TimelinesOption = False,
    output: OutputOption = None,
) -> None:
    """Trace MODEL without weights and report which parts of it kernels can replace, and why not more."""
    from ..analysis import Options

    view = View.checked(format, details=details, site=site, runs=runs, timelines=timelines)
    files, how = tuple(evidence or ()), proof.value
    options = Options(kernels, policy.value, dynamic, provider, tp, device, regime.value, compiler, files, how)
    check = _check(options, fail_on or (), budget)
    writable(output)
    found = _inspected(model, (image_tokens, text_tokens, batch), dtype, options, artifacts)
    report = timed(found.report, options.resolve()[1].device) if timelines else found.report
    emit(report, view, output, found.graphs)
    check(report)


@dataclass(frozen=True)
class _Inspected:
    report: Report
    graphs: Sequence[PlannedGraph]


def _inspected(
    model: str, sizes: tuple[int, int, int], dtype: Dtype, options: Options, artifacts: Path | None
) -> _Inspected:
    """The report, compared with the artifacts of a compile where there are some. All input is read before the long trace."""
    from ..analysis import inspect_graphs
    from ..models.registry import Shapes, find_model
    from ..report.artifacts import compared, read_artifacts

    spec, shapes = find_model(model), Shapes(*sizes)
    kept = read_artifacts(artifacts) if artifacts else None
    with progress(f"tracing {model}"), _uncollected():
        report, graphs = inspect_graphs(spec, shapes, torch_dtype(dtype), options)
    return _Inspected(report if kept is None else compared(report, kept), graphs)


def _check(options: Options, fail_on: Sequence[str], budget: Path | None) -> Callable[[Report], None]:
    """The check of a report against the limits. Raises InputError for wrong names before the model is traced."""
    from ..report.budget import check, parse_limit, read_budget

    selection, _ = options.resolve()
    limits = [parse_limit(text, kinds=selection.passes) for text in fail_on]
    limits += read_budget(budget, selection.passes) if budget else []
    return functools.partial(check, limits=limits)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: a traced model has millions of objects, and each collection would visit all of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
