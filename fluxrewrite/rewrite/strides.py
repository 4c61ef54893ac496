"""Whether a result may lie in memory in another order than the one that it replaces."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch.fx import Graph, Node

from ..errors import RewriteError
from ..graph.fake_values import fake_run, value_of
from ..graph.shapes import same_dim
from ..graph.view import GraphView

__all__ = ["Strides"]

_SENSITIVE = frozenset({"as_strided", "stride", "data_ptr"})
_VIEWS = frozenset(
    {
        "permute",
        "transpose",
        "swapaxes",
        "swapdims",
        "t",
        "movedim",
        "expand",
        "getitem",
        "unsqueeze",
        "squeeze",
        "chunk",
    }
    | {"split", "unbind", "narrow", "select", "detach", "to", "unflatten", "clone", "view", "view_as"}
)
_COPIES = frozenset({"reshape", "flatten", "contiguous", "reshape_as", "ravel", "to"})
"""Operations that copy a tensor or view it, as its strides have it."""


class Strides:
    """The uses of the values of a graph that depend on how these lie in memory.

    Blocks that repeat ask the same again, so what a view made of some strides is kept.

    Args:
        graph: as it was traced.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._seen: dict[tuple[object, ...], Any] = {}

    @cached_property
    def _view(self) -> GraphView:
        return GraphView(self._graph)

    def check(self, old: Node, new: Node) -> None:
        """Raise RewriteError if a use of `old`, a node of the graph, depends on strides that `new` does not have."""
        pending = [(old, value_of(new))]
        while pending:
            node, value = pending.pop()
            if isinstance(value, torch.Tensor) and _same(value_of(node), value):
                continue
            for user in node.users:
                name = str(user.target if isinstance(user.target, str) else getattr(user.target, "__name__", ""))
                if name in _COPIES and self._view.written((node, user), 0, len(self._view.nodes)) is not None:
                    raise RewriteError(
                        f"{user.name} may copy {node.name} or view it by its strides, and one of the two is written to"
                    )
                if name in _VIEWS:
                    pending.append((user, self._seen_by(user, node, value)))
                elif name in _SENSITIVE or (user.op == "output" and not value.is_contiguous()):
                    verb = "returns" if user.op == "output" else "reads"
                    raise RewriteError(
                        f"{user.name} {verb} strides {value_of(node).stride()}, the call gives {value.stride()}"
                    )

    def _seen_by(self, user: Node, node: Node, value: Any) -> Any:
        """What a view makes of the new value of one of its arguments."""
        key = _as_asked(user, node, value)
        if key is not None and key in self._seen:
            return self._seen[key]
        try:
            found = fake_run(user, {node: value})
        except (RuntimeError, ValueError) as error:
            raise RewriteError(f"{user.name} cannot view strides {value.stride()}: {error}") from error
        if key is not None:
            self._seen[key] = found
        return found


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return all(same_dim(n, 1) or same_dim(s, t) for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))


def _as_asked(user: Node, node: Node, value: Any) -> tuple[object, ...] | None:
    """Equal for views of tensors of the same sizes and strides; None where sizes are symbolic or other values take part."""
    if not isinstance(value, torch.Tensor) or user.kwargs or user.all_input_nodes != [node]:
        return None
    sizes = (*value.shape, *value.stride())
    if not all(type(n) is int for n in sizes) or user.args[:1] != (node,):
        return None
    return (user.op, user.target, repr(user.args[1:]), value.dim(), sizes, value.dtype, value.device)
