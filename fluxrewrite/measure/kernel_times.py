"""Time the kernel calls of a model one by one, for a device profile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from ..cost.devices import CallTime, dtype_name
from ..dynamo.measured_price import sample
from ..errors import RewriteError
from ..fusion.boundary.boundaries import calls_of
from ..graph.subgraph import Subgraph, extract
from ..graph.view import GraphView
from ..rewrite.apply import rewrite
from ..rewrite.base import Replacement
from ..rewrite.planner import make_plan
from ..rewrite.selection import Selection
from ..site import Site
from .calibrate import Effort, figure, seconds

__all__ = ["TimedCall", "call_time", "distinct_calls"]

_LEAST_S = 1e-3  # a shorter call runs several times per try, since the clock is too coarse for it


@dataclass(frozen=True)
class TimedCall:
    """The kernel call that replaces a site, as a module of its own."""

    site: Site
    part: Subgraph

    @property
    def name(self) -> str:
        """A name such as "attention:sdpa sequence 768"."""
        return f"{self.site.kind}:{self.site.form} sequence {self.site.shapes.get('sequence', '?')}"


def distinct_calls(gm: GraphModule, selection: Selection) -> Iterator[TimedCall]:
    """Yield one call for each distinct kind, form, dtype and shape among the eligible sites.

    Sites with symbolic sizes are left out, since there is no size to time them at.

    Raises RewriteError for a site that cannot be replaced.
    """
    view = GraphView(gm.graph)
    seen: set[tuple[object, ...]] = set()
    for decision in make_plan(view, selection).decisions:
        site, kernel = decision.finding, selection.kernels.get(decision.finding.kind)
        if not isinstance(site, Site) or not site.eligible or kernel is None:
            continue
        key = (site.kind, site.form, site.dtype, *site.shapes.items())
        if key in seen or not all(isinstance(n, int) for n in site.shapes.values()):
            continue
        seen.add(key)
        rewritten, left = rewrite(gm, [Replacement(selection.passes[site.kind], site, kernel)])
        (call,) = calls_of(GraphView(rewritten.graph), [site])
        if left or call is None:
            raise RewriteError(f"{site.path}: {left[0][1].message if left else 'it has no kernel call'}")
        yield TimedCall(site, extract(rewritten, [call]))


def call_time(call: TimedCall, effort: Effort) -> CallTime:
    """Time the call on random tensors with the model's shapes, strides and dtypes.

    Raises any error of the kernel.
    """
    operands = [sample(o) for o in call.part.operands]
    with torch.no_grad():
        run = lambda: call.part.module(*operands)  # noqa: E731
        run()
        loops = max(1, min(effort.loops, round(_LEAST_S / max(seconds(run), 1e-9))))
        values = [seconds(run, loops) * 1e6 for _ in range(effort.rounds)]
    us = figure(values, "us", f"fluxrewrite calibrate --for, median of {effort.rounds}: the call alone")
    shapes = {name: size for name, size in call.site.shapes.items() if isinstance(size, int)}
    return CallTime(kernel=call.site.kind, form=call.site.form, dtype=dtype_name(call.site.dtype), shapes=shapes, us=us)
