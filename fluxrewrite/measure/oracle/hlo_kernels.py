"""The kernels of an optimised HLO module as groups of nodes of the traced graph."""

from __future__ import annotations

from collections.abc import Iterator

from ...fusion.groups import Fusion, Group, Kind
from ...provider.custom_call import TARGET
from .hlo import Computation, HloInstruction, Module

__all__ = ["fusion_of", "node_of"]


_NO_KERNEL = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
    }
)
_VIEWS = frozenset({"bitcast", "opt-barrier"})
_SHARED = frozenset({"broadcast", "iota", "call", "fusion"})
_LAYOUT = frozenset({"copy", "transpose", "bitcast", "bitcast-convert", "reshape", "slice", "parameter"})
_LIBRARY = frozenset({"dot", "convolution", "fft", "cholesky", "triangular-solve", "custom-call"})


def fusion_of(module: Module, by: str, touched: bool = False) -> Fusion:
    """The kernels of the entry computation, in its order.

    Kinds: "opaque" for custom calls of `TARGET`; "library" for dots, convolutions and other custom calls, also inside a fusion;
    "copy" for kernels that only move the values of one tensor (copy, transpose, reshape, slice); "fused" for all other code.
    Parameters, constants, tuples and bitcasts are not kernels.

    Args:
        module: an optimised module whose metadata name nodes in the form that `node_of` reads.
        by: for `Fusion.by`.
        touched: if a kernel only slices an operand, count the slices and not the whole operand.
    """
    kernels = [i for i in module.entry.instructions if i.opcode not in _NO_KERNEL]
    return Fusion(by, tuple(_group(module, i, touched) for i in kernels))


def node_of(op_name: str) -> str | None:
    """The node that an `op_name` such as "NODE.7/aten__add" names: its outermost scope without the counter, or None."""
    scope, slash, _ = op_name.partition("/")
    return scope.rpartition(".")[0] or scope if slash else None


def _group(module: Module, kernel: HloInstruction, touched: bool) -> Group:
    entry = module.entry
    reads: dict[tuple[str, int], int] = {}
    for position, operand in enumerate(kernel.operands):
        limit = _sliced(module, kernel, position) if touched else None
        for buffer, size in _buffers(entry, operand):
            reads[buffer] = max(reads.get(buffer, 0), size if limit is None else min(size, limit))
    return Group(
        name=kernel.name,
        kind=_kind(module, kernel),
        nodes=_nodes(module, entry, kernel),
        reads=sum(reads.values()),
        writes=sum(kernel.sizes),
    )


def _sliced(module: Module, kernel: HloInstruction, position: int) -> int | None:
    """Bytes of the slices that a kernel takes of an operand; None if it uses the operand in any other way."""
    if kernel.opcode == "slice":
        return sum(kernel.sizes)
    if kernel.opcode not in ("fusion", "call"):
        return None
    body = module.computations[kernel.calls[0]]
    parameter = body.parameters[position]
    return _sliced_from(module, body, parameter)


def _sliced_from(module: Module, body: Computation, source: HloInstruction) -> int | None:
    total = 0
    for user in body.users[source.name]:
        if user.opcode in _VIEWS:
            part = _sliced_from(module, body, user)
        else:
            parts = [_sliced(module, user, p) for p, o in enumerate(user.operands) if o == source.name]
            part = None if None in parts else sum(p for p in parts if p is not None)
        if part is None:
            return None
        total += part
    return total


def _buffers(entry: Computation, name: str) -> Iterator[tuple[tuple[str, int], int]]:
    """The buffers of an operand as ((instruction, element), bytes); bitcasts and tuples are followed to their operands."""
    found = entry.by_name[name]
    if found.opcode in _VIEWS:
        yield from _buffers(entry, found.operands[0])
    elif found.opcode == "get-tuple-element":
        source = entry.by_name[found.operands[0]]
        if source.opcode == "tuple":
            yield from _buffers(entry, source.operands[found.index])
        else:
            yield (source.name, found.index), sum(found.sizes)
    elif found.opcode == "tuple":
        for operand in found.operands:
            yield from _buffers(entry, operand)
    else:
        yield from (((name, index), size) for index, size in enumerate(found.sizes))


def _body(module: Module, kernel: HloInstruction) -> list[HloInstruction]:
    """The instructions in a fusion or call; for others the instruction itself (`to_apply` of a reduction does not count)."""
    if kernel.opcode in ("fusion", "call"):
        return [i for i in module.inside(kernel) if i.opcode not in ("fusion", "call")]
    return [kernel]


def _kind(module: Module, kernel: HloInstruction) -> Kind:
    body = _body(module, kernel)
    if any(i.target == TARGET for i in body):
        return "opaque"
    if any(i.opcode in _LIBRARY for i in body):
        return "library"
    return "copy" if all(i.opcode in _LAYOUT for i in body) else "fused"


def _nodes(module: Module, entry: Computation, kernel: HloInstruction) -> frozenset[str]:
    """The nodes that the metadata of a kernel and of its body name.

    XLA shares one constant or broadcast between all nodes that need it, under the name of the first, so these instructions count
    only if no other names a node. Instructions that a pass of XLA made without metadata, such as a step of a long reduction, are
    named by their users.
    """
    parts = [i for i in (kernel, *_body(module, kernel)) if i.opcode not in _NO_KERNEL]
    for chosen in ([i for i in parts if i.opcode not in _SHARED], parts):
        named = frozenset(name for i in chosen if (name := node_of(i.op_name)) is not None)
        if named:
            return named
    if kernel.opcode == "copy":
        return frozenset()
    return frozenset().union(*(_nodes(module, entry, user) for user in entry.users[kernel.name]))
