"""Replacing sites by calls, in a copy of the graph."""

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
    """A rewritten copy of `gm`, and the sites that were left alone after all, each with the reason. `gm` is not changed."""
    graph, left = rewritten_graph(gm, replacements)
    return module_with(gm, graph), left


def rewritten_graph(gm: GraphModule, replacements: Iterable[Replacement]) -> tuple[Graph, list[tuple[Site, Reason]]]:
    """Like `rewrite`, but returns a graph. Generating the code of a module takes time, and only a graph that runs needs it."""
    graph = copied(gm)
    twins = dict(zip(gm.graph.nodes, graph.nodes, strict=True))
    replaced: dict[Node, Node] = {}
    done: list[_Done] = []
    left: list[tuple[Site, Reason]] = []

    def current(value: Any) -> Any:
        # A site may name a value that an earlier replacement has replaced, and the replacement of that one too.
        value = twins.get(value, value)
        while value in replaced:
            value = replaced[value]
        return value

    strides, calls = Strides(gm.graph), FakeCalls()
    for item in replacements:
        builder = Builder(graph, twins[item.site.before], item.site, current, kernel=item.kernel, calls=calls)
        try:
            made = _replace(item, builder, current, strides)
            replaced.update(made)
            inside = {twins[n] for n in (*item.site.interior, *item.site.outputs)}
            # A check of a value is a user of it, and would keep the whole site in the graph.
            inside.update(twins[u] for n in item.site.interior for u in n.users if only_checks(u))
            done.append(_Done(item.site, builder, made, inside))
        except RewriteError as error:
            builder.undo()
            left.append((item.site, Reason(Code.REPLACEMENT, str(error), item.site.outputs[0].name)))
    kept = _used(done)
    unused = [one.site for one in done if one not in kept]
    left += [(site, Reason(Code.REPLACEMENT, "nothing uses its results", site.outputs[0].name)) for site in unused]
    # Not `eliminate_dead_code`: it would also remove unused nodes of the user's graph that belong to no site.
    removable = {n for one in kept for n in one.inside}
    for node in reversed(list(graph.nodes)):
        if node in removable and not node.users:
            graph.erase_node(node)
    graph.lint()
    return graph, left


@dataclass(eq=False)
class _Done:
    """A site that was replaced.

    Attributes:
        site: the site.
        builder: the builder that emitted the replacement.
        made: the new node for each output of the site.
        inside: the nodes that are no longer needed.
    """

    site: Site
    builder: Builder
    made: dict[Node, Node]
    inside: set[Node]

    @property
    def used(self) -> bool:
        """Whether any node outside the site reads a result."""
        return any(user not in self.inside for new in self.made.values() for user in new.users)

    def undo(self) -> None:
        """Restore the original nodes."""
        for old, new in self.made.items():
            new.replace_all_uses_with(old)
        self.builder.undo()


def _used(done: list[_Done]) -> list[_Done]:
    """The replacements whose results are used. The others are undone.

    A call that nothing uses would run for nothing, and reports would count it as a rewrite. A pass cannot know that: the user of a
    site may itself be removed with another site. Undoing one call may leave another one without a use, so this repeats.
    """
    while dead := [one for one in done if not one.used]:
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
    # All outputs are checked before the first is replaced, so that a failure leaves nothing to undo but new nodes.
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
            f"the call would return {b.dtype} {tuple(b.shape)} on {b.device} in place of {a.dtype} {tuple(a.shape)} on {a.device}"
        )
