"""Inductor's lowering, extended by a record of which node each loop body computes.

Inductor itself keeps the origins of its buffers, for comments in its code. They include nodes whose values come in through memory,
and the node that requested the buffer. Neither is computed in the kernel, so loop bodies are marked here when they are created,
and running a marked body reports its node.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch._inductor import dependencies, ir
from torch._inductor.graph import GraphLowering
from torch.fx import Node
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["MarkedLowering"]


class MarkedLowering(GraphLowering):  # type: ignore[misc]
    """A `GraphLowering` that knows the post-grad nodes that each of its operations computes.

    Attributes:
        made_for: the node whose lowering created an operation, by the name of the operation.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_for: dict[str, Node] = {}
        self._marked = WeakIdKeyDictionary()  # by identity: loop bodies are dataclasses, and compare by content
        self._heard: set[Node] | None = None

    def run_node(self, n: Node) -> object:
        """Lower one node, and mark the loop bodies that this creates."""
        before = len(self.operations)
        result = super().run_node(n)
        made = self.operations[before:]
        for operation in made:
            self.made_for[operation.get_operation_name()] = n
        if n.op == "call_function":
            first = next((i for i, o in enumerate(made) if _is_call(o)), -1)
            # Operations before the call of a library only change the layout of its operands.
            for operation in made[first + 1 :]:
                self._mark(getattr(operation, "data", None), n)
            for leaf in tree_leaves(result):
                self._mark(_body(leaf), n)
        return result

    def computed(self, operation: ir.Operation) -> set[Node]:
        """The post-grad nodes that an operation computes: those that its loop body runs, or for a call the node itself."""
        if not isinstance(operation, ir.ComputedBuffer):
            return {self.made_for[operation.get_operation_name()], *self._concatenated(operation)}
        data = operation.data
        sizes = [data.get_pointwise_size(), *([data.get_reduction_size()] if data.get_reduction_type() else [])]
        self._heard = set()
        try:
            dependencies.extract_read_writes(operation.get_store_function(), *sizes)
            return self._heard | set(self._concatenated(operation))
        finally:
            self._heard = None

    def _concatenated(self, operation: Any) -> Iterator[Node]:
        """The node of the concatenation that a buffer is part of, if its kernel writes directly into it."""
        layout = getattr(operation, "layout", None)
        if isinstance(layout, ir.NonOwningLayout):
            whole = self.name_to_buffer.get(layout.view.get_name())
            if isinstance(whole, ir.ConcatKernel):
                yield self.made_for[whole.get_operation_name()]

    def _mark(self, body: Any, node: Node) -> None:
        if not isinstance(body, ir.Loops) or body in self._marked:
            return
        self._marked[body] = node
        for field in ("inner_fn", "inner_fns"):
            inner = getattr(body, field, None)
            if isinstance(inner, tuple):
                object.__setattr__(body, field, tuple(self._reporting(f, node) for f in inner))
            elif inner is not None:
                object.__setattr__(body, field, self._reporting(inner, node))

    def _reporting(self, inner: Callable[..., Any], node: Node) -> Callable[..., Any]:
        @functools.wraps(inner)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._heard is not None:
                self._heard.add(node)
            return inner(*args, **kwargs)

        return run


def _body(value: Any) -> Any:
    """The loops of a value that is not in memory yet, or that filled its buffer."""
    while isinstance(value, ir.MutableBox):
        value = value.data
    return value.data if isinstance(value, ir.ComputedBuffer) else value


def _is_call(operation: ir.Operation) -> bool:
    return isinstance(operation, ir.ExternKernel) and not isinstance(operation, ir.NopKernel)
