"""The data that ranks exchange in a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.fx import Node

from .op_table import is_collective
from .shapes import LEFT_OUT, hints, size_of
from .view import GraphView

__all__ = ["Collective", "collectives"]


@dataclass(frozen=True)
class Collective:
    """One exchange between ranks. Compilers fuse nothing across it, with kernels or without.

    Attributes:
        name: name of the node.
        op: "all_reduce" and the like; "redistribute" where the placement of a DTensor changes.
        path: module that it was traced in.
        ranks: how many ranks take part; None if the graph does not say.
        shape, dtype: shape and dtype of the tensor that this rank contributes.
        bytes: size of that tensor. A symbolic size counts as it was traced.
    """

    name: str
    op: str
    path: str
    ranks: int | None
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    bytes: int


def collectives(view: GraphView) -> tuple[Collective, ...]:
    """All exchanges of a graph, in order. A node that only waits for one is not counted."""
    sent = (op for op in view.inventory() if is_collective(op) or op == "redistribute")
    # Sorted, because `with_op` keeps the order of the graph only within a name.
    found = (_collective(view, node) for node in sorted(view.with_op(*sent), key=view.order))
    return tuple(c for c in found if c is not None)


def _collective(view: GraphView, node: Node) -> Collective | None:
    op = view.op(node)
    given = view.value(node.all_input_nodes[0]) if node.all_input_nodes else None
    if is_collective(op):
        ranks = node.meta.get("ranks")
    elif op == "redistribute" and isinstance(given, DTensor):
        after = view.value(node)
        # DTensor traces a redistribute to the placement that a tensor already has too. Nothing is sent for it.
        if not isinstance(after, DTensor) or after.placements == given.placements:
            return None
        ranks, given = given.device_mesh.size(), given._local_tensor
    else:
        return None
    if not isinstance(given, Tensor):
        return None
    size = math.prod(hints(given.shape, LEFT_OUT)) * given.element_size()
    shape = tuple(size_of(n) for n in given.shape)
    name = op.removeprefix("_c10d_functional.")
    path = view.path(node)
    return Collective(node.name, name, path, ranks=ranks, shape=shape, dtype=given.dtype, bytes=size)
