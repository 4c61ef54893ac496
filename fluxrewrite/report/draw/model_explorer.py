"""Graphs before and after the rewrite as JSON for ai-edge-model-explorer: boundaries as edge overlays, and files of node data.

The format is that of `graph_builder.py` and `node_data_builder.py` of ai-edge-model-explorer 0.1.34, which opens it unchanged.
Nothing of that package is imported.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from ...fusion.boundary.boundaries import FusedGraph
from ...fusion.boundary.planned_graph import PlannedGraph
from ...fusion.boundary.step_time import StepTime
from ...graph.module_paths import module_path
from ...graph.shapes import size_of
from ...graph.view import GraphView
from ..format import bytes_text, time_text
from ..model import BlockInfo, Boundary, CallInfo, Report, SiteInfo

__all__ = ["collection", "node_data"]

_BORDER, _LOST = "#b00020", "#8a6a00"
_CALL = {"backgroundColor": "#fbdcc4", "borderColor": "#b4490f"}

Json = dict[str, Any]


def collection(report: Report, graphs: Sequence[PlannedGraph]) -> str:
    """Each traced graph "before" and "after" the rewrite, as JSON text; a graph without predictions only "before"."""
    found: list[Json] = []
    for index, analysed in enumerate(graphs):
        before, after = _names(index, len(graphs))
        change = analysed.change
        if change is None:
            found.append({"id": before, "nodes": _nodes(analysed.view, (), {})})
            continue
        blocks = [b for b in report.blocks if b.graph == index]
        calls = [c for c in report.calls if c.graph == index]
        sites = {s.id: s for s in report.sites}
        taken = {c.name: sites[c.site] for c in calls}
        borders = [b for b in report.boundaries if b.graph == index and b.site]
        first, second = change.graphs
        lost = _lost(borders, {n.name for n in first.view.nodes})
        overlays = _borders(borders, calls, second.view)
        nodes = _nodes(first.view, _kernels(first, change.times[0]), {})
        found.append(_graph(before, nodes, _groups(blocks, "before"), lost))
        nodes = _nodes(second.view, _kernels(second, change.times[1]), taken)
        found.append(_graph(after, nodes, _groups(blocks, "after"), overlays))
    return json.dumps({"label": report.model.name, "graphs": found}, separators=(",", ":")) + "\n"


def node_data(graphs: Sequence[PlannedGraph]) -> dict[str, str]:
    """Files of node data by content: "bytes" that kernels move, and "us", their predicted time.

    Each kernel is counted at its latest node only, so that sums over groups of nodes are right.
    """
    tables: dict[str, Json] = {"bytes": {}, "us": {}}
    for index, analysed in enumerate(graphs):
        if analysed.change is None:
            continue
        for name, graph, times in zip(
            _names(index, len(graphs)), analysed.change.graphs, analysed.change.times, strict=True
        ):
            moved: dict[str, float] = defaultdict(int)
            spent: dict[str, float] = defaultdict(float)
            for node, group, time in _kernels(graph, times):
                moved[node.name] += group.reads + group.writes
                spent[node.name] += time.us
            tables["bytes"][name] = _values("bytes moved", moved)
            tables["us"][name] = _values("microseconds (predicted)", spent)
    return {what: json.dumps(table, separators=(",", ":")) + "\n" for what, table in tables.items()}


def _names(index: int, count: int) -> tuple[str, str]:
    of = f"graph {index} " if count > 1 else ""
    return f"{of}before", f"{of}after"


def _values(name: str, values: Mapping[str, float]) -> Json:
    gradient = [{"stop": 0, "bgColor": "#fff8ec"}, {"stop": 1, "bgColor": "#d9641c"}]
    results = {
        node: {"value": float(f"{value:.6g}") if isinstance(value, float) else value} for node, value in values.items()
    }
    return {"name": name, "results": results, "gradient": gradient}


def _kernels(graph: FusedGraph, times: Sequence[StepTime]) -> Iterator[tuple[Node, Any, StepTime]]:
    """Each kernel with its latest node; a copy without nodes goes to the kernel that runs after it, as in the map."""
    named = {n.name: n for n in graph.view.nodes}
    waiting: list[tuple[Any, StepTime]] = []
    last = None
    for group, time in zip(graph.prediction.fusion.groups, times, strict=True):
        waiting.append((group, time))
        nodes = [named[n] for n in group.nodes if n in named]
        if nodes:
            last = max(nodes, key=graph.view.order)
            yield from ((last, g, t) for g, t in waiting)
            waiting = []
    if last is not None:
        yield from ((last, g, t) for g, t in waiting)


def _graph(name: str, nodes: list[Json], groups: dict[str, dict[str, str]], overlays: Sequence[Json]) -> Json:
    tasks = [{"name": "fluxrewrite", "type": "edge_overlays", "overlays": list(overlays)}]
    return {
        "id": name,
        "nodes": nodes,
        "groupNodeAttributes": groups,
        "tasksData": {"edgeOverlaysDataListLeftPane": tasks, "edgeOverlaysDataListRightPane": tasks}
        if overlays
        else {},
    }


def _groups(blocks: Sequence[BlockInfo], when: str) -> dict[str, dict[str, str]]:
    """Figures of the blocks, by namespace; "" for the whole graph. Calls of one module are added up."""
    parts: dict[str, list[Any]] = defaultdict(list)
    for block in blocks:
        held = block.before if when == "before" else block.after
        for path in dict.fromkeys(("", block.path)):
            parts[_space(path)] += held
    return {
        space: {
            "kernels": str(len(held)),
            "bytes": str(sum(p.reads + p.writes for p in held)),
            "time": f"{time_text(sum(p.us for p in held))} (predicted)",
        }
        for space, held in parts.items()
    }


def _space(path: str) -> str:
    """A module path as a namespace. A slash in a name would be another level."""
    return path.replace("/", "|").replace(".", "/")


def _nodes(view: GraphView, kernels: Iterable[tuple[Node, Any, StepTime]], calls: Mapping[str, SiteInfo]) -> list[Json]:
    held: dict[str, list[tuple[Any, StepTime]]] = defaultdict(list)
    for node, group, time in kernels:
        held[node.name].append((group, time))
    return [_node(view, node, held[node.name], calls.get(node.name)) for node in view.nodes]


def _node(view: GraphView, node: Node, kernels: Sequence[tuple[Any, StepTime]], site: SiteInfo | None) -> Json:
    attributes = [{"key": "name", "value": node.name}]
    if site is not None:
        attributes.append({"key": "site", "value": site.id})
    for group, time in kernels:
        moved = f"reads {bytes_text(group.reads)}, writes {bytes_text(group.writes)}, {time_text(time.us)}"
        attributes.append({"key": f"kernel {group.name}", "value": f"{group.kind}: {moved}"})
    found: Json = {
        "id": node.name,
        "label": view.op(node) if node.op in ("call_function", "call_method") else node.op,
        "namespace": _space(module_path(node) if site is None else site.path),
        "attrs": attributes,
        "incomingEdges": [
            {"sourceNodeId": n.name, "sourceNodeOutputId": "0", "targetNodeInputId": str(i)}
            for i, n in enumerate(node.all_input_nodes)
        ],
        "outputsMetadata": [_result(i, v) for i, v in enumerate(view.results(node))],
    }
    return {**found, "style": _CALL} if site is not None else found


def _result(index: int, value: torch.Tensor) -> Json:
    shape = ",".join(str(size_of(n)) for n in value.shape)
    text = f"{str(value.dtype).removeprefix('torch.')}[{shape}]"
    return {"id": str(index), "attrs": [{"key": "tensor_shape", "value": text}]}


def _lost(borders: Sequence[Boundary], nodes: set[str]) -> list[Json]:
    """Pairs of operations that calls keep from being fused, on the graph before."""
    edges = [
        {"sourceNodeId": f.producer, "targetNodeId": f.consumer, "label": "no longer fused"}
        for b in borders
        for f in b.lost_fusions
        if {f.producer, f.consumer} <= nodes
    ]
    return [{"name": "lost fusions", "edgeColor": _LOST, "edges": edges}] if edges else []


def _borders(borders: Sequence[Boundary], calls: Sequence[CallInfo], view: GraphView) -> list[Json]:
    """For each kind of boundary an overlay of the tensors that go through memory, with their bytes."""
    by_site = {c.site: c for c in calls}
    names = {n.name for n in view.nodes}
    edges: dict[str, list[Json]] = defaultdict(list)
    for b in borders:
        call = by_site[b.site]
        for t in b.tensors:
            ends = [(t.name, call.name)] if t.role == "operand" else [(call.name, u.name) for u in call.users]
            for source, target in ends:
                if {source, target} <= names:
                    edge = {
                        "sourceNodeId": source,
                        "targetNodeId": target,
                        "label": f"{bytes_text(t.bytes)} ({t.bytes} B)",
                    }
                    edges[b.kind].append(edge)
    return [{"name": f"{kind}: now through memory", "edgeColor": _BORDER, "edges": e} for kind, e in edges.items()]
