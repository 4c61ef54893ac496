"""The predicted time of one step, from what a compiler makes of the graph and from a device profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from torch.fx import Node

from ...cost import Work, estimate
from ...graph.view import GraphView
from ...kernel import Kernel
from ...site import Site
from .. import FusionPrediction, Group, fuse
from ..flops import flops
from .target import Target

__all__ = ["Calls", "StepTime", "calls_for", "group_times", "step_time", "total"]

_ASSUMED = 0.1  # share of a step above which assumed figures make the whole an assumption
_EMPTY: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class StepTime:
    """Predicted time of one step in microseconds, with the ends of the figures' ranges."""

    us: float
    low_us: float
    high_us: float
    basis: Literal["modelled", "assumed"]


@dataclass(frozen=True)
class Calls:
    """The work of kernel calls, by name of the call.

    Attributes:
        flops: operations of matrix products.
        efficiency: share of the device's peaks that the kernel reaches.
        known: time of calls that were measured, or that run the op's body instead of the kernel.
    """

    flops: Mapping[str, float] = field(default_factory=lambda: _EMPTY)
    efficiency: Mapping[str, float] = field(default_factory=lambda: _EMPTY)
    known: Mapping[str, StepTime] = field(default_factory=dict)


def step_time(
    view: GraphView, prediction: FusionPrediction, target: Target, calls: Calls, executables: int = 1
) -> StepTime:
    """Add up the times of the kernels of a graph.

    Each takes its fixed costs and the longer of its memory traffic and its matrix products. Kernels are added up because a step
    runs them one after another: the profile has no figure for how they overlap.

    Args:
        view: the graph that `prediction` is of.
        prediction: its kernels.
        target: device and regime.
        calls: the work of the kernel calls among them.
        executables: programs that the step starts; each beyond the first costs a launch.
    """
    return total(group_times(view, prediction, target, calls), target, executables)


def group_times(view: GraphView, prediction: FusionPrediction, target: Target, calls: Calls) -> list[StepTime]:
    """The time of each kernel of `prediction`, in its order; arguments as `step_time` takes them."""
    return [_group(view, group, view.named, target, calls) for group in prediction.fusion.groups]


def total(times: Sequence[StepTime], target: Target, executables: int = 1) -> StepTime:
    """The time of a step from the times of its kernels, and the launches of its executables beyond the first."""
    parts = list(times)
    if executables > 1:
        launches = estimate(target.device, Work(launches=executables - 1))
        parts.append(StepTime(launches.us, launches.low_us, launches.high_us, launches.basis))
    us = sum(p.us for p in parts)
    assumed = sum(p.us for p in parts if p.basis == "assumed")
    guess = target.rules.assumed or assumed > _ASSUMED * us
    basis: Literal["modelled", "assumed"] = "assumed" if guess else "modelled"
    return StepTime(us, sum(p.low_us for p in parts), sum(p.high_us for p in parts), basis)


def _group(view: GraphView, group: Group, named: Mapping[str, Node], target: Target, calls: Calls) -> StepTime:
    name = next(iter(group.nodes), "")
    opaque = group.kind == "opaque"
    if opaque and name in calls.known:
        return calls.known[name]
    found = [named[n] for n in group.nodes] if group.kind != "fused" else []
    share = calls.efficiency.get(name, 1.0) if opaque else 1.0
    # The nodes of a call have no products of their own: its flops are those of the operations that it replaces. A call of the
    # model's own replaces nothing, so only its bytes and fixed costs count.
    known = calls.flops.get(name, 0.0 if opaque else None)
    work = Work(
        bytes=(group.reads + group.writes) / share,
        flops=flops(view, found) if known is None else known / share,
        dtype=_dtype(view, found, target),
        kernels=1,
        calls=int(opaque),
    )
    # By identity, for a profile has no hash. The entry holds the device, so that no other one takes its id.
    times: dict[Work, StepTime] = view.memo(("times", id(target.device)), lambda _: (target.device, {}))[1]
    if work not in times:  # blocks repeat
        time = estimate(target.device, work)
        times[work] = StepTime(time.us, time.low_us, time.high_us, time.basis)
    return times[work]


def _dtype(view: GraphView, products: Sequence[Node], target: Target) -> str:
    """The dtype of the matrix products, or of a call's first result.

    It is the slowest dtype of the profile if that has no rate for it: an unknown rate must not make a kernel look fast.
    """
    rates = target.device.matmul
    names = [str(v.dtype).removeprefix("torch.") for n in products for v in view.results(n)]
    known = [n for n in names if n in rates]
    return known[0] if known else min(rates, key=lambda n: rates[n].value)


def calls_for(view: GraphView, sites: Mapping[str, Site], target: Target, kernels: Mapping[str, Kernel]) -> Calls:
    """The work of the calls that replace `sites`, by name of the call; `kernels` by kind of site.

    A call has the matrix products of the operations that it replaces. A measured time in the profile takes precedence. Where
    the op's body runs, each of its operations is a kernel of its own, as in eager torch: the compiler does not see into the op.
    """
    eager = target.rules.model_copy(update={"inline": False, "merge": False, "join": "map", "name": "eager"})
    counts, known = {}, {}
    for name, site in sites.items():
        inside = sorted({*site.interior, *site.outputs}, key=view.order)
        counts[name] = float(flops(view, inside))
        timed = None if site.inline else target.device.call_us(site.kind, site.form, site.dtype, site.shapes)
        if timed is not None:
            known[name] = StepTime(timed.value, *timed.range, "modelled")
        elif target.calls_reference and not site.inline:
            prediction = fuse(view, eager, nodes=inside)
            us = step_time(view, prediction, target, Calls()).us + target.device.call.value
            known[name] = StepTime(us, us, us, "modelled")
    efficiency = {name: kernels[s.kind].efficiency for name, s in sites.items() if s.kind in kernels and not s.inline}
    return Calls(counts, efficiency, known)
