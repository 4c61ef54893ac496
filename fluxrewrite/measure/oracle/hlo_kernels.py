"""The kernels of an optimised HLO module, as groups of the traced graph's nodes."""

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

    Kinds: "opaque" for custom calls of `TARGET`; "library" for dots, convolutions and other custom calls, also where
    they head a fusion; "copy" for kernels that only move one tensor's values (copy, transpose, reshape, slice); "fused" for
    all other code. Parameters, constants, tuples and bitcasts are no kernels. A `call` is the kernels of what it calls when
    these are several, else one kernel.

    Args:
        module: an optimised module whose metadata name nodes as `node_of` reads them.
        by: for `Fusion.by`.
        touched: count of an operand that a kernel only slices no more than the slices; whole operands when False.
    """
    kernels = [i for i in module.entry.instructions if i.opcode not in _NO_KERNEL]
    return Fusion(by, tuple(_group(module, i, touched) for i in kernels))


def node_of(op_name: str) -> str | None:
    """The graph's node in an `op_name` "NODE.7/aten__add": its outermost scope without the counter; None without scope."""
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
    """Bytes of the slices that a kernel takes of one operand; None when it uses it in any other way."""
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
    """The buffers behind an operand as ((instruction, element), bytes), through bitcasts and tuples."""
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
    """What a fusion or call computes; the instruction itself for others (a reduction's `to_apply` is no body)."""
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
    """Nodes named by the kernel and by what it computes.

    XLA keeps one constant or broadcast for all nodes that need it, under the name of the first: these name a kernel only when
    nothing else does. Where a pass of XLA made an instruction without metadata (a step of a long reduction, say), its users
    name it.
    """
    parts = [i for i in (kernel, *_body(module, kernel)) if i.opcode not in _NO_KERNEL]
    for chosen in ([i for i in parts if i.opcode not in _SHARED], parts):
        named = frozenset(name for i in chosen if (name := node_of(i.op_name)) is not None)
        if named:
            return named
    if kernel.opcode == "copy":
        return frozenset()
    return frozenset().union(*(_nodes(module, entry, user) for user in entry.users[kernel.name]))
