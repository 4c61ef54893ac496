"""The corridor from captured graphs to a report, without compiling anything."""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from .cost import Case
from .cost.deltas import applied
from .errors import InputError
from .fusion.boundary.compare import effect_of
from .fusion.boundary.planned_graph import PlannedGraph
from .fusion.boundary.predicted_price import Predicted
from .fusion.boundary.target import Target
from .graph.view import GraphView
from .models.capture import Capture, capture, capture_spec
from .models.registry import ModelSpec, Shapes
from .report.build import PredictionContext, build_report, dynamic_sizes
from .report.model import BreakInfo, ModelInfo, Report, Timing
from .rewrite.joined_weights import Joinable, parameters
from .rewrite.plan import Plan, Policy, apply_graph, check_policy
from .rewrite.planner import PastFailure, make_plan
from .rewrite.proof import Prover, Store, check_proof
from .rewrite.proof.outcome import Prove
from .rewrite.search import Choice, Price, choose
from .rewrite.selection import Selection
from .site import Site

__all__ = ["Options", "analyse", "inspect", "inspect_graphs", "inspect_spec"]


@dataclass(frozen=True)
class Options:
    """What to look for, and what for.

    Attributes:
        kernels: kinds (and forms) to look for, as `"qkv:triple,attention"` or a sequence; all when None.
        policy: "auto" takes what makes each block fastest as predicted; "all", "none", or a callable that answers True for each
            site to rewrite.
        dynamic: trace with symbolic sizes.
        provider: whose kernels, as `fluxrewrite.backend` takes it.
        tp: ranks to divide the model among by its own `_tp_plan`; the report is then on one of them.
        device: name or file of a device profile: what times are predicted for.
        regime: "compile", or "lazy", where every kernel call splits the executable.
        compiler: name or file of fusion rules; by default those of the device's compiler.
        evidence: files of measured runs beside those that ship.
        proof: "numeric" proves each distinct site on random inputs before it is replaced, "structural" does not.
    """

    kernels: str | Iterable[str] | None = None
    policy: Policy = "all"
    dynamic: bool = False
    provider: str = "builtin"
    tp: int = 1
    device: str | Path = "trn2"
    regime: str = "compile"
    compiler: str | None = None
    evidence: tuple[str | Path, ...] = ()
    proof: str = "numeric"

    def resolve(self) -> tuple[Selection, Target]:
        """Passes and kernels, and the target. Raises InputError for unknown names and unreadable files."""
        check_policy(self.policy)
        check_proof(self.proof)
        if self.tp < 1:
            raise InputError(f"tp {self.tp}: the number of ranks is 1 or more")
        if self.policy == "measure":
            raise InputError("policy 'measure' runs kernels; use it in fluxrewrite.backend, or 'auto' to predict")
        return (
            Selection.of(self.kernels, self.provider),
            Target.of(self.device, self.regime, self.compiler, self.evidence),
        )


def analyse(
    gm: GraphModule,
    selection: Selection,
    policy: Policy,
    target: Target | None = None,
    case: Case | None = None,
    on_error: Callable[[str, Exception], None] | None = None,
    price: Callable[[GraphView], Price] | None = None,
    joinable: Joinable = parameters,
    failed: PastFailure = lambda site, kernel: None,
    prove: Prove | None = None,
) -> tuple[PlannedGraph, Graph]:
    """View one graph, plan its rewrite, carry it out on a copy, and predict what that does if there is a target.

    Args:
        gm: the graph; not changed.
        selection, policy, on_error: as `make_plan` takes them.
        target, case: what predictions are made for.
        price: compares sets of kernels in the place of the prediction, as the policy "measure" does.
        joinable, failed, prove: as `make_plan` takes them.

    Returns:
        What there is to say of the graph, and the rewritten one: that of `gm` itself where nothing is rewritten. To run it, see
        `rewrite.as_module`.
    """
    view = GraphView(gm.graph)
    errors = {} if on_error is None else {"on_error": on_error}
    if target is not None and case is None:
        case = Case(device=target.device.name, regime=target.regime)  # type: ignore[arg-type]
    if price is None and target is not None and case is not None:
        price = functools.partial(Predicted, target=target, case=case, kernels=selection.kernels)
    chooser = None if price is None else functools.partial(_choose, price)
    plan = make_plan(view, selection, policy, chooser=chooser, joinable=joinable, failed=failed, prove=prove, **errors)
    rewritten, plan = apply_graph(gm, plan)
    if target is None or case is None:
        return PlannedGraph(view, plan), rewritten
    try:
        change = effect_of(view, rewritten, plan.replacements(), target)
        if policy == "auto" and change.after.us > change.before.us and not _measured(plan, target, case):
            plan, rewritten = plan.kept("the whole step would be slower than without kernels, as predicted"), gm.graph
            change = effect_of(view, gm.graph, plan.replacements(), target)
    except Exception as error:
        if on_error is None:
            raise
        on_error("predicting what the rewrite does; the report says nothing of it", error)
        return PlannedGraph(view, plan), rewritten
    return PlannedGraph(view, plan, change), rewritten


