"""From Inductor's schedule to groups: what each kernel computes, and the bytes that it moves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import sympy
from torch._inductor import dependencies, ir
from torch._inductor.scheduler import BaseSchedulerNode, ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._inductor.utils import get_dtype_size
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ..fusion import Group
from ..fusion.groups import Kind
from .extent import Access, touched
from .lowering import MarkedLowering

__all__ = ["groups"]

_TORCH_NAMESPACES = frozenset({"aten", "prims", "prim", "inductor", "mkl", "mkldnn", "onednn", "quantized", "_quantized"})
"""Operations of these namespaces are torch's own kernels, whatever Inductor calls them through."""

Name = Callable[[Node], str | None]
Accesses = dict[str, list[Access]]


def groups(lowering: MarkedLowering, name: Name) -> Iterator[Group]:
    """The kernels of a schedule in execution order; `name` gives the traced node of a post-grad node."""
    for kernel in lowering.scheduler.nodes:
        if isinstance(kernel, NopKernelSchedulerNode) or isinstance(kernel.node, ir.MultiOutput):
            continue  # an address, not a kernel
        library = isinstance(kernel, ExternKernelSchedulerNode)
        reads, writes = _call(kernel.node) if library else _loops(kernel)
        operations = [s.node for s in kernel.get_nodes() if not isinstance(s, NopKernelSchedulerNode)]
        names = {name(n) for o in operations for n in lowering.computed(o)}
        yield Group(
            name=kernel.get_first_name(),
            kind=_kind_of_call(kernel.node) if library else _kind_of_loops(operations),
            nodes=frozenset(n for n in names if n is not None),
            reads=_bytes(lowering, reads),
            writes=_bytes(lowering, writes) + (_result_bytes(lowering, kernel) if library else 0),
        )


def _kind_of_call(operation: Any) -> Kind:
    namespace = getattr(getattr(operation, "op_overload", None), "namespace", "aten")
    return "library" if namespace in _TORCH_NAMESPACES else "opaque"


def _kind_of_loops(operations: Iterable[Any]) -> Kind:
    return "copy" if all(_only_copies(o) for o in operations) else "fused"


def _only_copies(operation: Any) -> bool:
    data = getattr(operation, "data", None)
    return isinstance(data, ir.Pointwise) and set(data.inner_fn_opcount().used_ops) <= {"load"}


def _loops(kernel: BaseSchedulerNode) -> tuple[Accesses, Accesses]:
    """What a generated kernel reads and writes, without the buffers that live in it alone."""
    parts = set(kernel.get_nodes())
    written = {b.get_name() for b in kernel.get_outputs()}
    users = {b.get_name(): {u.node for u in b.users} for b in kernel.get_outputs()}
    kept = {name for name in written if users[name] - parts}
    reads: Accesses = defaultdict(list)
    writes: Accesses = defaultdict(list)
    for part in parts:
        for dep in part.read_writes.reads:
            if dep.name not in written and not isinstance(dep, dependencies.WeakDep):
                reads[dep.name].append(_access(dep))
        for dep in part.read_writes.writes:
            if dep.name in kept:
                writes[dep.name].append(_access(dep))
    return reads, writes


def _access(dep: dependencies.Dep) -> Access:
    if not isinstance(dep, dependencies.MemoryDep) or dep.index.free_symbols - set(dep.var_names):
        return Access(None)
    return Access(dep.index, tuple(dep.var_names), tuple(int(s) for s in dep.size))


def _call(operation: Any) -> tuple[Accesses, Accesses]:
    """What a called kernel reads, and what of it it overwrites."""
    reads: Accesses = defaultdict(list)
    writes: Accesses = defaultdict(list)
    for value in tree_leaves(list(operation.inputs)):
        layout = value.maybe_get_layout() if isinstance(value, ir.IRNode) else None
        if isinstance(layout, ir.Layout):
            reads[value.get_name()].append(_strided(layout))
    for mutated in operation.get_mutation_names():
        writes[mutated] = [Access(None)]
    return reads, writes


def _strided(layout: ir.Layout) -> Access:
    variables = tuple(sympy.Symbol(f"i{n}", integer=True) for n in range(len(layout.size)))
    steps = sum((s * v for s, v in zip(layout.stride, variables, strict=True)), sympy.Integer(0))
    return Access(layout.offset + steps, variables, tuple(int(s) for s in layout.size))


def _bytes(lowering: MarkedLowering, accesses: Accesses) -> int:
    total = 0
    for name, found in accesses.items():
        buffer = lowering.get_buffer(name)
        layout = buffer.get_layout()
        total += touched(int(layout.storage_size()), found) * get_dtype_size(buffer.get_dtype())
    return total


def _result_bytes(lowering: MarkedLowering, kernel: ExternKernelSchedulerNode) -> int:
    """Bytes of what a called kernel returns: of several results, those that somebody uses."""
    total = 0
    for output in kernel.get_outputs():
        layout = getattr(output.node, "layout", None)
        if isinstance(layout, ir.MultiOutputLayout):
            parts = [o for u in output.users if isinstance(u.node, BaseSchedulerNode) for o in u.node.get_outputs()]
            layouts = [p.node.layout for p in parts if isinstance(p.node, ir.MultiOutput)]
        else:
            layouts = [layout] if isinstance(layout, ir.Layout) else []
        total += sum(int(sympy.prod(x.size)) * get_dtype_size(x.dtype) for x in layouts)
    return total
