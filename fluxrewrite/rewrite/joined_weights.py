"""Weights joined into one tensor whose slices the model's own parameters become: no second copy, and none at a call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.fx import GraphModule, Node
from torch.nn import Parameter

from ..graph.fake_values import value_of

__all__ = ["Joinable", "join", "owned", "parameters", "settle", "with_joined"]

log = logging.getLogger("fluxrewrite")
_ALIGNED = 16
"""Bytes: Inductor compiles kernels for operands that begin at a multiple of this (`torch._inductor.utils.ALIGNMENT`)."""
_JOINS = 256
"""How often the weights of one compiled graph are joined anew; a model has fewer blocks, offloading moves weights at each call."""
Joinable = Callable[[Sequence[Node]], bool]
"""Whether the tensors of these inputs of the graph can be joined."""


def parameters(nodes: Sequence[Node]) -> bool:
    """Whether all are parameters of the model that fit together, by what was traced."""
    values = [value_of(n) if n.op == "placeholder" else None for n in nodes]
    known = [
        v for v in values if isinstance(v, Parameter) and not isinstance(v, DTensor)
    ]  # a part is not the model's memory
    return len(known) == len(nodes) and len({(v.dtype, v.device, v.shape[1:]) for v in known}) == 1


def owned(gm: GraphModule, inputs: Sequence[Any]) -> Joinable:
    """As `parameters`, for the tensors at hand: nothing else may use their memory, for it moves.

    A parameter that two groups share, as tied weights are, is of the first that asks.
    """
    held = dict(zip((n.name for n in gm.graph.find_nodes(op="placeholder")), inputs, strict=True))
    groups: dict[Node, tuple[Node, ...]] = {}

    def joinable(nodes: Sequence[Node]) -> bool:
        tensors = [held.get(n.name) for n in nodes]
        if (
            not parameters(nodes)
            or not _movable(tensors)
            or any(groups.get(n, tuple(nodes)) != tuple(nodes) for n in nodes)
        ):
            return False
        groups.update(dict.fromkeys(nodes, tuple(nodes)))
        return True

    return joinable


def _movable(tensors: Sequence[Any]) -> bool:
    """Whether all are parameters that lie side by side, or could be moved there."""
    found = [t for t in tensors if type(t) is Parameter and not t.is_inference()]
    if len(found) < len(tensors):
        return False
    aligned = all(t.numel() * t.element_size() % _ALIGNED == 0 for t in found)
    return _adjacent(found) or (aligned and all(map(_alone, found)))


def _alone(tensor: Tensor) -> bool:
    """Whether a parameter fills its memory, and no other tensor lies there."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return whole and tensor.is_contiguous() and _users(tensor) <= _users(torch.empty(1))


def _users(tensor: Tensor) -> int:
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


def _adjacent(tensors: Sequence[Tensor]) -> bool:
    """Whether they lie one after the other in one memory, as slices of a joined tensor do."""
    first, at = tensors[0], tensors[0].data_ptr()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or not tensor.is_contiguous() or tensor.data_ptr() != at:
            return False
        at += tensor.numel() * tensor.element_size()
    return True


def join(gm: GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The tensors for the inputs that `Builder.joined` added to a graph, which take their place after all others.

    Copies, until `settle` makes the parameters slices of them. Parameters that are slices of one tensor already, as after an
    earlier compile, are not copied.

    Args:
        gm: the rewritten graph.
        inputs: of the graph before it was rewritten.
    """
    return [_joined(parts) for parts in _parts(gm, inputs)]


def _parts(gm: GraphModule, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    nodes = gm.graph.find_nodes(op="placeholder")
    held = dict(zip((n.name for n in nodes if "joined" not in n.meta), inputs, strict=True))
    return [[held[name] for name in n.meta["joined"]] for n in nodes if "joined" in n.meta]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0].detach()
    if _adjacent(tensors):
        return first.as_strided((sum(t.shape[0] for t in tensors), *first.shape[1:]), first.stride())
    # A tensor made under inference mode could never be trained again.
    with torch.inference_mode(False), torch.no_grad():
        return torch.cat([t.detach() for t in tensors])


def settle(gm: GraphModule, inputs: Sequence[Tensor], joined: Sequence[Tensor]) -> None:
    """Make the parameters slices of the joined tensors: they keep their values, and the memory that they had is free.

    To be called after the compile: compilers go by where in its memory a parameter lay when it was traced.
    """
    for parts, whole in zip(_parts(gm, inputs), joined, strict=True):
        _settle(parts, whole)


def _settle(parts: Sequence[Tensor], whole: Tensor) -> None:
    if not _adjacent(parts):
        with torch.inference_mode(False):
            for tensor, part in zip(parts, whole.split([t.shape[0] for t in parts]), strict=True):
                tensor.data = part


def with_joined(
    compiled: Callable[..., Any], gm: GraphModule, joined: Sequence[Tensor], apart: Callable[..., Callable[..., Any]]
) -> Callable[..., Any]:
    """A call of the compiled rewritten graph with its joined weights.

    Calls may bring other weights: one graph serves all blocks of a kind, and parameters are replaced (`param.data = ...`),
    moved and fused with adapters. Where nothing else holds them they are joined in their turn. Where they cannot be, or were
    often enough, what `apart(inputs)` answers runs, the graph compiled as it was.

    Args:
        compiled: takes the inputs of the graph before it was rewritten, and after these the joined tensors.
        gm: the rewritten graph.
        joined: as `join` answers them, settled.
    """
    groups = _groups(gm)
    other: list[Callable[..., Any]] = []
    left, lock = _JOINS, threading.RLock()
    latest = (list(joined), _places(groups, gm, joined))

    def joined_anew(inputs: Sequence[Any]) -> list[Tensor] | None:
        nonlocal latest, left
        parts = [[inputs[i] for i in group] for group in groups]
        if not all(map(_adjacent, parts)) and left and all(map(_movable, parts)):
            left -= 1
            for group in parts:
                _settle(group, _joined(group))
        if not all(map(_adjacent, parts)):
            return None
        latest = ([_joined(group) for group in parts], [(i, inputs[i].data_ptr()) for group in groups for i in group])
        return latest[0]

    def run(*inputs: Any) -> Any:
        whole, places = latest
        if all(inputs[i].data_ptr() == at for i, at in places):
            return compiled(*inputs, *whole)
        with lock:
            found = joined_anew(inputs)
            if found is None and not other:
                log.warning("fluxrewrite: weights that were joined have been replaced and cannot be joined again; "
                            "where that is so the graph runs as it was")  # fmt: skip
                other.append(apart(inputs))
        return other[0](*inputs) if found is None else compiled(*inputs, *found)

    return run


def _groups(gm: GraphModule) -> list[list[int]]:
    """For each joined tensor, which inputs of the graph are its parts."""
    nodes = gm.graph.find_nodes(op="placeholder")
    index = {n.name: i for i, n in enumerate(nodes)}
    return [[index[name] for name in n.meta["joined"]] for n in nodes if "joined" in n.meta]


def _places(groups: Sequence[Sequence[int]], gm: GraphModule, joined: Sequence[Tensor]) -> list[tuple[int, int]]:
    """For each parameter that is joined, which input it is and where it lies."""
    nodes = gm.graph.find_nodes(op="placeholder")
    places = []
    for group, whole in zip(groups, joined, strict=True):
        at = whole.data_ptr()
        for i in group:
            places.append((i, at))
            value = value_of(nodes[i])
            at += value.numel() * value.element_size()
    return places
