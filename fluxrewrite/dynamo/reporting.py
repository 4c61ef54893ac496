"""Where a backend's reports, warnings and internal errors go."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from torch._logging._internal import trace_structured
from torch.fx import GraphModule

from ..errors import InputError, RewriteError
from ..report.merge import merge
from ..report.model import Report
from ..rewrite.plan import Plan
from ..site import Code

__all__ = ["Reporting", "Sink"]

log = logging.getLogger("fluxrewrite")
Sink = Callable[[Report], None] | str | Path | None


class Reporting:
    """Reports of the graphs compiled so far, and what was logged about them.

    Args:
        sink: called with each report, or the path of a JSON file on all graphs compiled so far.
        strict: internal errors are raised instead of logged.

    Attributes:
        reports: one for each graph compiled so far.

    Raises InputError where the folder of the file does not exist.
    """

    def __init__(self, sink: Sink, strict: bool) -> None:
        if isinstance(sink, (str, Path)) and not Path(sink).absolute().parent.is_dir():
            raise InputError(f"report={str(sink)!r}: the folder {Path(sink).absolute().parent} does not exist")
        self._sink, self.strict = sink, strict
        self.reports: list[Report] = []
        self._warned: set[str] = set()

    def deliver_report(self, report: Report, rewritten: GraphModule, before: Report | None) -> None:
        """Keep and deliver a report. It replaces `before`, the report of an earlier attempt on the same graph."""
        if before is None:
            self.reports.append(report)
        else:
            self.reports[[r is before for r in self.reports].index(True)] = report
        try:
            self._warn_nothing_found(report)
            _trace(report, rewritten)
            if callable(self._sink):
                self._sink(report)
            elif self._sink is not None:
                Path(self._sink).write_text(merge(self.reports).to_json())
        except Exception as error:
            self.report_internal_error("delivering the report", error)

    def report_internal_error(self, doing: str, error: Exception) -> None:
        """Raise an error of fluxrewrite if strict; otherwise log it once."""
        if self.strict:
            raise error
        self.warn_once(doing, f"failed in {doing} ({type(error).__name__}: {error}); strict=True raises")

    def warn_once(self, key: str, message: str) -> None:
        """Log a warning, but not again under the same key."""
        if key not in self._warned:
            self._warned.add(key)
            log.warning("fluxrewrite: %s", message)

    def check_carried_out(self, plan: Plan) -> None:
        """Warn about sites that were left alone because their replacement differs or fails. Raises RewriteError if strict."""
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

    def _warn_nothing_found(self, report: Report) -> None:
        for kind, summary in report.summary.kinds.items():
            if summary.found:
                continue
            reasons = [s.reasons[0] for s in report.sites if s.kind == kind and s.reasons]
            why = f"{reasons[0].code}: {reasons[0].message}" if reasons else f"looked for {summary.looks_for}"
            self.warn_once(kind, f"{kind}: no site in a graph of {report.model.graph_nodes} nodes; {why}")


def _trace(report: Report, rewritten: GraphModule) -> None:
    """Give tlparse the report as JSON and as a page, and the graph that the inner backend gets."""
    payloads = {
        "report": ("json", report.to_json),
        "page": ("string", lambda: _page(report)),
        "after": ("string", lambda: rewritten.print_readable(print_output=False)),
    }
    for name, (encoding, payload) in payloads.items():
        metadata = {"name": f"fluxrewrite_{name}", "encoding": encoding}
        trace_structured("artifact", metadata_fn=metadata.copy, payload_fn=payload)


def _page(report: Report) -> str:
    """Rendered only when a trace is written: importing jinja2 takes time."""
    (found,) = entry_points(group="fluxrewrite.renderers", name="page")
    return str(found.load()(report))
