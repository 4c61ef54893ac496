"""Graphs inside a graph: checkpointing and control flow have graphs of their own, which are not rewritten."""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import GraphModule

from ..graph.view import GraphView
from ..site import Code, Miss, Reason, Site
from .base import Pass

__all__ = ["misses_within"]


def misses_within(rewriter: Pass, view: GraphView) -> list[Miss]:
    """What a pass finds in the nested graphs of a graph, each with the reason why it is left alone."""
    # Reported, because a model whose blocks are checkpointed would otherwise look like one without attention.
    found = []
    for name, inner in _inner(view):
        for finding in rewriter.find(inner):
            if isinstance(finding, Site):
                message = f"inside the graph that {name} runs; only the outer graph is rewritten"
                reason = Reason(Code.SUBGRAPH, message, finding.outputs[0].name)
                finding = Miss(finding.kind, finding.path, reason, finding.form)
            found.append(finding)
    return found


def _inner(view: GraphView) -> Iterator[tuple[str, GraphView]]:
    """The nested graphs at all depths, each with the name of the operation that runs it."""
    for owner, inner in view.memo("inner graphs", _views):
        yield owner, inner
        yield from _inner(inner)


def _views(view: GraphView) -> list[tuple[str, GraphView]]:
    root = view.graph.owning_module
    found = []
    for node in view.graph.find_nodes(op="get_attr"):
        module = getattr(root, str(node.target), None)
        if isinstance(module, GraphModule):
            owner = next(iter(node.users), node)
            found.append((view.op(owner), GraphView(module.graph)))
    return found
