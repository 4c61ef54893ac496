"""One graph through the inner backend: rewritten, compiled and run once, with fewer kernels if some fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.fx import GraphModule

from .. import parallel
from ..graph.localize import LocalGraph, localise
from ..report.model import Report
from ..rewrite.base import Replacement
from ..rewrite.joined_weights import Joinable, join, owned, settle, with_joined
from .failures import Failures, Key, blamed, first_run, writes_inputs
from .inner_compiler import InnerCompiler
from .reporting import Reporting
from .rewriter import Rewriter

__all__ = ["GraphCompilation"]

Run = Callable[..., Any]


@dataclass
class _Attempt:
    """One way to compile a graph.

    Attributes:
        rewritten: the original graph if nothing is rewritten.
        taken: what was rewritten.
        joined: the joined weights that the rewritten graph takes as further inputs.
        supposed: failures remembered of kernels that may not be at fault.
        report: the report on the graph that was delivered last.
        inline: sites may be written inline.
    """

    rewritten: GraphModule
    taken: Sequence[Replacement] = ()
    joined: list[torch.Tensor] = field(default_factory=list)
    supposed: list[Key] = field(default_factory=list)
    report: Report | None = None
    inline: bool = True


class GraphCompilation:
    """Compiles one graph.

    If several ranks run the graph, they agree on the plan and on whether it compiled. A first run that fails ends the run
    there: the other ranks wait in a collective of it, so one rank cannot try again.

    Args:
        gm: the graph as Dynamo made it.
        rewriter: rewrites it.
        compiler: the inner backend.
        reporting: where its report, warnings and internal errors go.
        failures: kernels that failed before.
        among: the ranks that run it, as `parallel.peers` returns them.
    """

    def __init__(
        self,
        gm: GraphModule,
        rewriter: Rewriter,
        compiler: InnerCompiler,
        reporting: Reporting,
        failures: Failures,
        *,
        among: Sequence[int] = (),
    ) -> None:
        self._gm, self._among = gm, among
        self._rewriter, self._compiler, self._reporting, self._failures = rewriter, compiler, reporting, failures

    @cached_property
    def _local(self) -> LocalGraph:
        return localise(self._gm)

    def run(self, inputs: list[Any]) -> Run:
        """The compiled graph. If it contains kernels, an error in its first run leads to another attempt."""
        return self._watched(*self._compiled(inputs, None))

    def _watched(self, compiled: Run, attempt: _Attempt) -> Run:
        if attempt.rewritten is self._gm or self._reporting.strict or self._among:
            return compiled
        return first_run(compiled, lambda error, inputs: self._after(error, attempt, inputs))

    def _after(self, error: Exception, attempt: _Attempt, inputs: Sequence[Any]) -> Run:
        """What to run after the first run of `attempt` failed. Raises the error if the graph cannot be run again."""
        if writes_inputs(self._gm):
            raise error  # a second run would read inputs that the failed one may have changed
        self._blame(error, attempt, "first run")
        compiled, other = self._compiled(list(inputs), attempt)
        if other.rewritten is not self._gm:
            return self._watched(compiled, other)
        return first_run(compiled, lambda error, inputs: self._acquit(error, other))

    def _acquit(self, error: Exception, attempt: _Attempt) -> Run:
        """The graph fails without kernels too, so none of them is to blame."""
        self._failures.forget(attempt.supposed)
        raise error

    def _compiled(self, inputs: list[Any], last: _Attempt | None) -> tuple[Run, _Attempt]:
        """The graph compiled without the kernels that fail to compile; each attempt has fewer of them."""
        while True:
            attempt = self._attempt(inputs, last)
            found = self._tried(attempt, inputs)
            if not isinstance(found, Exception):
                return found, attempt
            if attempt.rewritten is self._gm:
                self._acquit(found, attempt)
            if self._reporting.strict:
                raise found
            self._blame(found, attempt, "compile")
            last = attempt

    def _tried(self, attempt: _Attempt, inputs: list[Any]) -> Run | Exception:
        """The compiled graph, or the error of the inner backend. Either all ranks compile it or none does."""
        found: Run | Exception
        try:
            found = self._compile_joined(attempt, inputs)
        except Exception as error:
            found = error
        failed = isinstance(found, Exception)
        parallel.agree([f"{type(found).__name__} in the inner backend" if failed else "compiled"], self._among)
        return found

    def _compile_joined(self, attempt: _Attempt, inputs: list[Any]) -> Run:
        rewritten, joined = attempt.rewritten, attempt.joined
        if rewritten is self._gm:
            return self._compiler.compile(rewritten, inputs)
        given = self._local.inputs(inputs)
        compiled = self._compiler.compile(rewritten, [*given, *joined])
        if joined:
            settle(rewritten, given, joined)
            compiled = with_joined(compiled, rewritten, joined, self._without_rewrite)
        return self._local.taking_dtensors(compiled)

    def _without_rewrite(self, inputs: Sequence[Any]) -> Run:
        """The graph without a rewrite, for weights that are no longer joined."""
        return self._compiler.compile(self._local.gm, list(inputs))

    def _blame(self, error: Exception, attempt: _Attempt, moment: str) -> None:
        """Remember and log the kernels that failed. If none is to blame, the next attempt writes no site inline."""
        failures = self._failures
        sites, known = blamed(error, attempt.taken, attempt.rewritten)
        added = failures.add(sites, moment, error)
        attempt.supposed += [] if known else added
        attempt.inline = attempt.inline and bool(sites)
        for item in sites[:1]:
            failure = None if item.kernel is None else failures.of(item.site, item.kernel)
            where = item.site.path or item.site.kind
            more = f" and {len(sites) - 1} more sites" if len(sites) > 1 else ""
            off = f"kernels= without {item.site.kind!r} switches it off"
            self._reporting.warn_once(f"{failure}", f"{failure}; {where}{more} run as they were; {off}")

    def _attempt(self, inputs: list[Any], last: _Attempt | None) -> _Attempt:
        """Rewrite the graph and deliver its report. If fluxrewrite itself fails, the attempt is the original graph."""
        attempt = _Attempt(self._gm)
        if last is not None:
            attempt = _Attempt(self._gm, supposed=list(last.supposed), report=last.report, inline=last.inline)
        found: Report | Exception
        try:
            found = self._rewritten(inputs, attempt)
        except Exception as error:
            found = error
        parallel.agree(_lines(found), self._among)
        if isinstance(found, Exception):
            self._reporting.report_internal_error("rewriting; the graph is compiled as it was", found)
            attempt.rewritten, attempt.taken, attempt.joined = self._gm, (), []
            return attempt
        report = found
        self._reporting.deliver_report(report, attempt.rewritten, attempt.report)
        attempt.report = report
        return attempt

    def _rewritten(self, inputs: list[Any], attempt: _Attempt) -> Report:
        """Set the rewritten graph and its joined weights. If joining fails, the graph is rewritten without inline sites."""
        given = self._local.inputs(inputs)
        if attempt.inline:
            report = self._rewrite(attempt, owned(self._local.gm, given))
            try:
                attempt.joined = join(attempt.rewritten, given)
                return report
            except Exception as error:
                self._reporting.report_internal_error("joining weights; no site is written inline", error)
        return self._rewrite(attempt, lambda nodes: False)

    def _rewrite(self, attempt: _Attempt, joinable: Joinable) -> Report:
        """Set the rewritten graph. If nothing is rewritten, it is the graph that Dynamo made, with its DTensors."""
        found = self._rewriter.rewrite(self._local, joinable)
        attempt.taken = found.replacements
        attempt.rewritten = self._gm if found.gm is self._local.gm else found.gm
        return found.report


def _lines(found: Report | Exception) -> list[str]:
    """A line for each site: what ranks must agree on. Sizes are left out, because the last rank's shard may be smaller."""
    if isinstance(found, Exception):
        return [f"no plan ({type(found).__name__}: {found})"]
    kernels = [f" by {s.kernel.provider}" if s.kernel else "" for s in found.sites]
    return [f"{s.kind}:{s.form} at {s.path}: {s.choice}{k}" for s, k in zip(found.sites, kernels, strict=True)]
