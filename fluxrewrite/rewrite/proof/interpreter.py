"""One node after the other on real tensors: at other sizes, in wider dtypes, on the CPU."""

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
    """An operation answers another shape than it should at these sizes."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """float64 or complex128 in the place of a smaller dtype."""
    return _WIDE.get(dtype, dtype)


class Interpreter:
    """Runs nodes as calls.

    Args:
        cut: what sizes become.
        lift: casts to float16, bfloat16 and float32 become casts to float64, so that what is compared is the algebra.
        op: the kernel's op, whose numbers are sizes too.
    """

    def __init__(self, cut: Cut, lift: bool, op: Any = None) -> None:
        self._cut, self._lift, self._op = cut, lift, op

    def __call__(self, nodes: Iterable[Node], given: Mapping[Node, Any]) -> dict[Node, Any]:
        """The value of each node. What enters is not changed.

        Raises:
            Differs: a node answers another shape than its traced value has at these sizes.
            NotImplementedError: a call of a module, or a norm whose epsilon is that of its dtype.
            Exception: whatever an operation raises.
        """
        values = {n: v.clone() if isinstance(v, Tensor) else v for n, v in given.items()}
        for node in nodes:
            values[node] = self._call(node, values)
            self._check(node, values[node])
        return values

    def _call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        if node.op not in ("call_function", "call_method"):
            raise NotImplementedError(f"{node.name} is a {node.op}")
        if self._lift and read(node).op == "rms_norm" and read(node).args.get("eps") is None:
            raise NotImplementedError(f"the epsilon of {node.name} is that of its dtype")
        args, kwargs = map_aggregate(self._cut.arguments(node, self._op), lambda v: self._argument(v, values))
        if isinstance(node.target, str):
            name = _METHODS.get(node.target, node.target) if self._lift else node.target
            return self._lifted(getattr(args[0], name)(*args[1:], **kwargs))
        return self._lifted(node.target(*args, **kwargs))  # type: ignore[operator]

    def _lifted(self, value: Any) -> Any:
        """A tensor made of numbers that the graph holds has torch's default dtype; beside float64 some operations refuse it."""
        narrow = self._lift and isinstance(value, Tensor) and value.dtype in _WIDE
        return value.to(_WIDE[value.dtype]) if narrow else value

    def _argument(self, value: Any, values: Mapping[Node, Any]) -> Any:
        if isinstance(value, Node):
            return values[value]
        if isinstance(value, torch.dtype) and self._lift:
            return wide(value)
        return _CPU if isinstance(value, torch.device) else value

    def _check(self, node: Node, value: Any) -> None:
        traced = value_of(node)
        pairs = [(traced, value)]
        if isinstance(traced, (tuple, list)) and isinstance(value, (tuple, list)):
            pairs = list(zip(traced, value, strict=False))
        for a, b in pairs:
            if isinstance(a, Tensor) and isinstance(b, Tensor) and self._cut.shape(a) != tuple(b.shape):
                raise Differs(
                    f"{node.name} is {tuple(b.shape)} where {self._cut.shape(a)} was to come of {tuple(a.shape)}"
                )
