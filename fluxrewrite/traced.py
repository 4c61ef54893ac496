"""What a traced graph says of a node beside its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from .errors import RewriteError

__all__ = ["fake_run", "name_of", "value_of"]


def value_of(node: Node) -> Any:
    """The traced fake value: Dynamo keeps it as `example_value`, torch.export and AOTAutograd as `val`; None without either."""
    return node.meta["example_value"] if "example_value" in node.meta else node.meta.get("val")


def name_of(target: Callable[..., Any] | str) -> str:
    """What a node calls, as text that is the same in every process: "aten.add.Tensor", "torch.nn.functional.silu", "view"."""
    if isinstance(target, str):
        return target
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(target)
    name = getattr(target, "__qualname__", None) or getattr(target, "__name__", None) or type(target).__qualname__
    return f"{getattr(target, '__module__', '')}.{name}"


def fake_run(node: Node, other: Mapping[Node, Any] = MappingProxyType({})) -> Any:
    """The result of a node on the traced values of its arguments, or on `other` ones.

    Raises RewriteError where the graph was traced without shapes, and whatever the operation raises.
    """
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: other[n] if n in other else value_of(n))
    # Not detect_fake_mode: while a backend runs, the tracing context holds another mode than the one that Dynamo traced with.
    fakes = (v for v in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(v, FakeTensor))
    fake = next(fakes, None)
    if fake is None:
        raise RewriteError(f"no fake tensors reach {node.target}: the graph was not traced with shapes")
    with fake.fake_mode, torch.no_grad():
        if isinstance(node.target, str):
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]
