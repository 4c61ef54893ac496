"""The torch.compile backend: rewrite Dynamo's graph, then hand it to an inner backend."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from .. import parallel
from ..errors import InputError
from ..fusion.boundary.target import Target
from ..report.model import Report
from ..rewrite.plan import CHOOSING, Policy, check_policy
from ..rewrite.proof import Store, check_proof
from ..rewrite.selection import Selection
from .compile_graph import GraphCompilation
from .failures import Failures
from .inner import default_inner, inner_backend, prepare
from .inner_compiler import InnerCompiler
from .reporting import Reporting, Sink
from .rewriter import Rewriter
from .settings import Settings
from .time_cache import Times

__all__ = ["Backend", "backend", "dynamo_backend"]

FAILURES = Failures()
"""Shared by the process: a kernel that does not compile for one graph does not compile for the next."""
Inner = str | Callable[..., Any]


class Backend:
    """A backend for `torch.compile(model, backend=fluxrewrite.backend(...))`; `fluxrewrite.backend` is this class.

    Args:
        inner: what compiles the rewritten graph: a backend name that torch knows, or a callable
            `(gm, example_inputs) -> callable`. By default that of the accelerator, such as "neuron" where it is installed with a
            device, else "inductor".
        kernels: kinds (and forms) of site to rewrite: `("qkv:triple", "attention")`; all when None.
        policy: "auto" takes the set of kernels that is predicted to make each distinct block fastest on `device`; "measure" takes
            the set that is fastest when the block runs here, compiled by the inner backend; "all", "none", or a callable that
            returns True for each `Site` to rewrite.
        report: called with the `Report` of each graph, or the path of a JSON file about all graphs compiled so far.
        strict: raise if fluxrewrite itself fails; otherwise it warns and compiles the original graph.
        options: passed to the inner backend as `options=`.
        provider: whose kernels: "builtin", "nkilib" or `nkilib@2.29` (limits of that SDK version), or "reference" for the
            bodies of the canonical ops, which take every shape.
        execution: what a kernel call runs: "reference", the op's body in torch; "emulate", the NKI kernel on the CPU; "device", the
            kernel on the device; "custom_call", a custom call that XLA compiles but cannot run. The default is the inner
            backend's: "device" for "neuron", and for "openxla" with Neuron's packages of the XLA stack, else "reference".
        device: name or file of the device profile that times and boundaries are predicted for. The default is the inner
            backend's: "trn2" for "neuron", else "cpu". `fluxrewrite calibrate` measures a profile of this machine.
        evidence: files of measured runs in addition to the shipped ones.
        cache_dir: folder for measured times (policy "measure") and proofs; by default `fluxrewrite` in the folder of Inductor's
            cache.
        lnc: with inner "neuron", physical NeuronCores that a kernel call takes, 1 or 2; by default those of a logical core in
            this process (NEURON_LOGICAL_NC_CONFIG, else the platform's).
        proof: "numeric" runs each distinct site and its replacement on the same random inputs before it is replaced, once for
            all compiles; a site that differs is left alone. "structural" relies on the structure of the graph.

    Attributes:
        reports: the report of every graph compiled so far.
        failures: kernels that failed; all backends of a process share them.
        settings, compiler, rewriter, reporting: what compiles a graph, one after the other.

    Raises:
        InputError: an unknown inner backend, kernel, form, policy, provider, execution or proof, or one that is not
            available here.
    """

    def __init__(
        self,
        inner: Inner | None = None,
        kernels: str | Iterable[str] | None = None,
        policy: Policy = "all",
        report: Sink = None,
        strict: bool = False,
        options: Mapping[str, Any] | None = None,
        provider: str = "builtin",
        execution: str | None = None,
        device: str | Path | None = None,
        evidence: Iterable[str | Path] = (),
        cache_dir: str | Path | None = None,
        lnc: int | None = None,
        proof: str = "numeric",
    ) -> None:
        inner = inner or default_inner()
        name = inner if isinstance(inner, str) else ""
        record = inner_backend(name)
        execution = execution or record.default_execution()
        check_policy(policy)
        check_proof(proof)
        selection = Selection.of(kernels, provider, execution)
        adapter = prepare(name, execution, lnc)
        predicts = device is not None or report is not None or policy in CHOOSING
        target = Target.of(device or record.profile, evidence=evidence) if predicts else None
        self.settings = Settings(selection, policy, target, Store(cache_dir) if proof == "numeric" else None)
        self.compiler = InnerCompiler(*_resolve(inner), options=options, adapter=adapter, settings=self.settings)
        self.reporting = Reporting(report, strict)
        self.rewriter = Rewriter(self.settings, self.compiler, Times(cache_dir), FAILURES, self.reporting)

    @property
    def failures(self) -> Failures:
        """Kernels that failed, which planning leaves out; all backends of a process share them unless others are set."""
        return self.rewriter.failures

    @failures.setter
    def failures(self, failures: Failures) -> None:
        self.rewriter = replace(self.rewriter, failures=failures)

    @property
    def reports(self) -> list[Report]:
        """The report of every graph compiled so far."""
        return self.reporting.reports

    @property
    def inner_name(self) -> str:
        """Name of the inner backend."""
        return self.compiler.name

    @property
    def cache_key(self) -> str:
        """See `InnerCompiler.cache_key`."""
        return self.compiler.cache_key

    def __call__(self, gm: GraphModule, example_inputs: list[Any], **given: Any) -> Callable[..., Any]:
        """Compile one graph; torch.compile calls this."""
        if given:
            names = ", ".join(sorted(given))
            raise InputError(
                f"torch.compile got {names} together with a fluxrewrite backend; pass them to fluxrewrite.backend(...)"
            )
        if self.compiler.adapter.eager_fallback():
            self.reporting.warn_once("eager fallback", self.compiler.adapter.fallback_warning)
        among = parallel.peers(gm)
        if among and self.settings.policy == "measure":
            raise InputError(
                f"policy 'measure' would let each of {len(among)} ranks choose by its own times; use 'auto', 'all' or a callable"
            )
        compilation = GraphCompilation(gm, self.rewriter, self.compiler, self.reporting, self.failures, among=among)
        return compilation.run(example_inputs)


backend = Backend


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
    key = repr(sorted(given.items()))
    if (
        key not in _NAMED
    ):  # making one reads profiles and evidence, once for the model and not once for each of its graphs
        _NAMED[key] = backend(**given)
    return _NAMED[key](gm, example_inputs)
