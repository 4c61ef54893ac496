"""Graphs as modules: a copy of a graph, and a module that runs it."""

from __future__ import annotations

import copy

from torch.fx import Graph, GraphModule

__all__ = ["as_module", "copied", "module_with"]


def copied(gm: GraphModule) -> Graph:
    """A copy of the graph of `gm`, nodes in the same order; placeholders keep what Dynamo attached to them."""
    graph = copy.deepcopy(gm.graph)
    for node, twin in zip(gm.graph.nodes, graph.nodes, strict=True):
        if node.op == "placeholder":
            twin.__dict__.update({k: v for k, v in node.__dict__.items() if k not in twin.__dict__})
    return graph


def as_module(gm: GraphModule, graph: Graph) -> GraphModule:
    """`gm` itself where `graph` is its own, else a module like it that runs `graph`."""
    return gm if graph is gm.graph else module_with(gm, graph)


def module_with(gm: GraphModule, graph: Graph) -> GraphModule:
    """A module like `gm` that runs `graph`; whatever Dynamo attached to `gm` is kept."""
    result = GraphModule(gm, graph, class_name=type(gm).__name__)
    for name, value in vars(gm).items():
        vars(result).setdefault(name, value)
    result.meta = dict(gm.meta)
    return result
