"""Weights joined into one tensor, of which the model's own parameters become slices.

Several projections become one layer, which needs one weight. A copy next to the parameters would double their memory and miss
later changes of them. Joining at each call would copy all of them each time. As slices, the parameters stay usable: training,
loading a state dict and in-place changes all write to the joined tensor.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
"""Bytes. Inductor compiles kernels for operands that begin at a multiple of this (`torch._inductor.utils.ALIGNMENT`)."""
_JOINS = 256
"""How often the weights of one compiled graph may be joined again. A model has fewer blocks. Offloading moves weights at each
call, and would copy them at each call without this limit."""
Joinable = Callable[[Sequence[Node]], bool]
"""Whether the tensors of these inputs of the graph can be joined."""


def parameters(nodes: Sequence[Node]) -> bool:
    """Whether all nodes are parameters of the model with one dtype, device and row shape, as traced."""
    values = [value_of(n) if n.op == "placeholder" else None for n in nodes]
    known = [
        v for v in values if isinstance(v, Parameter) and not isinstance(v, DTensor)
    ]  # a part is not the model's memory
    return len(known) == len(nodes) and len({(v.dtype, v.device, v.shape[1:]) for v in known}) == 1


def owned(gm: GraphModule, inputs: Sequence[Any]) -> Joinable:
    """Like `parameters`, but for the actual tensors. Nothing else may use their memory, because joining moves it.

    A parameter that two groups share, such as a tied weight, belongs to the first group that is checked.
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
    """Whether all are parameters that are adjacent in memory, or can be moved to be."""
    # Not an inference tensor: torch lets `settle` set its `.data`, but then refuses to read it outside of inference mode.
    found = [t for t in tensors if type(t) is Parameter and not t.is_inference()]
    if len(found) < len(tensors):
        return False
    # Other graphs may be compiled for the parameters alone. They assume an aligned address, which a slice must have too.
    aligned = all(t.numel() * t.element_size() % _ALIGNED == 0 for t in found)
    return _adjacent(found) or (aligned and all(map(_alone, found)))


def _alone(tensor: Tensor) -> bool:
    """Whether a parameter fills its storage, and no other tensor uses the storage."""
    # Compared with a new tensor, because the count includes references that torch itself holds.
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return whole and tensor.is_contiguous() and _users(tensor) <= _users(torch.empty(1))


def _users(tensor: Tensor) -> int:
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


