"""One graph on its way through the inner backend: rewritten, compiled, run once, with fewer kernels where some fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.fx import GraphModule

from .failures import Failures, Key, blamed, first_run, writes_inputs
from .join import Joinable, join, owned, settle, with_joined
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

    def rewrite(self, gm: GraphModule, joinable: Joinable) -> tuple[GraphModule, list[Replacement], Report]:
        """The rewritten graph, what was replaced, and the report."""

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
        gm: the graph as Dynamo made it.
    """

    def __init__(self, host: Host, gm: GraphModule) -> None:
        self._host, self._gm = host, gm

    def run(self, inputs: list[Any]) -> Run:
        """The compiled graph, the first run of which is watched if kernels are in it."""
        return self._watched(*self._compiled(inputs, None))

    def _watched(self, compiled: Run, attempt: _Attempt) -> Run:
        if attempt.rewritten is self._gm or self._host.strict:
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
                if self._host.strict:
                    raise
                self._blame(error, attempt, "compile")
            last = attempt

    def _compile_joined(self, attempt: _Attempt, inputs: list[Any]) -> Run:
        rewritten, joined = attempt.rewritten, attempt.joined
        compiled = self._host.compile(rewritten, [*inputs, *joined])
        if not joined:
            return compiled
        settle(rewritten, inputs, joined)
        return with_joined(compiled, rewritten, joined, lambda inputs: self._host.compile(self._gm, list(inputs)))

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
            report = self._rewritten(inputs, attempt)
        except Exception as error:
            self._host.failed("rewriting; the graph is compiled as it was", error)
            attempt.rewritten, attempt.taken, attempt.joined = self._gm, [], []
            return attempt
        self._host.tell(report, attempt.rewritten, attempt.report)
        attempt.report = report
        return attempt

    def _rewritten(self, inputs: list[Any], attempt: _Attempt) -> Report:
        """Fill in the rewritten graph and the weights that it wants joined; without these if joining fails."""
        if attempt.inline:
            attempt.rewritten, attempt.taken, report = self._host.rewrite(self._gm, owned(self._gm, inputs))
            try:
                attempt.joined = join(attempt.rewritten, inputs)
                return report
            except Exception as error:
                self._host.failed("joining weights; no site is written inline", error)
        attempt.rewritten, attempt.taken, report = self._host.rewrite(self._gm, lambda nodes: False)
        return report
