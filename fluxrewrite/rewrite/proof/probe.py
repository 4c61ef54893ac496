"""Parts of a graph run on random inputs, to find out what they compute however they are spelled.

Passes probe what their patterns do not know. Sizes are cut and dtypes widened by the same code as for a proof. A probe only
suggests a site. The proof of that site, which also runs its replacement, decides.
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

from ...errors import one_line
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
"""Upper bound of random integers that are positions. It is larger than the sizes run at, so that positions mostly differ."""


class CannotProbe(Exception):
    """A region cannot be run on random inputs, or not within the limits. The message says why."""


@dataclass(frozen=True)
class Limits:
    """Limits on the probing of one graph.

    They are counts and not times: ranks that differ in speed must not differ in their plans.

    Attributes:
        nodes: most operations of one region.
        elements: most numbers in one value of a region, at the sizes that it is run at.
        probes: most distinct regions of a graph that are run.
        work: most work of all runs together. Each operation counts 1, and so does each 4,096 numbers of its result; 10,000 are
            some three seconds.
    """

    nodes: int = 96
    elements: int = 2**18
    probes: int = 24
    work: int = 10_000


class Budget:
    """The limits of one graph, how much of them is used, and the results for regions that were probed.

    Attributes:
        limits: limits of the graph.
        probes, work: used so far.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.probes = 0
        self.work = 0
        self._answers: dict[str, Any] = {}

    def answer(self, key: str, compute: Callable[[], T]) -> T:
        """The result of `compute` for a region with this digest, computed once. If it raised CannotProbe, that is raised again."""
        # Blocks repeat. Without this, a model of equal blocks would use up its probes on the first of them.
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
        """Count the work of a run. Raises CannotProbe if it exceeds what is left."""
        if self.work + work > self.limits.work:
            raise CannotProbe(f"probing this graph would take more than {self.limits.work} steps of work")
        self.work += work


def budget_of(view: GraphView, limits: Limits = Limits()) -> Budget:
    """The budget of a graph, which all passes share. The limits of the first caller hold."""
    return view.memo("probe budget", lambda _: Budget(limits))


@dataclass(frozen=True)
class ProbeRegion:
    """Some operations of a graph and the values that enter them.

    Attributes:
        nodes: calls, in graph order.
        inputs: the values that enter, in a fixed order.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]

    @classmethod
    def of(cls, view: GraphView, nodes: Iterable[Node], first: Sequence[Node] = ()) -> ProbeRegion:
        """The region that computes `nodes`. The values `first` are its first inputs and are not computed."""
        inside = set(nodes) - set(first)
        ordered = sorted(inside, key=view.order)
        entering = dict.fromkeys((*first, *(i for n in ordered for i in n.all_input_nodes if i not in inside)))
        return cls(tuple(ordered), tuple(entering))

    @property
    def members(self) -> tuple[Node, ...]:
        """Inputs, then nodes. In regions with equal digests, members at equal positions have the same role."""
        return (*self.inputs, *self.nodes)

    def digest(self, view: GraphView, *words: Any) -> str:
        """Equal for regions with the same operations on values of the same kinds, and equal `words`. Names do not count."""
        return text_of(view, [str(words)], list(self.nodes), list(self.inputs))


def feeding(view: GraphView, starts: Iterable[Node], most: int, without: Collection[Node] = ()) -> set[Node]:
    """`starts` and the calls that they are computed by.

    Args:
        view: the graph.
        starts: where to begin.
        most: limit on the result, of which the nearest calls are kept. Values beyond the limit enter the region as inputs.
        without: nodes that are left out, with everything that only they lead to.
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
    """`starts`, and those of `nodes` that depend on them. `nodes` are in graph order."""
    found = set(starts)
    for node in nodes:
        if node not in found and any(i in found for i in node.all_input_nodes):
            found.add(node)
    return found


def is_random(view: GraphView, node: Node) -> bool:
    """Whether an operation draws random numbers. A dropout that is off does not."""
    if view.op(node) == "dropout":
        return view.arg(node, "training") is not False and view.number(view.arg(node, "p")) != 0
    name = name_of(node.target).removeprefix("aten.").partition(".")[0] if node.op == "call_function" else ""
    name = name if hasattr(torch.ops.aten, name) else str(getattr(node.target, "__name__", node.target))
    packet = getattr(torch.ops.aten, name, None)
    # Not a packet: `torch.ops.aten` also has the attributes of every object, such as `__eq__`. `sdpa` has the tag of random
    # operations for its dropout, which is an argument that passes check.
    if not isinstance(packet, torch._ops.OpOverloadPacket) or view.op(node) == "sdpa":
        return False
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, o).tags for o in packet.overloads())