def _adjacent(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors follow each other in one storage, as slices of a joined tensor do."""
    first, at = tensors[0], tensors[0].data_ptr()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or not tensor.is_contiguous() or tensor.data_ptr() != at:
            return False
        at += tensor.numel() * tensor.element_size()
    return True


def join(gm: GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The tensors for the inputs that `Builder.joined` added to a graph. These inputs come after all others.

    They are copies until `settle` makes the parameters slices of them. Parameters that are slices of one tensor already, as after
    an earlier compile, are not copied.

    Args:
        gm: the rewritten graph.
        inputs: inputs of the graph before it was rewritten.
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
    # Under inference mode the result would be an inference tensor, and its slices could never be trained again.
    with torch.inference_mode(False), torch.no_grad():
        return torch.cat([t.detach() for t in tensors])


def settle(gm: GraphModule, inputs: Sequence[Tensor], joined: Sequence[Tensor]) -> None:
    """Make the parameters slices of the joined tensors. They keep their values, and their old memory is freed.

    Call this after the compile: compilers rely on the storage offset that a parameter had when it was traced.
    """
    for parts, whole in zip(_parts(gm, inputs), joined, strict=True):
        _settle(parts, whole)


def _settle(parts: Sequence[Tensor], whole: Tensor) -> None:
    if not _adjacent(parts):
        with torch.inference_mode(False):
            for tensor, part in zip(parts, whole.split([t.shape[0] for t in parts]), strict=True):
                tensor.data = part


def with_joined(
    compiled: Callable[..., Any], gm: GraphModule, joined: Sequence[Tensor], fallback: Callable[..., Callable[..., Any]]
) -> Callable[..., Any]:
    """A call of the compiled rewritten graph with its joined weights.

    Later calls may bring other weights: one graph serves all blocks of a kind, and parameters are replaced (`param.data = ...`),
    moved, and fused with adapters. Such weights are joined too, if no other tensor uses their memory. If they cannot be joined, or
    were joined too often, the graph runs as it was.

    Args:
        compiled: takes the inputs of the graph before it was rewritten, followed by the joined tensors.
        gm: the rewritten graph.
        joined: the result of `join`, settled.
        fallback: compiles the graph as it was; called once, with the inputs of the call that needs it.
    """
    return _WeightCheck(compiled, _groups(gm), _Weights(list(joined), _places(gm, joined)), fallback).run


@dataclass(frozen=True)
class _Weights:
    """Joined tensors, and for each of their parts the index of the input and its address."""

    joined: list[Tensor]
    places: list[tuple[int, int]]

    def match(self, inputs: Sequence[Any]) -> bool:
        """Whether the parameters among the inputs are slices of these tensors."""
        return all(inputs[i].data_ptr() == at for i, at in self.places)


class _WeightCheck:
    """Runs a compiled graph on joined weights, and joins again when a call brings other weights."""

    def __init__(
        self,
        compiled: Callable[..., Any],
        groups: Sequence[Sequence[int]],
        weights: _Weights,
        fallback: Callable[..., Callable[..., Any]],
    ) -> None:
        self._compiled, self._groups, self._make_fallback = compiled, groups, fallback
        self._fallback: Callable[..., Any] | None = None
        # One object, replaced as a whole: other threads read it without the lock.
        self._latest = weights
        self._joins_left, self._lock = _JOINS, threading.RLock()

    def run(self, *inputs: Any) -> Any:
        """The result for the inputs of the graph before it was rewritten."""
        weights = self._latest
        if weights.match(inputs):
            return self._compiled(*inputs, *weights.joined)
        with self._lock:
            found = self._join_again(inputs)
            if found is None and self._fallback is None:
                log.warning("fluxrewrite: weights that were joined have been replaced and cannot be joined again; "
                            "calls with such weights run the graph as it was")  # fmt: skip
                self._fallback = self._make_fallback(inputs)
        if found is None:
            assert self._fallback is not None
            return self._fallback(*inputs)
        return self._compiled(*inputs, *found.joined)

    def _join_again(self, inputs: Sequence[Any]) -> _Weights | None:
        """The joined tensors for these inputs, whose parameters become slices of them; None if they cannot be joined."""
        parts = [[inputs[i] for i in group] for group in self._groups]
        # Weights of another block may be joined already, by an earlier call or another graph. That costs no join.
        if not all(map(_adjacent, parts)) and self._joins_left and all(map(_movable, parts)):
            self._joins_left -= 1
            for group in parts:
                _settle(group, _joined(group))
        if not all(map(_adjacent, parts)):
            return None
        places = [(i, inputs[i].data_ptr()) for group in self._groups for i in group]
        self._latest = _Weights([_joined(group) for group in parts], places)
        return self._latest


def _groups(gm: GraphModule) -> list[list[int]]:
    """For each joined tensor, the indices of the inputs that are its parts."""
    nodes = gm.graph.find_nodes(op="placeholder")
    index = {n.name: i for i, n in enumerate(nodes)}
    return [[index[name] for name in n.meta["joined"]] for n in nodes if "joined" in n.meta]


def _places(gm: GraphModule, joined: Sequence[Tensor]) -> list[tuple[int, int]]:
    """For each parameter that is joined, the index of its input and its address in the joined tensor."""
    nodes = gm.graph.find_nodes(op="placeholder")
    places = []
    for group, whole in zip(_groups(gm), joined, strict=True):
        at = whole.data_ptr()
        for i in group:
            places.append((i, at))
            value = value_of(nodes[i])
            at += value.numel() * value.element_size()
    return places
