"""Copies of graphs, and modules that run them."""

from __future__ import annotations

import copy

from torch.fx import Graph, GraphModule

__all__ = ["as_module", "copied", "module_with"]


def copied(gm: GraphModule) -> Graph:
    """A copy of the graph of `gm`, with the nodes in the same order. Placeholders keep the attributes that Dynamo set."""
    # deepcopy copies `meta` but no other attributes, and AOTAutograd reads Dynamo's from the placeholders.
    graph = copy.deepcopy(gm.graph)
    for node, twin in zip(gm.graph.nodes, graph.nodes, strict=True):
        if node.op == "placeholder":
            twin.__dict__.update({k: v for k, v in node.__dict__.items() if k not in twin.__dict__})
    return graph


def as_module(gm: GraphModule, graph: Graph) -> GraphModule:
    """`gm` itself if `graph` is its graph, else a module like `gm` that runs `graph`."""
    return gm if graph is gm.graph else module_with(gm, graph)


def module_with(gm: GraphModule, graph: Graph) -> GraphModule:
    """A module like `gm` that runs `graph`. It keeps all that Dynamo attached to `gm`."""
    result = GraphModule(gm, graph, class_name=type(gm).__name__)
    for name, value in vars(gm).items():
        vars(result).setdefault(name, value)
    result.meta = dict(gm.meta)
    return result
