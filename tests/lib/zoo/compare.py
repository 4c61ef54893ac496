"""What fluxrewrite finds in a model against what the model computes, and whether the rewritten model gives the same numbers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

import fluxrewrite
from fluxrewrite.report.model import Report, SiteInfo
from fluxrewrite.site import Code

from .case import Case, build
from .truth import Truth, observe

__all__ = ["GOALS", "KINDS", "TOLERANCE", "Row", "compare"]

KINDS = ("attention", "rope", "qkv")
GOALS = {"attention": 0.98, "rope": 0.95, "qkv": 0.95}
TOLERANCE = 1e-4
"""Largest difference of an output, relative to its largest value, in float32."""


@dataclass(frozen=True)
class Row:
    """One class: how many of each kind there are, how many were found, what was missed and why.

    Attributes:
        misses: (kind, reason code, message, how often).
        error: largest difference from eager relative to the largest value; None where the class did not run.
        graphs: how many graphs Dynamo made of the model.
        kernels: calls that replaced sites.
        problem: why the class could not be compared.
    """

    name: str
    library: str
    there: Mapping[str, int] = field(default_factory=dict)
    found: Mapping[str, int] = field(default_factory=dict)
    misses: tuple[tuple[str, str, str, int], ...] = ()
    error: float | None = None
    graphs: int = 0
    kernels: int = 0
    problem: str = ""

    @property
    def equal(self) -> bool:
        """Whether the rewritten model gives what eager gives."""
        return self.error is not None and self.error <= TOLERANCE

    def share(self, kind: str) -> int:
        """How many of what is there were found; what was found beyond that counts for nothing."""
        return min(self.there[kind], self.found[kind])


def compare(case: Case) -> Row:
    """Build the model, watch it, compile it with every kernel (policy "all", the ops' bodies), and compare."""
    library = case.module
    if case.why:
        return Row(case.name, library, problem=case.why)
    try:
        model = build(case)
        torch.manual_seed(1)
        inputs = dict(case.inputs())
        truth, _ = observe(case, model, copy.deepcopy(inputs))
        with torch._dynamo.config.patch(dict(case.dynamo)):
            sites, graphs, error = _rewritten(model, inputs)
    except Exception as failure:  # a class that fails is a row of the table, not the end of the run
        return Row(case.name, library, problem=f"{type(failure).__name__}: {str(failure).splitlines()[0][:300]}")
    if case.rotary and not truth.rope:
        return Row(case.name, library, problem=f"nothing called {', '.join(case.rotary)} returned a tensor")
    found = {kind: sum(_found(s) for s in sites if s.kind == kind) for kind in KINDS}
    there = _there(truth)
    misses = (*_misses(sites), *_outside(there, found, sites))
    return Row(
        case.name, library, there, found, misses, error, graphs,
        sum(s.choice == "kernel" for s in sites),
    )  # fmt: skip


def _there(truth: Truth) -> dict[str, int]:
    return {"attention": len(truth.attention), "rope": len(truth.rope), "qkv": len(truth.groups)}


def _found(site: SiteInfo) -> bool:
    """Whether a kernel may take the site, or a larger one has it."""
    return site.status == "eligible" or [r.code for r in site.reasons] == [Code.COVERED]


def _misses(sites: Sequence[SiteInfo]) -> tuple[tuple[str, str, str, int], ...]:
    counts: Counter[tuple[str, str, str]] = Counter()
    for site in sites:
        if site.kind in KINDS and not _found(site):
            counts.update([(site.kind, site.reasons[0].code, site.reasons[0].message)])
    return tuple((*key, count) for key, count in counts.items())


def _outside(
    there: Mapping[str, int], found: Mapping[str, int], sites: Sequence[SiteInfo]
) -> list[tuple[str, str, str, int]]:
    """What is neither found nor a near miss: it ran outside all graphs, or matches no known pattern."""
    told = Counter(s.kind for s in sites if not _found(s))
    left = {kind: there[kind] - found[kind] - told[kind] for kind in KINDS}
    message = "in no graph that Dynamo captured, or matches no known pattern"
    return [(kind, "not_seen", message, n) for kind, n in left.items() if n > 0]


def _rewritten(model: torch.nn.Module, inputs: Mapping[str, Any]) -> tuple[list[SiteInfo], int, float]:
    """Sites as often as the graph that holds them ran, the number of graphs, and the largest difference from eager."""
    reports: list[Report] = []
    runs: list[int] = []

    def inner(gm: torch.fx.GraphModule, _: Any) -> Any:
        mine = len(runs)
        runs.append(0)

        def run(*args: Any) -> Any:
            runs[mine] += 1
            return gm(*args)

        return run

    torch._dynamo.reset()
    backend = fluxrewrite.backend(inner, policy="all", provider="reference", strict=True, report=reports.append)
    with torch.no_grad():
        expected = model(**copy.deepcopy(inputs))
        given = torch.compile(model, backend=backend)(**copy.deepcopy(inputs))
    sites = [site for report, times in zip(reports, runs, strict=True) for site in report.sites * times]
    return sites, len(reports), _difference(expected, given)


def _difference(expected: Any, given: Any) -> float:
    """The largest difference of a pair of results relative to the largest value of that pair."""
    pairs = zip(_tensors(expected), _tensors(given), strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)


def _tensors(result: Any) -> list[torch.Tensor]:
    leaves = tree_leaves(result.to_tuple() if hasattr(result, "to_tuple") else result)
    return [t.double() for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point()]
