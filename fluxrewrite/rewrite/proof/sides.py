"""The operations of a site and of its replacement, in one small graph of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Graph, Node

from ...errors import RewriteError
from ...kernel import Kernel
from ...site import Site
from ..base import Builder, Pass
from .region import Region

__all__ = ["NoReplacement", "Sides", "sides_of"]


class NoReplacement(RewriteError):
    """The pass fails to emit the replacement, so there is nothing to prove. It would fail in the real graph too."""


class _Unnamed(RewriteError):
    """The replacement reads a value that its site does not name, so the proof has no value for it."""


@dataclass(frozen=True)
class Sides:
    """Both computations of the same values.

    Attributes:
        inputs: the values that enter either side.
        joined: for each input of the replacement that is joined weights, the weights.
        original, replacement: the calls of each side, in order. Calls of the original that the replacement reads are in both.
        expected, made: the outputs of the site in the original and in the replacement.
        mask: the input that is added to scores, or None.
    """

    inputs: tuple[Node, ...]
    joined: dict[Node, tuple[Node, ...]]
    original: tuple[Node, ...]
    replacement: tuple[Node, ...]
    expected: tuple[Node, ...]
    made: tuple[Node, ...]
    mask: Node | None


def sides_of(region: Region, site: Site, rewriter: Pass, kernel: Kernel | None) -> Sides:
    """Both sides of a site. The replacement is the body of the canonical op, or what `emit_inline` emits without a kernel.

    Raises:
        NoReplacement: the pass raises.
        RewriteError: the replacement reads a value that the site does not name.
    """
    # A graph of its own, because the pass emits into a graph, and the real one must not change before the proof.
    graph = Graph()
    twins: dict[Node, Node] = {}
    for node in region.inputs:
        twins[node] = graph.placeholder(node.name)
        twins[node].meta.update(_traced(node))
    for node in region.nodes:
        twins[node] = graph.node_copy(node, twins.__getitem__)
    graph.output(tuple(twins[n] for n in site.outputs))

    def current(value: Any) -> Any:
        if not isinstance(value, Node) or value.graph is graph:
            return value
        if value not in twins:
            raise _Unnamed(f"the replacement reads {value.name}, which its site does not name")
        return twins[value]

    # The op's body and not the kernel, which may need a device, and whose dtypes and sizes are limited.
    body = None if kernel is None else replace(kernel, provider="reference", execution="reference")
    builder = Builder(graph, graph.output_node(), site, current, body)
    try:
        emitted = rewriter.emit_inline(site, builder) if body is None else rewriter.emit(site, builder, body.op)
    except _Unnamed:
        raise
    except Exception as error:
        raise NoReplacement(f"{type(error).__name__}: {error}") from error
    return _sides(twins, region, site, builder, [current(n) for n in emitted])


def _traced(node: Node) -> dict[str, Any]:
    """The metadata with the traced value of a node; for an attribute of the module that was not traced, the attribute."""
    found: dict[str, Any] = {k: node.meta[k] for k in ("example_value", "val") if k in node.meta}
    if not found and node.op == "get_attr":
        return {"example_value": getattr(node.graph.owning_module, str(node.target), None)}
    return found


def _sides(twins: dict[Node, Node], region: Region, site: Site, builder: Builder, made: list[Node]) -> Sides:
    by_name = {n.name: n for n in twins.values()}
    joined = {n: tuple(by_name[name] for name in n.meta["joined"]) for n in builder.made if n.op == "placeholder"}
    original = tuple(twins[n] for n in region.nodes)
    calls = tuple(n for n in builder.made if n.op != "placeholder")
    # The replacement runs on its own values: the original may have written to those that it shares with it.
    calls = (*_needed(original, calls), *calls)
    read = {i for n in (*original, *calls) for i in n.all_input_nodes} | {p for parts in joined.values() for p in parts}
    entering = tuple(t for t in (twins[n] for n in region.inputs) if t in read)
    mask = site.operands.get("mask")
    expected = tuple(twins[n] for n in site.outputs)
    return Sides(
        inputs=entering,
        joined=joined,
        original=original,
        replacement=calls,
        expected=expected,
        made=tuple(made),
        mask=twins.get(mask) if isinstance(mask, Node) else None,
    )


def _needed(original: tuple[Node, ...], calls: tuple[Node, ...]) -> Iterator[Node]:
    """The nodes of the original that `calls` depend on, in order."""
    needed = {i for n in calls for i in n.all_input_nodes}
    for node in reversed(original):
        if node in needed:
            needed.update(node.all_input_nodes)
    return (n for n in original if n in needed)
