"""The torch.compile backend: rewrite Dynamo's graph, then hand it to an inner backend."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.convert_frame import compile_lock
from torch._logging._internal import trace_structured
from torch.fx import GraphModule

from .. import parallel
from ..analysis import analyse, peak_rss_mb
from ..cost import Case
from ..errors import InputError, RewriteError
from ..fusion.boundary.planned_graph import PlannedGraph
from ..fusion.boundary.target import Target
from ..graph.localize import LocalGraph, mesh_of
from ..graph.modules import as_module
from ..report.build import PredictionContext, build_report, dynamic_sizes
from ..report.merge import merge
from ..report.model import ModelInfo, Report, Timing
from ..rewrite.base import Replacement
from ..rewrite.joined_weights import Joinable
from ..rewrite.plan import CHOOSING, Plan, Policy, check_policy
from ..rewrite.proof import Prover, Store, check_proof
from ..rewrite.selection import Selection
from ..site import Code
from .cache_key import cache_key
from .compile_graph import GraphCompilation
from .failures import Failures
from .inner import InnerAdapter, default_inner, inner_backend, prepare
from .machine import machine_text
from .measured_price import Measured
from .time_cache import Times

__all__ = ["Backend", "backend", "dynamo_backend"]

_NO_TIME = Timing(capture_s=0, match_s=0, analyse_s=0, total_s=0, peak_rss_mb=0)
FAILURES = Failures()
"""Of this process: a kernel that does not compile for one graph will not for the next."""
log = logging.getLogger("fluxrewrite")
Inner = str | Callable[..., Any]


def backend(
    inner: Inner | None = None,
    kernels: str | Iterable[str] | None = None,
    policy: Policy = "all",
    report: Callable[[Report], None] | str | Path | None = None,
    strict: bool = False,
    options: Mapping[str, Any] | None = None,
    provider: str = "builtin",
    execution: str | None = None,
    device: str | Path | None = None,
    evidence: Iterable[str | Path] = (),
    cache_dir: str | Path | None = None,
    lnc: int | None = None,
    proof: str = "numeric",
) -> Backend:
    """A backend for `torch.compile(model, backend=fluxrewrite.backend(...))`.

    Args:
        inner: what compiles the rewritten graph: a backend name that torch knows, or a callable
            `(gm, example_inputs) -> callable`. By default that of the accelerator here, such as "neuron" where it is installed
            with a device; else "inductor".
        kernels: kinds (and forms) of site to rewrite: `("qkv:triple", "attention")`; all when None.
        policy: "auto" takes the set of kernels that makes each distinct block fastest, as predicted for `device`; "measure" the
            one that is fastest when the block runs here, compiled by the inner backend; "all", "none", or a callable that
            answers True for each `Site` to rewrite.
        report: called with the `Report` of each graph, or a path: a JSON file on all graphs compiled so far.
        strict: raise when fluxrewrite itself fails; otherwise it warns and compiles the graph as it was.
        options: passed to the inner backend as `options=`.
        provider: whose kernels: "builtin", "nkilib" or `nkilib@2.29` (limits of that SDK version), or "reference" for the
            bodies of the canonical ops, which take every shape.
        execution: what a kernel call runs: "reference", the op's body in torch; "emulate", the NKI kernel on the CPU; "device";
            "custom_call", nothing: XLA compiles a custom call and cannot run it. The default is the inner backend's: "device" for
            "neuron", and for "openxla" with Neuron's packages of the XLA stack; else "reference".
        device: name or file of the device profile that times are predicted for, and with which the report tells of boundaries.
            The default is the inner backend's: "trn2" for "neuron", else "cpu". `fluxrewrite calibrate` measures the machine at
            hand.
        evidence: files of measured runs beside those that ship.
        cache_dir: folder of the times that policy "measure" found and of proofs; by default `fluxrewrite` in the folder of
            Inductor's cache.
        lnc: with inner "neuron", physical NeuronCores that a kernel call takes, 1 or 2; by default those of a logical core in
            this process (NEURON_LOGICAL_NC_CONFIG, else the platform's).
        proof: "numeric" runs each distinct site and what would replace it on the same random inputs before it is replaced,
            once for all compiles; one that differs is left alone. "structural" goes by the structure of the graph alone.

    Raises:
        InputError: an unknown inner backend, kernel, form, policy, provider, execution or proof, or one that cannot be had
            here.
    """
    inner = inner or default_inner()
    named = inner if isinstance(inner, str) else ""
    record = inner_backend(named)
    execution = execution or record.default_execution()
    check_policy(policy)
    check_proof(proof)
    selection = Selection.of(kernels, provider, execution)
    around = prepare(named, execution, lnc)
    target = None
    if device is not None or report is not None or policy in CHOOSING:
        target = Target.of(device or record.profile, evidence=evidence)
    store = Store(cache_dir) if proof == "numeric" else None
    return Backend(inner, selection, policy, report, strict, options, target, Times(cache_dir), around, store)


class Backend:
    """See `backend`.

    Attributes:
        reports: the report of every graph compiled so far.
        failures: kernels that failed; all backends of a process share them.
    """

    def __init__(
        self,
        inner: Inner,
        selection: Selection,
        policy: Policy,
        report: Callable[[Report], None] | str | Path | None,
        strict: bool,
        options: Mapping[str, Any] | None,
        target: Target | None,
        times: Times,
        around: InnerAdapter,
        proofs: Store | None = None,
        failures: Failures = FAILURES,
    ) -> None:
        self.failures = failures
        self.target = target
        self._around = around
        self._times, self._proofs = times, proofs
        self.inner_name, self._inner = _resolve(inner)
        self.selection = selection
        self.policy = policy
        self.strict = strict
        self.reports: list[Report] = []
        self._sink = report
        if isinstance(report, (str, Path)) and not Path(report).absolute().parent.is_dir():
            raise InputError(f"report={str(report)!r}: the folder {Path(report).absolute().parent} does not exist")
        self._options = options
        self._warned: set[str] = set()

    def __call__(self, gm: GraphModule, example_inputs: list[Any], **given: Any) -> Callable[..., Any]:
        """Compile one graph; torch.compile calls this."""
        if given:
            names = ", ".join(sorted(given))
            raise InputError(
                f"torch.compile was given {names} beside a fluxrewrite backend; pass them to fluxrewrite.backend(...)"
            )
        if self._around.eager_fallback():
            self.warn_once("eager fallback", self._around.fallback_warning)
        among = parallel.peers(gm)
        if among and self.policy == "measure":
            raise InputError(
                f"policy 'measure' would let each of {len(among)} ranks choose by its own times; use 'auto', 'all' or a callable"
            )
        return GraphCompilation(self, gm, among).run(example_inputs)

    def deliver_report(self, report: Report, rewritten: GraphModule, before: Report | None) -> None:
        """Keep a report, in the place of `before` if that was kept, and deliver it."""
        if before is None:
            self.reports.append(report)
        else:
            self.reports[[r is before for r in self.reports].index(True)] = report
        try:
            self._warn_nothing_found(report)
            self._trace(report, rewritten)
            self._deliver(report)
        except Exception as error:
            self.report_internal_error("delivering the report", error)

    def compile(self, gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """By the inner backend, under the key of these kernels and options."""
        extra = {} if self._options is None else {"options": dict(self._options)}
        tags = [t for t in (torch.compiler.config.cache_key_tag, f"fluxrewrite {self.cache_key}") if t]
        config: Any = torch.compiler.config
        # Dynamo holds this lock where it compiles; a compile while a graph runs has to take it.
        with compile_lock, config.patch(cache_key_tag=" ".join(tags)):
            result: Callable[..., Any] = self._inner(self._around.ready(gm), inputs, **extra)
        return result

    @functools.cached_property
    def cache_key(self) -> str:
        """See `fluxrewrite.dynamo.cache_key.cache_key`; it is part of the keys of Inductor's caches."""
        return cache_key(
            self.selection, self.policy, self.target, self._inner, options=self._options, adapter=self._around
        )

    def _measured(self, gm: GraphModule) -> Measured:
        machine = functools.partial(machine_text, inner=self._inner, name=self.inner_name, options=self._options)
        return Measured(gm, self.selection, self.compile, self._times, machine, self.warn_once)

    def report_internal_error(self, doing: str, error: Exception) -> None:
        """Raise an error of fluxrewrite if strict, else say it once."""
        if self.strict:
            raise error
        self.warn_once(doing, f"failed in {doing} ({type(error).__name__}: {error}); strict=True raises")

    def rewrite(self, local: LocalGraph, joinable: Joinable) -> tuple[GraphModule, list[Replacement], Report]:
        """The rewritten graph, `local.gm` itself where nothing is; what was replaced; the report."""
        start = time.perf_counter()
        gm, target = local.gm, self.target
        case = None if target is None else Case(device=target.device.name, regime=target.regime)  # type: ignore[arg-type]
        price = (lambda _: self._measured(gm)) if self.policy == "measure" else None
        prover = None if self._proofs is None else Prover(self._proofs)
        analysed, rewritten = analyse(
            gm,
            self.selection,
            self.policy,
            target,
            case,
            on_error=self.report_internal_error,
            price=price,
            joinable=joinable,
            failed=self.failures.of,
            prove=prover,
        )
        self._check_carried_out(analysed.plan)
        matched = time.perf_counter()
        report = self._report(
            local, analysed, None if target is None or case is None else PredictionContext(target, case)
        )
        end = time.perf_counter()
        timing = Timing(
            capture_s=0,
            match_s=matched - start,
            analyse_s=end - start,
            total_s=end - start,
            peak_rss_mb=peak_rss_mb(),
            **({} if prover is None else prover.timing()),
        )
        return as_module(gm, rewritten), analysed.plan.replacements(), report.model_copy(update={"timing": timing})

    def _report(self, local: LocalGraph, analysed: PlannedGraph, foresight: PredictionContext | None) -> Report:
        """The report; without predictions where making them fails, for the rewrite does not hang on them."""
        info = _model_info(local).model_copy(update={"eager_fallback": self._around.eager_fallback()})
        build = functools.partial(build_report, [analysed], self.selection, self.policy, info, _NO_TIME)
        if foresight is None or analysed.change is None:
            return build()
        try:
            return build(foresight)
        except Exception as error:
            self.report_internal_error("predicting what the rewrite does; the report says nothing of it", error)
            return build()

    def _check_carried_out(self, plan: Plan) -> None:
        """Sites whose replacement turned out to differ: raise if strict, else say so once."""
        for code in (Code.NOT_EQUIVALENT, Code.UNPROVED):
            found = [(d.finding, r) for d in plan.decisions for r in d.reasons if r.code == code]
            for finding, reason in found[:1]:
                what = f"{len(found)} sites are left alone; the first, {finding.kind} at {finding.path or reason.node}"
                self.warn_once(f"{code} {finding.kind}", f"{what}: {reason.message}")
        failed = [r for d in plan.decisions for r in d.reasons if r.code == Code.REPLACEMENT]
        if failed and self.strict:
            raise RewriteError(
                f"{len(failed)} sites could not be rewritten; the first at {failed[0].node}: {failed[0].message}"
            )
        if failed:
            what = f"{len(failed)} sites are left alone; the first at {failed[0].node}: {failed[0].message}; strict=True raises"
            self.warn_once("replacement", what)

    def _trace(self, report: Report, rewritten: GraphModule) -> None:
        """For tlparse: the report as JSON and as the page, and the graph that the inner backend gets."""
        trace_structured(
            "artifact",
            metadata_fn=lambda: {"name": "fluxrewrite_report", "encoding": "json"},
            payload_fn=report.to_json,
        )
        trace_structured(
            "artifact",
            metadata_fn=lambda: {"name": "fluxrewrite_page", "encoding": "string"},
            payload_fn=lambda: _page(report),
        )
        trace_structured(
            "artifact",
            metadata_fn=lambda: {"name": "fluxrewrite_after", "encoding": "string"},
            payload_fn=lambda: rewritten.print_readable(print_output=False),
        )

    def _warn_nothing_found(self, report: Report) -> None:
        for kind, summary in report.summary.kinds.items():
            if summary.found:
                continue
            reasons = [s.reasons[0] for s in report.sites if s.kind == kind and s.reasons]
            why = f"{reasons[0].code}: {reasons[0].message}" if reasons else f"looked for {summary.looks_for}"
            self.warn_once(kind, f"{kind}: no site in a graph of {report.model.graph_nodes} nodes; {why}")

    def warn_once(self, key: str, message: str) -> None:
        """Log a warning, but not again under the same key."""
        if key not in self._warned:
            self._warned.add(key)
            log.warning("fluxrewrite: %s", message)

    def _deliver(self, report: Report) -> None:
        if callable(self._sink):
            self._sink(report)
        elif self._sink is not None:
            Path(self._sink).write_text(merge(self.reports).to_json())


def _page(report: Report) -> str:
    from ..report.draw.page import page  # jinja2 is for those who look at a trace

    return page(report)


def _model_info(local: LocalGraph) -> ModelInfo:
    """Parameters are those of the whole model, nodes those of one rank's graph."""
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
    )


