"""What a pass is, and how it emits a replacement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Graph, Node
from torch.fx.traceback import NodeSource, NodeSourceAction

from ..graph.fake_values import FakeCalls, fake_run, value_of
from ..graph.view import GraphView
from ..kernel import Kernel
from ..site import Code, Finding, Inline, Miss, Reason, Site
from .guards import regime
from .kernel_calls import InsertedCall, mark

__all__ = ["Builder", "Pass", "Replacement"]


class Pass:
    """A rewrite: finds its sites in a view and emits the call that replaces one.

    Subclass it in a file of its own and name it in the entry point group `fluxrewrite.passes`.
    """

    kind: ClassVar[str]
    """Name of the pass and of the sites it finds."""
    kernel: ClassVar[str]
    """Name of the kernel that may replace a site."""
    forms: ClassVar[tuple[str, ...]]
    """The forms it knows; a selection may name a single one."""
    looks_for: ClassVar[str]
    """One line on what the pass looks for, shown when it finds nothing."""

    def find(self, view: GraphView) -> list[Finding]:
        """Return all sites and near misses, in graph order. Must not change the graph."""
        raise TypeError(f"{type(self).__name__} does not implement find")

    def emit(self, site: Site, builder: Builder, op: Callable[..., Any]) -> Sequence[Node]:
        """Insert the replacement of `site`, a call of `op`; one new node for each of `site.outputs`."""
        raise TypeError(f"{type(self).__name__} does not implement emit")

    def inline(self, view: GraphView, site: Site) -> Inline | None:
        """Return what `emit_inline` would write, or None if the site has no such form."""
        return None

    def emit_inline(self, site: Site, builder: Builder) -> Sequence[Node]:
        """Insert plain torch operations that a compiler fuses; one new node for each of `site.outputs`."""
        raise TypeError(f"{type(self).__name__} does not implement emit_inline")

    def miss(self, code: Code, message: str, path: str, node: Node | None = None, form: str = "") -> Miss:
        """A near miss of this pass."""
        return Miss(self.kind, path, Reason(code, message, node.name if node is not None else ""), form)


@dataclass(frozen=True)
class Replacement:
    """A site, the pass that found it and the kernel that replaces it; without a kernel the site is written inline."""

    rewriter: Pass
    site: Site
    kernel: Kernel | None


class Builder:
    """Inserts nodes at one place of a graph. Every new node gets a fake value, module stack, stack trace and origin.

    A call of the kernel's op is marked as a kernel call, see `kernel_calls`.
    """

    def __init__(
        self,
        graph: Graph,
        at: Node,
        site: Site,
        current: Callable[[Any], Any],
        kernel: Kernel | None = None,
        calls: FakeCalls | None = None,
    ) -> None:
        self._graph, self._at, self._site, self._current, self._kernel = graph, at, site, current, kernel
        self._calls = calls or FakeCalls()
        value = value_of(site.outputs[0])
        self._regime = regime(graph, at, value.device.type) if isinstance(value, torch.Tensor) else nullcontext
        self.made: list[Node] = []

    def call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Node:
        """Insert a call of a function, or of a tensor method given by name. Nodes of the original graph may be passed.

        Raises RewriteError when the graph was traced without fake tensors.
        """
        called = self._kernel if self._kernel is not None and target is self._kernel.op else None
        if called is not None:
            kwargs.update(called.options)
        args, kwargs = torch.fx.node.map_aggregate((args, kwargs), self._current)  # type: ignore[assignment]
        kind = "call_method" if isinstance(target, str) else "call_function"
        with self._graph.inserting_before(self._at):
            node = self._graph.create_node(kind, target, args, dict(kwargs))
        self.made.append(node)
        origin = self._site.outputs[0]
        node.meta.update({k: origin.meta[k] for k in ("nn_module_stack", "stack_trace") if k in origin.meta})
        node.meta["from_node"] = [NodeSource(origin, f"fluxrewrite.{self._site.kind}", [NodeSourceAction.REPLACE])]
        if called is not None:
            mark(node, InsertedCall(called.name, self._site.kind, origin.name))
        with self._regime():
            value = self._calls.run(node) if called is not None else fake_run(node)
        node.meta["example_value" if "example_value" in origin.meta else "val"] = value
        return node

    def joined(self, weights: Sequence[Node]) -> Node:
        """A new input of the graph: parameters [N, ...] joined along their first axis, as `joined_weights` does."""
        parts = [self._current(n) for n in weights]
        last = self._graph.find_nodes(op="placeholder")[-1]
        with self._graph.inserting_after(last):
            node = self._graph.placeholder(f"joined_{parts[0].name}")
        self.made.append(node)
        node.meta.update(joined=tuple(n.name for n in parts), tensor_dict={"_dynamo_static_input_type": "unguarded"})
        node._dynamo_source = None  # type: ignore[attr-defined]  # AOTAutograd reads it from Dynamo's placeholders
        values = [value_of(n) for n in parts]
        with values[0].fake_mode, torch.no_grad():
            node.meta["example_value" if "example_value" in parts[0].meta else "val"] = torch.cat(values)
        return node

    def undo(self) -> None:
        """Erase everything that was inserted."""
        while self.made:
            self._graph.erase_node(self.made.pop())
