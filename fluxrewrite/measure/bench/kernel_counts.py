"""Counts of the kernel calls in a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule

from ...dynamo.backend import Backend
from ...models.workload import Call
from ...report.model import Report, SiteInfo

__all__ = ["Counted"]


class Counted:
    """A backend that records which of its graphs run.

    It counts what runs and not what was compiled, because a graph that Dynamo compiles again must not count twice.

    Args:
        made: a backend of `fluxrewrite.backend`.
    """

    def __init__(self, made: Backend) -> None:
        self._made = made
        self._ran: list[Report] = []

    def __call__(self, gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        """Compile one graph; torch.compile calls this."""
        known = len(self._made.reports)
        compiled = self._made(gm, example_inputs)
        reports = self._made.reports[known:]

        def run(*inputs: Any) -> Any:
            self._ran.extend(reports)
            return compiled(*inputs)

        return run

    def per_step(self, call: Call) -> Call:
        """The compiled model, wrapped so that each call resets the counts."""

        def step(**inputs: Any) -> Any:
            self._ran.clear()
            return call(**inputs)

        return step

    def stats(self) -> dict[str, Any]:
        """Fields of a `Variant` for the latest step: calls and distinct kernels by "kind:form", and the number of inline sites."""
        sites = [site for report in self._ran for site in report.sites]
        taken = [site for site in sites if site.choice == "kernel"]
        distinct = {(_name(s), s.kernel.name if s.kernel else "", repr(sorted(s.shapes.items()))) for s in taken}
        return {
            "calls": dict(sorted(Counter(map(_name, taken)).items())),
            "specialisations": dict(sorted(Counter(name for name, *_ in distinct).items())),
            "inline": sum(site.choice == "inline" for site in sites),
        }


def _name(site: SiteInfo) -> str:
    return f"{site.kind}:{site.form}"
