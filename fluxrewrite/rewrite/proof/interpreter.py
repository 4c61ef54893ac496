"""Nodes of a graph run one by one on real tensors: at other sizes, in wider dtypes, on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

from ...graph.fake_values import value_of
from ...graph.op_table import read
from .small_sizes import Cut

__all__ = ["Differs", "Interpreter", "wide"]

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
_METHODS = dict.fromkeys(("float", "half", "bfloat16"), "double") | {"cfloat": "cdouble", "chalf": "cdouble"}
_CPU = torch.device("cpu")


class Differs(Exception):
    """An operation returned a shape that does not correspond to the traced one at these sizes."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """float64 for a smaller float dtype, complex128 for a smaller complex dtype; any other dtype unchanged."""
    return _WIDE.get(dtype, dtype)


class Interpreter:
    """Runs nodes as calls.

    Args:
        cut: the sizes to run at.
        lift: turn casts to float16, bfloat16 and float32 into casts to float64. Then only the algebra is compared, and rounding
            in low precision does not hide a small difference.
        op: the op of the kernel. Numbers in its arguments are sizes too.
    """

    def __init__(self, cut: Cut, lift: bool, op: Any = None) -> None:
        self._cut, self._lift, self._op = cut, lift, op

    def __call__(self, nodes: Iterable[Node], given: Mapping[Node, Any]) -> dict[Node, Any]:
        """The value of each node.

        Args:
            nodes: calls of functions and methods, in graph order.
            given: the values that enter. They are not changed.

        Raises:
            Differs: a node returns a shape that does not correspond to its traced one at these sizes.
            NotImplementedError: a node is not a call of a function or method, or a norm takes the epsilon of its dtype.
            Exception: any error of an operation.
        """
        # Cloned, because a region may write to what enters, and the other side must start from the same values.
        values = {n: v.clone() if isinstance(v, Tensor) else v for n, v in given.items()}
        for node in nodes:
            values[node] = self._call(node, values)
            self._check(node, values[node])
        return values

    def _call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        if node.op not in ("call_function", "call_method"):
            raise NotImplementedError(f"{node.name} is a {node.op}")
        # In float64 the default epsilon would be that of float64, so the norm would be a different function.
        if self._lift and read(node).op == "rms_norm" and read(node).args.get("eps") is None:
            raise NotImplementedError(f"{node.name} takes the epsilon of its dtype")
        args, kwargs = map_aggregate(self._cut.arguments(node, self._op), lambda v: self._argument(v, values))
        if isinstance(node.target, str):
            name = _METHODS.get(node.target, node.target) if self._lift else node.target
            return self._lifted(getattr(args[0], name)(*args[1:], **kwargs))
        return self._lifted(node.target(*args, **kwargs))  # type: ignore[operator]

    def _lifted(self, value: Any) -> Any:
        """Widen the result of an operation that makes a tensor from numbers in the graph.

        Such a tensor has torch's default dtype, and matmul, for example, refuses float32 next to float64.
        """
        narrow = self._lift and isinstance(value, Tensor) and value.dtype in _WIDE
        return value.to(_WIDE[value.dtype]) if narrow else value

    def _argument(self, value: Any, values: Mapping[Node, Any]) -> Any:
        if isinstance(value, Node):
            return values[value]
        if isinstance(value, torch.dtype) and self._lift:
            return wide(value)
        # The graph may be traced for a device that this machine does not have.
        return _CPU if isinstance(value, torch.device) else value

    def _check(self, node: Node, value: Any) -> None:
        traced = value_of(node)
        pairs = [(traced, value)]
        if isinstance(traced, (tuple, list)) and isinstance(value, (tuple, list)):
            pairs = list(zip(traced, value, strict=False))
        for a, b in pairs:
            if isinstance(a, Tensor) and isinstance(b, Tensor) and self._cut.shape(a) != tuple(b.shape):
                raise Differs(
                    f"{node.name} has shape {tuple(b.shape)} where {tuple(a.shape)} should become {self._cut.shape(a)}"
                )
