"""One graph on its way through the inner backend: rewritten, compiled, run once, with fewer kernels where some fail."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.fx import GraphModule

from .failures import Failures, Key, blamed, first_run, writes_inputs
from .join import Joinable, join, owned, settle, with_joined
from .local import Local, localise
from .parallel import agree
from .report.model import Report
from .rewrite import Replacement

__all__ = ["Compiling", "Host"]

Run = Callable[..., Any]


class Host(Protocol):
    """What a graph needs of the backend that compiles it.

    Attributes:
        strict: failures are raised.
        failures: kernels that failed before.
    """

    strict: bool
    failures: Failures

    def rewrite(
        self, gm: GraphModule, traced: GraphModule, joinable: Joinable
    ) -> tuple[GraphModule, list[Replacement], Report]:
        """The rewritten graph, what was replaced, and the report; `traced` is what `gm` came from."""

    def compile(self, gm: GraphModule, inputs: list[Any]) -> Run:
        """By the inner backend."""

    def tell(self, report: Report, rewritten: GraphModule, before: Report | None) -> None:
        """Deliver a report, in the place of one that was delivered before."""

    def failed(self, doing: str, error: Exception) -> None:
        """Raise the error if strict, else say it once."""

    def warn_once(self, key: str, message: str) -> None:
        """Say something, but not again under the same key."""


@dataclass
class _Attempt:
    """One way to compile a graph.

    Attributes:
        rewritten: the graph itself where nothing is rewritten.
        taken: what was rewritten.
        joined: the weights that it wants joined.
        supposed: what was remembered of kernels that may not be at fault.
        report: the one that stands for the graph.
        inline: sites may be written inline.
    """

    rewritten: GraphModule
    taken: list[Replacement] = field(default_factory=list)
    joined: list[torch.Tensor] = field(default_factory=list)
    supposed: list[Key] = field(default_factory=list)
    report: Report | None = None
    inline: bool = True


class Compiling:
    """See the module.

    Args:
        host: the backend.
        traced: the graph as Dynamo made it.
        among: the ranks that it works with, as `parallel.peers` answers them. They must agree on what becomes of it, once: where a
            kernel fails on one of several ranks the error goes on up, for the others cannot follow.
    """

    def __init__(self, host: Host, traced: GraphModule, among: Sequence[int] = ()) -> None:
        self._host, self._traced, self._among = host, traced, among
        self._local = Local(traced)
        self._final = host.strict or len(among) > 1

    @property
    def _gm(self) -> GraphModule:
        """The graph of one rank."""
        return self._local.gm

    def run(self, inputs: list[Any]) -> Run:
        """The compiled graph, the first run of which is watched if kernels are in it."""
        return self._watched(*self._compiled(inputs, None))

    def _watched(self, compiled: Run, attempt: _Attempt) -> Run:
        if attempt.rewritten is self._gm or self._final:
            return compiled
        return first_run(compiled, lambda error, inputs: self._after(error, attempt, inputs))

    def _after(self, error: Exception, attempt: _Attempt, inputs: Sequence[Any]) -> Run:
        """What runs after the first run of `attempt` failed. Raises the error where the graph cannot be run again."""
        if writes_inputs(self._gm):
            raise error
        self._blame(error, attempt, "first run")
        compiled, other = self._compiled(list(inputs), attempt)
        if other.rewritten is not self._gm:
            return self._watched(compiled, other)
        return first_run(compiled, lambda error, inputs: self._acquit(error, other))

    def _acquit(self, error: Exception, attempt: _Attempt) -> Run:
        """The graph fails without kernels too: none is to blame."""
        self._host.failures.forget(attempt.supposed)
        raise error

    def _compiled(self, inputs: list[Any], last: _Attempt | None) -> tuple[Run, _Attempt]:
        """The graph compiled without the sites whose kernels fail at that; each attempt has fewer of them."""
        while True:
            attempt = self._attempt(inputs, last)
            try:
                return self._compile_joined(attempt, inputs), attempt
            except Exception as error:
                if attempt.rewritten is self._gm:
                    self._acquit(error, attempt)
                if self._final:
                    raise
                self._blame(error, attempt, "compile")
            last = attempt

    def _compile_joined(self, attempt: _Attempt, inputs: list[Any]) -> Run:
        rewritten, joined = attempt.rewritten, attempt.joined
        if rewritten is self._gm:
            return self._host.compile(self._traced, inputs)
        inputs = self._local.inputs(inputs)
        compiled = self._host.compile(rewritten, [*inputs, *joined])
        if joined:
            settle(rewritten, inputs, joined)
            apart = functools.partial(self._as_it_was, self._gm)
            compiled = with_joined(compiled, rewritten, joined, apart)
        return self._local.taking_dtensors(compiled)

    def _as_it_was(self, gm: GraphModule, inputs: Sequence[Any]) -> Run:
        return self._host.compile(gm, list(inputs))

    def _blame(self, error: Exception, attempt: _Attempt, moment: str) -> None:
        """Remember the kernels that failed, and say so; where there are none, what is written inline is left out next."""
        failures = self._host.failures
        sites, known = blamed(error, attempt.taken, attempt.rewritten)
        added = failures.add(sites, moment, error)
        attempt.supposed += [] if known else added
        attempt.inline = attempt.inline and bool(sites)
        for item in sites[:1]:
            failure = None if item.kernel is None else failures.of(item.site, item.kernel)
            where = item.site.path or item.site.kind
            more = f" and {len(sites) - 1} more sites" if len(sites) > 1 else ""
            off = f"kernels= without {item.site.kind!r} switches it off"
            self._host.warn_once(f"{failure}", f"{failure}; {where}{more} run as they were; {off}")

    def _attempt(self, inputs: list[Any], last: _Attempt | None) -> _Attempt:
        """The graph rewritten, and its report delivered; as it was where fluxrewrite itself fails."""
        attempt = _Attempt(self._gm)
        if last is not None:
            attempt = _Attempt(self._gm, supposed=list(last.supposed), report=last.report, inline=last.inline)
        try:
            if last is None:
                self._local = localise(self._traced)
            report = self._rewritten(self._local.inputs(inputs), attempt)
        except Exception as error:
            agree([f"no plan ({type(error).__name__}: {error})"], self._among)
            self._host.failed("rewriting; the graph is compiled as it was", error)
            attempt.rewritten, attempt.taken, attempt.joined = self._gm, [], []
            return attempt
        agree(_lines(report), self._among)
        self._host.tell(report, attempt.rewritten, attempt.report)
        attempt.report = report
        return attempt

    def _rewritten(self, inputs: list[Any], attempt: _Attempt) -> Report:
        """Fill in the rewritten graph and the weights that it wants joined; without these if joining fails."""
        if attempt.inline:
            joinable = owned(self._gm, inputs)
            attempt.rewritten, attempt.taken, report = self._host.rewrite(self._gm, self._traced, joinable)
            try:
                attempt.joined = join(attempt.rewritten, inputs)
                return report
            except Exception as error:
                self._host.failed("joining weights; no site is written inline", error)
        attempt.rewritten, attempt.taken, report = self._host.rewrite(self._gm, self._traced, lambda nodes: False)
        return report


def _lines(report: Report) -> list[str]:
    """A line for each site: what the ranks must agree on. Sizes are not among it: the last part may be smaller."""
    kernels = [f" by {s.kernel.provider}" if s.kernel else "" for s in report.sites]
    return [f"{s.kind}:{s.form} at {s.path}: {s.choice}{k}" for s, k in zip(report.sites, kernels, strict=True)]
