"""Which nodes of a graph are kernel calls: those that a rewrite inserted, and calls of an installed kernel's op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ..graph.view import GraphView
from ..kernel import load_kernels

__all__ = ["InsertedCall", "inserted_call", "is_kernel_call", "kernel_calls", "mark"]

_KEY = "fluxrewrite_call"
_TORCH = frozenset({"aten", "prim", "prims", "_c10d_functional"})  # namespaces that hold no kernel of ours


@dataclass(frozen=True)
class InsertedCall:
    """The mark on a kernel call that a rewrite inserted. Copies of a graph keep it; tracing the graph again loses it.

    Attributes:
        kernel: name of the kernel.
        kind: kind of the site that the call replaces.
        origin: name of the site's first output in the graph that was rewritten.
    """

    kernel: str
    kind: str
    origin: str


def mark(node: Node, call: InsertedCall) -> None:
    """Note on a node that it is a kernel call."""
    node.meta[_KEY] = call


def inserted_call(node: Node) -> InsertedCall | None:
    """The mark of a kernel call that a rewrite inserted; None for any other node."""
    found = node.meta.get(_KEY)
    return found if isinstance(found, InsertedCall) else None


def is_kernel_call(view: GraphView, node: Node) -> bool:
    """Whether a node is one of `kernel_calls`."""
    return node in kernel_calls(view)


def kernel_calls(view: GraphView) -> frozenset[Node]:
    """The nodes that a compiler cannot see into because they call a kernel.

    These are the calls that a rewrite inserted, and calls of the op of any installed kernel, whoever wrote them: a model may call
    the op itself, and a rewritten graph that was traced again has lost its marks. Other custom ops are not among them.
    """
    return view.memo("kernel_calls", _kernel_calls)


def _kernel_calls(view: GraphView) -> frozenset[Node]:
    marked = frozenset(n for n in view.nodes if inserted_call(n) is not None)
    custom = [n for n in view.nodes if n not in marked and _custom(n.target)]
    if not custom:
        return marked  # as in nearly every graph: loading kernels imports their packages
    known = {_packet(kernel.op) for kernel in load_kernels().values()}
    return marked.union(n for n in custom if _packet(n.target) in known)


def _custom(target: Any) -> bool:
    packet = _packet(target)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    return packet._qualified_op_name.partition("::")[0] not in _TORCH


def _packet(target: Any) -> Any:
    # Dynamo's graphs call the packet or an overload, as the model spells it; AOTAutograd's only overloads.
    return target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target