def _resolve(inner: Inner) -> tuple[str, Callable[..., Any]]:
    if callable(inner):
        return getattr(inner, "__name__", type(inner).__name__), inner
    known = [n for n in torch._dynamo.list_backends(exclude_tags=None) if n != "fluxrewrite"]
    if inner not in known:
        raise InputError(f"unknown inner backend {inner!r}; known: {', '.join(known)}, or a callable")
    return inner, torch._dynamo.lookup_backend(inner)


_NAMED: dict[str, Backend] = {}


def dynamo_backend(
    gm: GraphModule, example_inputs: list[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Entry point of `torch.compile(model, backend="fluxrewrite")`; `options` are the arguments of `backend`.

    The same options are the same backend, so that the graphs of one model share its report. Raises InputError for `mode`
    and for unknown options.
    """
    if mode not in (None, "default"):
        raise InputError(
            f"mode={mode!r}: fluxrewrite has no modes; pass options of the inner backend as options={{'options': ...}}"
        )
    given = dict(options or {})
    unknown = set(given) - set(inspect.signature(backend).parameters)
    if unknown:
        known = ", ".join(inspect.signature(backend).parameters)
        raise InputError(f"unknown options {', '.join(sorted(unknown))}; known: {known}")
    chosen = _NAMED.setdefault(repr(sorted(given.items())), backend(**given))
    return chosen(gm, example_inputs)
