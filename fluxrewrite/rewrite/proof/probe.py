"""A part of a graph run on made-up inputs, to see what it computes however it is spelled.

Passes probe what their patterns do not know. Sizes are cut down and dtypes widened as for a proof, by the same machinery. What
a probe says is a hint of what to offer as a site: the proof of that site, which runs it beside its replacement, has the last word.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._guards import tracing
from torch.fx import Node

from ...graph.fake_values import name_of, value_of
from ...graph.shapes import SYMBOLS, hint
from ...graph.view import GraphView
from ...site import Site
from .interpreter import Interpreter, wide
from .random_inputs import Maker
from .region import UNKNOWN, text_of
from .small_sizes import Cut, cuts

__all__ = ["Budget", "CannotProbe", "Limits", "Probe", "ProbeRegion", "budget_of", "depending", "feeding", "is_random"]

T = TypeVar("T")
POSITIONS = 64
"""Integers that are no indices are below this, so that they differ from each other."""


class CannotProbe(Exception):
    """A region cannot be run on made-up inputs, or not within the limits; the text says why."""


@dataclass(frozen=True)
class Limits:
    """How much probing a graph is worth.

    Attributes:
        nodes: operations that one region may have.
        elements: numbers that one value of a region may have at the sizes that it is run at.
        probes: distinct regions of a graph that are run.
        work: of all runs of regions: operations, and 4,096 numbers of their results each count 1. It is no time, so that all ranks
            that compile a model answer alike; 10,000 are some three seconds.
    """

    nodes: int = 96
    elements: int = 2**18
    probes: int = 24
    work: int = 10_000


class Budget:
    """What is left of the limits for one graph, and what was answered for regions that are alike.

    Attributes:
        limits: of the graph.
        probes, work: used so far.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.probes = 0
        self.work = 0
        self._answers: dict[str, Any] = {}

    def answer(self, key: str, compute: Callable[[], T]) -> T:
        """What `compute` answers for the regions of this digest, computed once; a CannotProbe that it raised is raised again."""
        if key not in self._answers:
            self._answers[key] = self._first(compute)
        found = self._answers[key]
        if isinstance(found, CannotProbe):
            raise found
        answer: T = found
        return answer

    def _first(self, compute: Callable[[], Any]) -> Any:
        if self.probes >= self.limits.probes:
            return CannotProbe(f"{self.probes} other regions of the graph were probed; more are not looked at")
        self.probes += 1
        try:
            return compute()
        except CannotProbe as error:
            return error

    def spend(self, work: int) -> None:
        """Count a run; raise CannotProbe where it would be too much."""
        if self.work + work > self.limits.work:
            raise CannotProbe(f"probing this graph would take more than {self.limits.work} steps of work")
        self.work += work


def budget_of(view: GraphView, limits: Limits = Limits()) -> Budget:
    """The budget of a graph, which all passes share; the first caller's limits hold."""
    return view.memo("probe budget", lambda _: Budget(limits))


