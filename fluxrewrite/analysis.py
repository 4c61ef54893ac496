"""The corridor from captured graphs to a report, without compiling anything."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from .capture import Capture, capture, capture_spec
from .graph import GraphView
from .models import ModelSpec, Shapes
from .plan import Policy, Selection, make_plan
from .report.build import Analysed, build_report, dynamic_sizes
from .report.model import BreakInfo, ModelInfo, Report, Timing

__all__ = ["analyse", "inspect", "inspect_spec", "peak_rss_mb"]


def analyse(gm: GraphModule, selection: Selection, policy: Policy, **options: Any) -> Analysed:
    """View one graph and plan its rewrite; `options` go to `make_plan`."""
    view = GraphView(gm.graph)
    return Analysed(view, make_plan(view, selection, policy, **options))


def inspect(
    model: torch.nn.Module | Callable[..., Any],
    inputs: Mapping[str, Any] | None = None,
    *,
    kernels: str | Iterable[str] | None = None,
    policy: Policy = "all",
    dynamic: bool = False,
    provider: str = "builtin",
    tp: int = 1,
    **named_inputs: Any,
) -> Report:
    """What fluxrewrite would rewrite in `model(**inputs)`, and why not more.

    The model is traced with fake tensors: nothing is computed, no weight is read, and it is left as it was.

    Args:
        model: a module or function.
        inputs: keyword arguments of the call, for names that clash with the options below.
        kernels: kinds (and forms) to look for, as `"qkv:triple,attention"` or a sequence; all when None.
        policy: "all", "none", or a callable that answers True for each site to rewrite.
        dynamic: trace with symbolic sizes.
        provider: whose kernels, as `fluxrewrite.backend` takes it.
        tp: ranks among which heads and columns are divided before limits are checked.
        **named_inputs: keyword arguments of the call.

    Raises:
        InputError: an unknown kernel, form, policy or provider, or a model that raises when it is traced.
    """
    start = time.perf_counter()
    selection = Selection.of(kernels, provider, tp=tp)
    captured = capture(model, {**(inputs or {}), **named_inputs}, dynamic=dynamic)
    return _report(captured, type(model).__name__, selection, policy, start, time.perf_counter())


def inspect_spec(
    spec: ModelSpec,
    shapes: Shapes,
    dtype: torch.dtype = torch.bfloat16,
    *,
    kernels: str | Iterable[str] | None = None,
    policy: Policy = "all",
    dynamic: bool = False,
    provider: str = "builtin",
    tp: int = 1,
) -> Report:
    """`inspect` for a model found by name (`fluxrewrite.models.find_model`)."""
    start = time.perf_counter()
    selection = Selection.of(kernels, provider, tp=tp)
    captured = capture_spec(spec, shapes, dtype, dynamic=dynamic)
    return _report(captured, spec.name, selection, policy, start, time.perf_counter(), shapes)


def _report(
    captured: Capture,
    name: str,
    selection: Selection,
    policy: Policy,
    start: float,
    traced: float,
    shapes: Shapes | None = None,
) -> Report:
    analysed = [analyse(gm, selection, policy) for gm in captured.graphs]
    matched = time.perf_counter()
    model = ModelInfo(
        name=name,
        parameters=captured.parameters,
        dtype=str(captured.dtype).removeprefix("torch."),
        batch=shapes.batch if shapes else None,
        image_tokens=shapes.image_tokens if shapes else None,
        text_tokens=shapes.text_tokens if shapes else None,
        tp=selection.tp,
        graphs=len(captured.graphs),
        graph_nodes=sum(len(a.view.nodes) for a in analysed),
        graph_breaks=tuple(BreakInfo(reason=b.reason, location=b.location) for b in captured.breaks),
        dynamic_sizes=dynamic_sizes(captured.graphs),
    )
    zero = Timing(capture_s=traced - start, match_s=matched - traced, analyse_s=0, total_s=0, peak_rss_mb=peak_rss_mb())
    report = build_report(analysed, selection, policy, model, zero)
    end = time.perf_counter()
    timing = zero.model_copy(update={"analyse_s": end - matched, "total_s": end - start})
    return report.model_copy(update={"timing": timing})


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