class Probe:
    """A region run with a random value for each input, in float64 on the CPU, at small sizes.

    Args:
        view: the graph.
        part: the region.
        shapes: sizes by the names that sites use for them ("sequence", "heads", "head_size", ...). The names say which sizes
            may be cut and which stay.
        budget: the budget of the graph.
        seed: seed of the values.

    Attributes:
        part: the region.
        cut: the sizes that it was run at.
        values: the values of all inputs and nodes: tensors, numbers, and other results of operations.

    Raises:
        CannotProbe: the region cannot be run, or not within the budget.
    """

    def __init__(
        self, view: GraphView, part: ProbeRegion, shapes: Mapping[str, int], budget: Budget, seed: int = 0
    ) -> None:
        self.part, self._budget = part, budget
        self._reject(view)
        site: Site = Site(
            kind="probe", form="", path="", operands={}, outputs=(), interior=(), shapes=shapes, dtype=torch.float64
        )
        problem: Exception = CannotProbe("there is nothing to run")
        # Whether an integer is a position or an index shows only in the run: as an index, a position is out of range.
        for cut, free in itertools.product(cuts(site, part.nodes, part.inputs), (True, False)):
            try:
                self.cut = cut
                self.values = self.run(part.nodes, self._inputs(cut, seed, free))
                return
            except CannotProbe as error:
                problem = error
        raise problem

    def _reject(self, view: GraphView) -> None:
        # A second run would draw other numbers, and one that writes would change what others read. Neither is a function.
        for node in self.part.nodes:
            if is_random(view, node):
                raise CannotProbe(f"{node.name} draws random numbers")
        for node in self.part.members:
            if view.writers(node):
                raise CannotProbe(f"{view.writers(node)[0].name} writes to {node.name} in place")

    def _inputs(self, cut: Cut, seed: int, free: bool) -> dict[Node, Any]:
        """A value for each input. Integers are positions of any size if `free`, else indices that are valid for every axis."""
        tensors = [v for n in self.part.members if isinstance(v := value_of(n), Tensor)]
        most = max((math.prod(cut.shape(t)) for t in tensors), default=0)
        if most > self._budget.limits.elements:
            raise CannotProbe(f"it has a value of {most} numbers, more than {self._budget.limits.elements}")
        sizes = [s for t in tensors if t.dtype.is_floating_point for s in cut.shape(t) if s > 1]
        make = Maker(seed, POSITIONS if free else min(sizes, default=2))
        return {n: _made(n, cut, make) for n in self.part.inputs}

    def run(self, nodes: Sequence[Node], given: Mapping[Node, Any]) -> dict[Node, Any]:
        """The values of some nodes.

        Args:
            nodes: calls, in graph order.
            given: the values that enter them. They are not changed.

        Raises:
            CannotProbe: an operation fails, or the work exceeds the budget.
        """
        self._budget.spend(sum(_work(n, self.cut) for n in nodes))
        # A backend runs inside Dynamo's tracing context, and inside the user's autocast and default device. None of these may
        # change the result.
        try:
            with tracing(None), torch.no_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
                return Interpreter(self.cut, lift=True)(nodes, given)
        except Exception as error:
            raise CannotProbe(f"it cannot be run on made-up inputs: {one_line(error)}") from error

    def function(self, out: Node, *arguments: Node) -> Callable[..., Tensor]:
        """`out` as a function of tensors that replace `arguments`. All other inputs keep their values."""
        # Only what depends on the arguments runs again: callers evaluate a function many times, and each run costs budget.
        after = depending(self.part.nodes, arguments)
        nodes = [n for n in self.part.nodes if n in after and n not in arguments]
        known = {n: self.values[n] for n in {i for m in nodes for i in m.all_input_nodes} if n not in after}

        def call(*tensors: Tensor) -> Tensor:
            found = self.run(nodes, {**known, **dict(zip(arguments, tensors, strict=True))})[out]
            if not isinstance(found, Tensor):
                raise CannotProbe(f"{out.name} is not a tensor")
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
    raise CannotProbe(f"{node.name} is a {type(value).__name__}, for which a probe cannot generate a value")