@dataclass(frozen=True)
class ProbeRegion:
    """Some operations of a graph and what enters them.

    Attributes:
        nodes: calls, in graph order.
        inputs: the values that enter, in a fixed order.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]

    @classmethod
    def of(cls, view: GraphView, nodes: Iterable[Node], first: Sequence[Node] = ()) -> ProbeRegion:
        """The part that computes `nodes`; the inputs `first` come first."""
        inside = set(nodes) - set(first)
        ordered = sorted(inside, key=view.order)
        entering = dict.fromkeys((*first, *(i for n in ordered for i in n.all_input_nodes if i not in inside)))
        return cls(tuple(ordered), tuple(entering))

    @property
    def members(self) -> tuple[Node, ...]:
        """All nodes by number: parts of equal digests have the same roles at the same numbers."""
        return (*self.inputs, *self.nodes)

    def digest(self, view: GraphView, *words: Any) -> str:
        """Equal for parts with the same operations on values of the same kinds, and the same `words`; names do not count."""
        return text_of(view, [str(words)], list(self.nodes), list(self.inputs))


def feeding(view: GraphView, starts: Iterable[Node], most: int, without: Collection[Node] = ()) -> set[Node]:
    """The calls that `starts` are computed by, nearest first and at most `most`, and themselves; none behind those in `without`.

    Where the limit is reached, what lies above enters as if it were given.
    """
    pending, found = deque(starts), dict[Node, None]()
    while pending and len(found) < most:
        node = pending.popleft()
        if node in found or node in without or node.op not in ("call_function", "call_method"):
            continue
        found[node] = None
        pending.extend(node.all_input_nodes)
    return set(found)


def depending(nodes: Iterable[Node], starts: Iterable[Node]) -> set[Node]:
    """`starts`, and those of `nodes`, which are in graph order, that depend on them."""
    found = set(starts)
    for node in nodes:
        if node not in found and any(i in found for i in node.all_input_nodes):
            found.add(node)
    return found


def is_random(view: GraphView, node: Node) -> bool:
    """Whether an operation draws random numbers; dropout that does nothing draws none."""
    if view.op(node) == "dropout":
        return view.arg(node, "training") is not False and view.number(view.arg(node, "p")) != 0
    name = name_of(node.target).removeprefix("aten.").partition(".")[0] if node.op == "call_function" else ""
    name = name if hasattr(torch.ops.aten, name) else str(getattr(node.target, "__name__", node.target))
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or view.op(node) == "sdpa":  # __eq__ is every object's
        return False
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, o).tags for o in packet.overloads())


class Probe:
    """A part of a graph with a made-up value for each input, in float64 on the CPU, at small sizes.

    Args:
        view: the graph.
        part: what is run.
        shapes: sizes by the names that sites have for them ("sequence", "heads", "head_size", ...): which may be cut, and
            which stay.
        budget: of the graph.
        seed: of the values.

    Attributes:
        part: what is run.
        cut: what the sizes of the graph become.
        values: of all inputs and nodes; tensors, numbers, and whatever operations answer.

    Raises CannotProbe where the part cannot be run.
    """

    def __init__(
        self, view: GraphView, part: ProbeRegion, shapes: Mapping[str, int], budget: Budget, seed: int = 0
    ) -> None:
        self.part, self._budget = part, budget
        self._reject(view)
        site: Site = Site("probe", "", "", {}, (), (), shapes, torch.float64)
        problem: Exception = CannotProbe("there is nothing to run")
        for cut, free in itertools.product(cuts(site, part.nodes, part.inputs), (True, False)):
            try:
                self.cut = cut
                self.values = self.run(part.nodes, self._inputs(cut, seed, free))
                return
            except CannotProbe as error:
                problem = error
        raise problem

    def _reject(self, view: GraphView) -> None:
        for node in self.part.nodes:
            if is_random(view, node):
                raise CannotProbe(f"{node.name} draws random numbers")
        for node in self.part.members:
            if view.writers(node):
                raise CannotProbe(f"{view.writers(node)[0].name} writes to {node.name} in place")

    def _inputs(self, cut: Cut, seed: int, free: bool) -> dict[Node, Any]:
        """A value for each input; integers are positions, of any size, where `free`, else indices into what is smallest."""
        tensors = [v for n in self.part.members if isinstance(v := value_of(n), Tensor)]
        most = max((math.prod(cut.shape(t)) for t in tensors), default=0)
        if most > self._budget.limits.elements:
            raise CannotProbe(f"it has a value of {most} numbers, more than {self._budget.limits.elements}")
        sizes = [s for t in tensors if t.dtype.is_floating_point for s in cut.shape(t) if s > 1]
        make = Maker(seed, POSITIONS if free else min(sizes, default=2))
        return {n: _made(n, cut, make) for n in self.part.inputs}

    def run(self, nodes: Sequence[Node], given: Mapping[Node, Any]) -> dict[Node, Any]:
        """The values of `nodes`, calls in graph order, from those that enter them; `given` is not changed.

        Raises CannotProbe for whatever an operation raises, and where it is too much work.
        """
        self._budget.spend(sum(_work(n, self.cut) for n in nodes))
        try:
            with tracing(None), torch.no_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
                return Interpreter(self.cut, lift=True)(nodes, given)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise CannotProbe(f"it cannot be run on made-up inputs: {type(error).__name__}: {first}") from error

    def function(self, out: Node, *arguments: Node) -> Callable[..., Tensor]:
        """`out` as a function of tensors in the place of `arguments`; all other inputs keep their values."""
        after = depending(self.part.nodes, arguments)
        nodes = [n for n in self.part.nodes if n in after and n not in arguments]
        known = {n: self.values[n] for n in {i for m in nodes for i in m.all_input_nodes} if n not in after}

        def call(*tensors: Tensor) -> Tensor:
            found = self.run(nodes, {**known, **dict(zip(arguments, tensors, strict=True))})[out]
            if not isinstance(found, Tensor):
                raise CannotProbe(f"{out.name} is no tensor")
            return found

        return call


def _work(node: Node, cut: Cut) -> int:
    value = value_of(node)
    return 1 + (math.prod(cut.shape(value)) // 4096 if isinstance(value, Tensor) else 0)


def _made(node: Node, cut: Cut, make: Maker) -> Any:
    value = value_of(node)
    if isinstance(value, Tensor):
        return make(value, cut.shape(value), wide(value.dtype))
    if isinstance(value, (int, float, *SYMBOLS)):
        try:
            number = hint(value, UNKNOWN)
        except ValueError as error:
            raise CannotProbe(str(error)) from error
        return cut.size(number) if type(number) is int else number
    raise CannotProbe(f"{node.name} is a {type(value).__name__}, which no probe can make up")
