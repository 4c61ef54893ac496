"""Sites into calls: what a pass is, how it emits a replacement, and the rewritten copy of a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, GraphModule, Node

from ..errors import RewriteError
from ..graph.fake_values import FakeCalls, value_of
from ..graph.modules import copied, module_with
from ..graph.shapes import same_shape
from ..site import Code, Reason, Site
from .base import Builder, Replacement
from .guards import only_checks
from .strides import Strides

__all__ = ["rewrite", "rewritten_graph"]


def rewrite(gm: GraphModule, replacements: Iterable[Replacement]) -> tuple[GraphModule, list[tuple[Site, Reason]]]:
    """A rewritten copy of `gm`, and the sites that had to be left alone after all. `gm` itself is not changed."""
    graph, left = rewritten_graph(gm, replacements)
    return module_with(gm, graph), left


def rewritten_graph(gm: GraphModule, replacements: Iterable[Replacement]) -> tuple[Graph, list[tuple[Site, Reason]]]:
    """As `rewrite`, without the module: its code is written only where the graph is to run."""
    graph = copied(gm)
    twins = dict(zip(gm.graph.nodes, graph.nodes, strict=True))
    replaced: dict[Node, Node] = {}
    done: list[_Done] = []
    left: list[tuple[Site, Reason]] = []

    def current(value: Any) -> Any:
        value = twins.get(value, value)
        while value in replaced:
            value = replaced[value]
        return value

    strides, calls = Strides(gm.graph), FakeCalls()
    for item in replacements:
        builder = Builder(graph, twins[item.site.before], item.site, current, item.kernel, calls)
        try:
            made = _replace(item, builder, current, strides)
            replaced.update(made)
            inside = {twins[n] for n in (*item.site.interior, *item.site.outputs)}
            inside.update(twins[u] for n in item.site.interior for u in n.users if only_checks(u))
            done.append(_Done(item.site, builder, made, inside))
        except RewriteError as error:
            builder.undo()
            left.append((item.site, Reason(Code.REPLACEMENT, str(error), item.site.outputs[0].name)))
    kept = _read_ones(done)
    unread = [one.site for one in done if one not in kept]
    left += [(site, Reason(Code.REPLACEMENT, "nothing uses its results", site.outputs[0].name)) for site in unread]
    doomed = {n for one in kept for n in one.inside}
    for node in reversed(list(graph.nodes)):
        if node in doomed and not node.users:
            graph.erase_node(node)
    graph.lint()
    return graph, left


@dataclass(eq=False)
class _Done:
    """A site that was replaced: what was `made` in the place of what, and the nodes that have no use any more."""

    site: Site
    builder: Builder
    made: dict[Node, Node]
    inside: set[Node]

    @property
    def read(self) -> bool:
        """Whether anything but the site itself reads a result."""
        return any(user not in self.inside for new in self.made.values() for user in new.users)

    def undo(self) -> None:
        """Put back what was there."""
        for old, new in self.made.items():
            new.replace_all_uses_with(old)
        self.builder.undo()


def _read_ones(done: list[_Done]) -> list[_Done]:
    """Those of the replacements that something reads a result of; the others are taken back."""
    while dead := [one for one in done if not one.read]:
        for one in dead:
            one.undo()
        done = [one for one in done if one not in dead]
    return done


def _replace(item: Replacement, builder: Builder, current: Callable[[Any], Any], strides: Strides) -> dict[Node, Node]:
    outputs = [current(n) for n in item.site.outputs]
    try:
        if item.kernel is None:
            made = item.rewriter.emit_inline(item.site, builder)
        else:
            made = item.rewriter.emit(item.site, builder, item.kernel.op)
        for old, new in zip(outputs, made, strict=True):
            _check_same(old, new)
    except RewriteError:
        raise
    except Exception as error:
        raise RewriteError(f"{type(error).__name__}: {error}") from error
    for node, new in zip(item.site.outputs, made, strict=True):
        strides.check(node, new)
        new.meta["replaces"] = (*new.meta.get("replaces", ()), node.name)
    for old, new in zip(outputs, made, strict=True):
        old.replace_all_uses_with(new)
    return dict(zip(outputs, made, strict=True))


def _check_same(old: Node, new: Node) -> None:
    a, b = value_of(old), value_of(new)
    if not same_shape(a.shape, b.shape) or a.dtype != b.dtype or a.device != b.device:
        raise RewriteError(
            f"the call would give {b.dtype} {tuple(b.shape)} on {b.device} in place of {a.dtype} {tuple(a.shape)} on {a.device}"
        )
