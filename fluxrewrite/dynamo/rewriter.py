"""One graph of Dynamo planned, rewritten and reported on."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from ..analysis import analyse, peak_rss_mb
from ..fusion.boundary.planned_graph import PlannedGraph
from ..graph.localize import LocalGraph, mesh_of
from ..graph.modules import as_module
from ..report.build import PredictionContext, build_report, dynamic_sizes
from ..report.model import ModelInfo, Report, Timing
from ..rewrite.base import Replacement
from ..rewrite.joined_weights import Joinable
from ..rewrite.proof import Prover
from .failures import Failures
from .inner_compiler import InnerCompiler
from .measured_price import Measured
from .reporting import Reporting
from .settings import Settings
from .time_cache import Times

__all__ = ["Rewriter", "Rewritten"]

_NO_TIME = Timing(capture_s=0, match_s=0, analyse_s=0, total_s=0, peak_rss_mb=0)


@dataclass(frozen=True)
class Rewritten:
    """A rewritten graph: `gm` is the given graph itself if nothing was replaced."""

    gm: GraphModule
    replacements: tuple[Replacement, ...]
    report: Report


@dataclass(frozen=True)
class Rewriter:
    """Rewrites graphs by the settings of a backend.

    Attributes:
        settings: what is rewritten, and by which rule.
        compiler: compiles the candidates of the policy "measure".
        times: measured times of earlier compiles.
        failures: kernels that failed before; none is tried again at a site like the one where it failed.
        reporting: where warnings and internal errors go.
    """

    settings: Settings
    compiler: InnerCompiler
    times: Times
    failures: Failures
    reporting: Reporting

    def rewrite(self, local: LocalGraph, joinable: Joinable) -> Rewritten:
        """Plan, rewrite and report on a graph.

        Args:
            local: the graph of one rank.
            joinable: whether weights can be joined, so that a site may be written inline.
        """
        start = time.perf_counter()
        prover = None if self.settings.proofs is None else Prover(self.settings.proofs)
        planned, graph = self._analyse(local.gm, joinable, prover)
        self.reporting.check_carried_out(planned.plan)
        matched = time.perf_counter()
        report = self._report(local, planned)
        end = time.perf_counter()
        timing = Timing(
            capture_s=0,
            match_s=matched - start,
            analyse_s=end - start,
            total_s=end - start,
            peak_rss_mb=peak_rss_mb(),
            **({} if prover is None else prover.timing()),
        )
        replacements = tuple(planned.plan.replacements())
        return Rewritten(as_module(local.gm, graph), replacements, report.model_copy(update={"timing": timing}))

    def _analyse(
        self, gm: GraphModule, joinable: Joinable, prover: Prover | None
    ) -> tuple[PlannedGraph, torch.fx.Graph]:
        settings = self.settings
        return analyse(
            gm,
            settings.selection,
            settings.policy,
            settings.target,
            on_error=self.reporting.report_internal_error,
            price=(lambda _: self._measured(gm)) if settings.policy == "measure" else None,
            joinable=joinable,
            failed=self.failures.of,
            prove=prover,
        )

    def _measured(self, gm: GraphModule) -> Measured:
        return Measured(
            gm,
            self.settings.selection,
            compiler=self.compiler.compile,
            times=self.times,
            machine=self.compiler.machine,
            warn=self.reporting.warn_once,
        )

    def _report(self, local: LocalGraph, planned: PlannedGraph) -> Report:
        """The report, without predictions if making them fails: the rewrite itself does not depend on them."""
        settings = self.settings
        info = _model_info(local, self.compiler.adapter.eager_fallback())
        build = functools.partial(build_report, [planned], settings.selection, settings.policy, info, timing=_NO_TIME)
        if settings.target is None or planned.change is None:
            return build()
        try:
            return build(context=PredictionContext(settings.target, settings.target.case))
        except Exception as error:
            self.reporting.report_internal_error(
                "predicting what the rewrite does; the report says nothing of it", error
            )
            return build()


def _model_info(local: LocalGraph, eager_fallback: bool | None) -> ModelInfo:
    """Parameters are counted for the whole model, nodes for the graph of one rank."""
    gm, mesh = local.gm, mesh_of(local.traced)
    weights = [n.meta.get("example_value") for n in local.traced.graph.find_nodes(op="placeholder")]
    parameters = [w for w in weights if isinstance(w, torch.nn.Parameter)]
    dtypes = [p.dtype for p in parameters]
    return ModelInfo(
        name=type(gm).__name__,
        parameters=sum(int(p.numel()) for p in parameters),
        dtype=str(max(dtypes, key=dtypes.count, default=None)).removeprefix("torch."),
        tp=1 if mesh is None else mesh.size(),
        graphs=1,
        graph_nodes=len(gm.graph.nodes),
        dynamic_sizes=dynamic_sizes([gm]),
        eager_fallback=eager_fallback,
    )
