"""The model as a strip: its blocks in order, their kernels before and after the rewrite, and the neighbours of each call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from ...graph.edges import edges
from ...graph.module_paths import block_path, module_path
from ...graph.view import GraphView
from ...site import Site
from .. import Group
from .boundaries import FusedGraph, Materialised, described
from .step_time import StepTime

__all__ = ["BlockKernels", "CallNeighbours", "KernelSpan", "around", "strips"]

_COMPUTING = ("call_function", "call_method")


@dataclass(frozen=True)
class KernelSpan:
    """One compiled kernel or call.

    Attributes:
        kind: as in `Group.kind`.
        ops: the distinct operations that it computes, in graph order; empty for a copy that a compiler adds.
        nodes: how many nodes it computes, wholly or in part.
        reads, writes: bytes of its operands and results in memory.
        us: predicted time in microseconds.
        site: the site that it is the call of; before the rewrite the site that its latest node is in. None otherwise.
    """

    kind: str
    ops: tuple[str, ...]
    nodes: int
    reads: int
    writes: int
    us: float
    site: Site | None


@dataclass(frozen=True)
class BlockKernels:
    """One call of a block, or the part between two blocks.

    Attributes:
        path: the block, as "transformer_blocks.3"; "" for nodes in no numbered module.
        before, after: its kernels in the order in which they run.
    """

    path: str
    before: tuple[KernelSpan, ...]
    after: tuple[KernelSpan, ...]


@dataclass(frozen=True)
class CallNeighbours:
    """A kernel call among its neighbours.

    Attributes:
        site: what the call takes the place of.
        call: name of the call in the rewritten graph.
        operands: the tensors that it reads, each with the operation that computed it, views looked through.
        results: the tensors that it returns.
        users: name, operation and module of what reads them, views looked through.
    """

    site: Site
    call: str
    operands: tuple[Materialised, ...]
    results: tuple[Materialised, ...]
    users: tuple[tuple[str, str, str], ...]


def strips(
    before: FusedGraph,
    after: FusedGraph,
    times: tuple[Sequence[StepTime], Sequence[StepTime]],
    calls: Mapping[Node, Site],
) -> tuple[BlockKernels, ...]:
    """Sort the kernels of a graph and of its rewritten form into the blocks of the first; blocks without kernels are left out.

    A kernel belongs to the block of its latest node. A copy without nodes belongs to the kernel that runs after it.

    Args:
        before, after: the two graphs, and what a compiler makes of them.
        times: of each kernel of both.
        calls: the calls in the second, and their sites.
    """
    paths, units = _units(before.view)
    inside = {n.name: s for s in calls.values() for n in (*s.interior, *s.outputs)}
    called = {node.name: site for node, site in calls.items()}
    parts: tuple[list[list[KernelSpan]], ...] = tuple([[] for _ in paths] for _ in range(2))
    for which, (graph, taken) in enumerate(((before, inside), (after, called))):
        placed = _placed(graph.view, units) if which else units
        for unit, part in _parts(graph, times[which], placed, taken):
            parts[which][unit].append(part)
    found = (BlockKernels(p, tuple(b), tuple(a)) for p, b, a in zip(paths, *parts, strict=True))
    return tuple(s for s in found if s.before or s.after)


def _units(view: GraphView) -> tuple[list[str], dict[str, int]]:
    """Paths of the calls of blocks and of the parts between them, and the index of one for each node by name.

    A node in no block belongs to a block if it is between two nodes of one call of that block.
    """
    paths: list[str] = [""]
    units: dict[str, int] = {}
    outside: list[str] = []
    for node in view.nodes:
        if node.op not in _COMPUTING:
            continue
        path = block_path(module_path(node))
        if path == paths[-1]:
            units.update(dict.fromkeys((*outside, node.name), len(paths) - 1))
            outside = []
        elif not path:
            outside.append(node.name)
        else:
            _close(outside, paths, units)
            outside = []
            paths.append(path)
            units[node.name] = len(paths) - 1
    _close(outside, paths, units)
    return paths, units


def _close(outside: Sequence[str], paths: list[str], units: dict[str, int]) -> None:
    if outside:
        paths.append("")
        units.update(dict.fromkeys(outside, len(paths) - 1))


def _placed(view: GraphView, units: Mapping[str, int]) -> dict[str, int]:
    """The unit of each node of a rewritten graph: that of the same node before, else that of the node it replaces."""
    found: dict[str, int] = {}
    last = 0
    for node in view.nodes:
        if node.op not in _COMPUTING:
            continue
        origin = next(iter(node.meta.get("from_node") or ()), None)
        last = units.get(node.name, units.get(origin.name, last) if origin is not None else last)
        found[node.name] = last
    return found


def _parts(
    graph: FusedGraph, times: Sequence[StepTime], units: Mapping[str, int], sites: Mapping[str, Site]
) -> Iterator[tuple[int, KernelSpan]]:
    view = graph.view
    waiting: list[KernelSpan] = []
    unit = 0
    for group, time in zip(graph.prediction.fusion.groups, times, strict=True):
        nodes = sorted((view.named[n] for n in group.nodes if n in view.named), key=view.order)
        part = _part(view, group, nodes, time, sites)
        if not nodes:
            waiting.append(part)
            continue
        unit = units.get(nodes[-1].name, unit)
        yield from ((unit, p) for p in (*waiting, part))
        waiting = []
    yield from ((unit, p) for p in waiting)


def _part(
    view: GraphView, group: Group, nodes: Sequence[Node], time: StepTime, sites: Mapping[str, Site]
) -> KernelSpan:
    ops = tuple(dict.fromkeys(view.op(n) for n in nodes))
    site = next((sites[n.name] for n in reversed(nodes) if n.name in sites), None)
    return KernelSpan(
        kind=group.kind,
        ops=ops,
        nodes=len(nodes),
        reads=group.reads,
        writes=group.writes,
        us=time.us,
        site=site,
    )


def around(view: GraphView, calls: Mapping[Node, Site]) -> tuple[CallNeighbours, ...]:
    """The neighbours of each kernel call of a rewritten graph; `calls` are the calls and their sites."""
    users: dict[Node, dict[Node, None]] = {call: {} for call in calls}
    for producer, consumer in edges(view):
        if producer in users:
            users[producer][consumer] = None
    return tuple(_around(view, call, site, users[call]) for call, site in calls.items())


def _around(view: GraphView, call: Node, site: Site, users: Iterable[Node]) -> CallNeighbours:
    values = view.results(call)
    names = [f"{call.name}[{i}]" for i in range(len(values))] if len(values) > 1 else [call.name]
    return CallNeighbours(
        site=site,
        call=call.name,
        operands=tuple(_operand(view, n) for n in call.all_input_nodes if view.tensor(n) is not None),
        results=tuple(described(n, view.op(call), "result", v) for n, v in zip(names, values, strict=False)),
        users=tuple((n.name, view.op(n), module_path(n)) for n in users),
    )


def _operand(view: GraphView, node: Node) -> Materialised:
    """An operand and the operation that computed it; views and `getitem` of several results are looked through."""
    made = node
    while (found := view.source(made)) is not None and view.dtype(found[0]) == view.dtype(made):
        made = found[0]
    if view.op(made) == "getitem":
        made = made.all_input_nodes[0]
    return described(node.name, view.op(made), "operand", view.tensor(node))
