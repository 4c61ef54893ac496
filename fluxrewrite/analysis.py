"""From captured graphs to a report, without compiling anything."""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch.fx import Graph, GraphModule

from .cost import Case
from .errors import InputError
from .fusion.boundary.planned_graph import PlannedGraph
from .fusion.boundary.predicted_price import Predicted
from .fusion.boundary.target import Target
from .fusion.boundary.whole_step import predicted
from .graph.view import GraphView
from .models.capture import Capture, capture, capture_spec
from .models.registry import ModelSpec, Shapes
from .report.build import PredictionContext, build_report, dynamic_sizes
from .report.model import BreakInfo, ModelInfo, Report, Timing
from .rewrite.plan import Policy, apply_graph, check_policy
from .rewrite.planner import Chooser, PlanningOptions, make_plan
from .rewrite.proof import Prover, Store, check_proof
from .rewrite.search import BlockChoice, Price, choose
from .rewrite.selection import Selection
from .site import Site

__all__ = ["Options", "analyse", "inspect", "inspect_graphs", "inspect_spec"]


@dataclass(frozen=True)
class Options:
    """What to look for, and what predictions are made for.

    Attributes:
        kernels: kinds (and forms) to look for, as `"qkv:triple,attention"` or a sequence; all when None.
        policy: "auto" takes what is predicted to make each block fastest; "all", "none", or a callable that returns True for
            each site to rewrite.
        dynamic: trace with symbolic sizes.
        provider: whose kernels, as `fluxrewrite.backend` takes it.
        tp: ranks to shard the model over by its own `_tp_plan`; the report is then about one rank.
        device: name or file of a device profile that times are predicted for.
        regime: "compile", or "lazy", where every kernel call splits the executable.
        compiler: name or file of fusion rules; by default those of the device's compiler.
        evidence: files of measured runs in addition to the shipped ones.
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
    *,
    on_error: Callable[[str, Exception], None] | None = None,
    price: Callable[[GraphView], Price] | None = None,
    **planning: Unpack[PlanningOptions],
) -> tuple[PlannedGraph, Graph]:
    """View one graph, plan its rewrite, carry it out on a copy, and predict what that does if there is a target.

    Args:
        gm: the graph; not changed.
        selection, policy, on_error: as `make_plan` takes them.
        target: what predictions are made for.
        case: what evidence is looked up by; by default the device and regime of the target.
        price: compares sets of kernels instead of the prediction, as the policy "measure" does.
        **planning: see `PlanningOptions`.

    Returns:
        The plan with its predicted effect, and the rewritten graph: that of `gm` itself where nothing is rewritten. To run it,
        see `graph.modules.as_module`.
    """
    view = GraphView(gm.graph)
    case = case or (None if target is None else target.case)
    plan = make_plan(
        view,
        selection,
        policy,
        on_error=on_error or _raise,
        chooser=_chooser(price, selection, target, case),
        **planning,
    )
    rewritten, plan = apply_graph(gm, plan)
    if target is None or case is None:
        return PlannedGraph(view, plan), rewritten
    try:
        planned = predicted(view, plan, rewritten, target=target, case=case, auto=policy == "auto")
    except Exception as error:
        (on_error or _raise)("predicting what the rewrite does; the report says nothing of it", error)
        return PlannedGraph(view, plan), rewritten
    return planned, rewritten if planned.plan.replacements() else gm.graph


def _raise(_: str, error: Exception) -> None:
    raise error


def _chooser(
    price: Callable[[GraphView], Price] | None, selection: Selection, target: Target | None, case: Case | None
) -> Chooser | None:
    """Compares sets of kernels by `price`, else by predicted time; None where there is nothing to compare by."""
    if price is None and target is not None and case is not None:
        price = functools.partial(Predicted, target=target, case=case, kernels=selection.kernels)
    return None if price is None else functools.partial(_choose, price)


def _choose(
    price: Callable[[GraphView], Price], view: GraphView, sites: Sequence[Site]
) -> tuple[Sequence[Site], Sequence[BlockChoice]]:
    return choose(view, sites, price(view))


def inspect(
    model: torch.nn.Module | Callable[..., Any],
    inputs: Mapping[str, Any] | None = None,
    *,
    options: Options = Options(),
    **named_inputs: Any,
) -> Report:
    """Report what fluxrewrite would rewrite in `model(**inputs)`, why not more, and what that costs and saves.

    The model is traced with fake tensors: nothing is computed, no weight is read, and the model is not changed.

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
    """Like `inspect_spec`; also returns the graphs that the report is about."""
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
    context = PredictionContext(target, case, captured.breaks)
    report = build_report(analysed, selection, options.policy, model, timing=zero, context=context)
    end = time.perf_counter()
    times = {"match_s": matched - traced, "analyse_s": end - traced, "total_s": end - start}
    timing = zero.model_copy(update={**times, **({} if prover is None else prover.timing())})
    return report.model_copy(update={"timing": timing}), tuple(analysed)


def peak_rss_mb() -> float:
    """Peak resident memory of the process in MB (10^6 bytes).

    On Linux it is read from /proc, because `ru_maxrss` includes the memory of the process before `exec`: a small program started
    by a large one would report the memory of the large one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in fields:
            return float(fields["VmHWM"].split()[0]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024) / 1e6