def _measured(plan: Plan, target: Target, case: Case) -> bool:
    """Whether runs say something of a kernel that the plan uses: then the model of the step is no judge of it."""
    names = {f"{r.site.kind}:{r.site.form}" for r in plan.replacements() if r.kernel is not None}
    return case.model is not None and any(applied(target.evidence, case, name) for name in names)


def _choose(
    price: Callable[[GraphView], Price], view: GraphView, sites: Sequence[Site]
) -> tuple[Sequence[Site], Sequence[Choice]]:
    return choose(view, sites, price(view))


def inspect(
    model: torch.nn.Module | Callable[..., Any],
    inputs: Mapping[str, Any] | None = None,
    *,
    options: Options = Options(),
    **named_inputs: Any,
) -> Report:
    """What fluxrewrite would rewrite in `model(**inputs)`, why not more, and what that costs and saves.

    The model is traced with fake tensors: nothing is computed, no weight is read, and it is left as it was.

    Args:
        model: a module or function.
        inputs: keyword arguments of the call, for names that clash with `options`.
        options: what to look for, and for which device.
        **named_inputs: keyword arguments of the call.

    Raises:
        InputError: an unknown name in `options`, or a model that raises when it is traced.
    """
    start = time.perf_counter()
    resolved = options.resolve()
    captured = capture(model, {**(inputs or {}), **named_inputs}, dynamic=options.dynamic, tp=options.tp)
    return _report(captured, type(model).__name__, resolved, options, start)[0]


def inspect_spec(
    spec: ModelSpec, shapes: Shapes, dtype: torch.dtype = torch.bfloat16, options: Options = Options()
) -> Report:
    """`inspect` for a model found by name (`fluxrewrite.models.find_model`)."""
    return inspect_graphs(spec, shapes, dtype, options)[0]


def inspect_graphs(
    spec: ModelSpec, shapes: Shapes, dtype: torch.dtype = torch.bfloat16, options: Options = Options()
) -> tuple[Report, tuple[PlannedGraph, ...]]:
    """`inspect_spec`, and the graphs that its report is about."""
    start = time.perf_counter()
    resolved = options.resolve()
    captured = capture_spec(spec, shapes, dtype, dynamic=options.dynamic, tp=options.tp)
    return _report(captured, spec.name, resolved, options, start, shapes)


def _model_info(name: str, captured: Capture, case: Case, nodes: int) -> ModelInfo:
    return ModelInfo(
        name=name,
        parameters=captured.parameters,
        dtype=str(captured.dtype).removeprefix("torch."),
        tp=captured.tp,
        batch=case.batch,
        image_tokens=case.image_tokens,
        text_tokens=case.text_tokens,
        graphs=len(captured.graphs),
        graph_nodes=nodes,
        graph_breaks=tuple(BreakInfo(reason=b.reason, location=b.location) for b in captured.breaks),
        dynamic_sizes=dynamic_sizes(captured.graphs),
    )


def _report(
    captured: Capture,
    name: str,
    resolved: tuple[Selection, Target],
    options: Options,
    start: float,
    shapes: Shapes | None = None,
) -> tuple[Report, tuple[PlannedGraph, ...]]:
    traced = time.perf_counter()
    selection, target = resolved
    case = Case(
        device=target.device.name,
        regime=target.regime,  # type: ignore[arg-type]
        model=name,
        dtype=str(captured.dtype).removeprefix("torch."),
        tp=captured.tp,
        batch=shapes.batch if shapes else None,
        image_tokens=shapes.image_tokens if shapes else None,
        text_tokens=shapes.text_tokens if shapes else None,
    )
    prover = Prover(Store()) if options.proof == "numeric" else None
    analysed = [analyse(gm, selection, options.policy, target, case, prove=prover)[0] for gm in captured.graphs]
    matched = time.perf_counter()
    model = _model_info(name, captured, case, sum(len(a.view.nodes) for a in analysed))
    zero = Timing(capture_s=traced - start, match_s=0, analyse_s=0, total_s=0, peak_rss_mb=peak_rss_mb())
    foresight = PredictionContext(target, case, captured.breaks)
    report = build_report(analysed, selection, options.policy, model, zero, foresight)
    end = time.perf_counter()
    times = {"match_s": matched - traced, "analyse_s": end - traced, "total_s": end - start}
    timing = zero.model_copy(update={**times, **({} if prover is None else prover.timing())})
    return report.model_copy(update={"timing": timing}), tuple(analysed)


def peak_rss_mb() -> float:
    """Peak resident memory of the process in MB (10^6 bytes).

    On Linux from /proc: `ru_maxrss` there is at least what the process had before `exec`, so a small program started by a
    large one would report the large one's memory.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in fields:
            return float(fields["VmHWM"].split()[0]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024) / 1e6
