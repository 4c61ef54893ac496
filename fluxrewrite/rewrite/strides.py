"""Whether a result may have other strides than the value that it replaces."""

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
"""Operations that view a tensor or copy it, depending on its strides."""


class Strides:
    """The uses of values of a graph that depend on strides.

    The value that a call replaces may be a transposed view, while the call returns a contiguous tensor. Few uses depend on that,
    so the check follows the users of a value and does not demand equal strides.

    Args:
        graph: the graph as it was traced.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._seen: dict[tuple[object, ...], Any] = {}

    @cached_property
    def _view(self) -> GraphView:
        return GraphView(self._graph)

    def check(self, old: Node, new: Node) -> None:
        """Raise RewriteError if a use of `old`, a node of the graph, depends on strides that `new` does not have.

        Users that only view are followed. The check ends where the strides are equal again or an operation computes new values.
        """
        pending = [(old, value_of(new))]
        while pending:
            node, value = pending.pop()
            if isinstance(value, torch.Tensor) and _same(value_of(node), value):
                continue
            for user in node.users:
                name = str(user.target if isinstance(user.target, str) else getattr(user.target, "__name__", ""))
                # With other strides a view may become a copy or a copy a view. That is visible only if one of them is written.
                if name in _COPIES and self._view.written((node, user), 0, len(self._view.nodes)) is not None:
                    raise RewriteError(
                        f"{user.name} may copy or view {node.name} depending on its strides, and one of the two is written to"
                    )
                if name in _VIEWS:
                    pending.append((user, self._seen_by(user, node, value)))
                elif name in _SENSITIVE or (user.op == "output" and not value.is_contiguous()):
                    verb = "returns" if user.op == "output" else "reads"
                    raise RewriteError(
                        f"{user.name} {verb} strides {value_of(node).stride()}, the call gives {value.stride()}"
                    )

    def _seen_by(self, user: Node, node: Node, value: Any) -> Any:
        """The result of the view `user` if its argument `node` has a new value."""
        # Blocks repeat, and a fake run takes far longer than a lookup.
        key = _view_key(user, node, value)
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


def _view_key(user: Node, node: Node, value: Any) -> tuple[object, ...] | None:
    """A key that is equal for equal views of tensors with equal sizes and strides; None if a size is symbolic or there are other
    inputs."""
    if not isinstance(value, torch.Tensor) or user.kwargs or user.all_input_nodes != [node]:
        return None
    sizes = (*value.shape, *value.stride())
    if not all(type(n) is int for n in sizes) or user.args[:1] != (node,):
        return None
    return (user.op, user.target, repr(user.args[1:]), value.dim(), sizes, value.dtype, value.device)
