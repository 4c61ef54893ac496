"""The traced values of nodes, and the results of calls on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from ..errors import RewriteError

__all__ = ["FakeCalls", "fake_run", "name_of", "value_of"]


def value_of(node: Node) -> Any:
    """The traced fake value of a node, or None. Dynamo stores it as `example_value`, torch.export and AOTAutograd as `val`."""
    return node.meta["example_value"] if "example_value" in node.meta else node.meta.get("val")


def name_of(target: Callable[..., Any] | str) -> str:
    """What a node calls, as text that is the same in every process: "aten.add.Tensor", "torch.nn.functional.silu", "view"."""
    # Not repr(): for a plain function it contains an address, and digests that are stored in files are made of this text.
    if isinstance(target, str):
        return target
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(target)
    name = getattr(target, "__qualname__", None) or getattr(target, "__name__", None) or type(target).__qualname__
    return f"{getattr(target, '__module__', '')}.{name}"


def fake_run(node: Node, other: Mapping[Node, Any] = MappingProxyType({})) -> Any:
    """The result of a node on the traced values of its arguments.

    Args:
        node: a call of a function or method.
        other: values to use instead of the traced ones.

    Raises:
        RewriteError: the graph was traced without shapes.
        Exception: any error of the operation itself.
    """
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: other[n] if n in other else value_of(n))
    # Not detect_fake_mode: while a backend runs, the tracing context holds a different mode from the one that Dynamo used.
    fakes = (v for v in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(v, FakeTensor))
    fake = next(fakes, None)
    if fake is None:
        raise RewriteError(f"no fake tensors reach {node.target}: the graph was not traced with shapes")
    with fake.fake_mode, torch.no_grad():
        if isinstance(node.target, str):
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


class FakeCalls:
    """Results of kernel ops on traced values, kept so that a model of equal blocks calls each fake kernel once."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[FakeTensor, ...] | FakeTensor | None] = {}

    def run(self, node: Node) -> Any:
        """Like `fake_run`. An op that writes to an argument or returns a view of one runs every time."""
        # A kept result is copied into new memory. For an op that aliases its arguments that would lose the alias.
        key = _result_key((node.target, node.args, node.kwargs)) if _functional(node.target) else None
        known = self._known.get(key) if key is not None else None
        if known is not None:
            return _like(known) if isinstance(known, FakeTensor) else type(known)(map(_like, known))
        found = fake_run(node)
        plain = [found] if isinstance(found, FakeTensor) else found
        if key is not None and isinstance(plain, (list, tuple)) and all(_result_key(t) is not None for t in plain):
            self._known[key] = found
        return found


def _functional(op: Any) -> bool:
    schema = getattr(op, "_schema", None)
    return schema is not None and all(a.alias_info is None for a in (*schema.arguments, *schema.returns))


def _result_key(value: Any) -> Any:
    """A key for arguments that give results of equal sizes, strides and dtype; None if a size is symbolic."""
    if isinstance(value, Node):
        value = value_of(value)
    if isinstance(value, FakeTensor):
        numbers = (*value.shape, *value.stride(), value.storage_offset())
        kind = value.device.type
        # An op may cast under autocast, so the dtype of its result depends on more than its arguments.
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        casts_to = torch.get_autocast_dtype(kind) if autocast else None
        key = (numbers, value.dim(), value.dtype, value.device, id(value.fake_mode), casts_to)
        # A SymInt cannot be hashed, and comparing two of them would add a guard to the user's graph.
        return key if all(isinstance(n, int) for n in numbers) else None
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, (list, tuple)):
        parts = tuple(map(_result_key, value))
        return None if None in parts else parts
    # With its type: 1, 1.0 and True are equal keys, but they can give results of different dtypes.
    return (type(value), value) if isinstance(value, (int, float, str)) or value is None or callable(value) else None


def _like(value: FakeTensor) -> FakeTensor:
    meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return FakeTensor(value.fake_mode, meta, value.device)
