"""Groups from Inductor's schedule: what each kernel computes, and the bytes that it moves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import sympy
from torch._inductor import dependencies, ir
from torch._inductor.scheduler import (
    BaseSchedulerNode,
    ExternKernelSchedulerNode,
    NopKernelSchedulerNode,
    SchedulerBuffer,
)
from torch._inductor.utils import get_dtype_size
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ...fusion import Group
from ...fusion.groups import Kind
from .inductor_lowering import MarkedLowering
from .touched_elements import Access, touched

__all__ = ["groups"]

_TORCH_NAMESPACES = frozenset(
    {"aten", "prims", "prim", "inductor", "mkl", "mkldnn", "onednn", "quantized", "_quantized"}
)
"""Operations in these namespaces are torch's own kernels, in whichever way Inductor calls them."""

Names = Callable[[Node], frozenset[str]]
Accesses = dict[str, list[Access]]


def groups(lowering: MarkedLowering, names: Names) -> Iterator[Group]:
    """Yield the kernels of a schedule in execution order; `names` returns the traced nodes of a lowered node."""
    for kernel in lowering.scheduler.nodes:
        if isinstance(kernel, NopKernelSchedulerNode) or isinstance(kernel.node, ir.MultiOutput):
            continue  # an address, not a kernel
        parts = [s for s in kernel.get_nodes() if not isinstance(s, NopKernelSchedulerNode)]
        operations: list[Any] = [s.node for s in parts]
        computed = {n for o in operations for n in lowering.computed(o)}
        called = isinstance(kernel, ExternKernelSchedulerNode)
        reads, writes = (_called if called else _generated)(lowering, kernel)
        yield Group(
            name=kernel.get_first_name(),
            kind=_kind_of_call(kernel.node) if called else _kind_of_loops(operations),
            nodes=frozenset[str]().union(*map(names, computed)),
            reads=reads,
            writes=writes,
        )


def _kind_of_call(operation: Any) -> Kind:
    namespace = getattr(getattr(operation, "op_overload", None), "namespace", "aten")
    return "library" if namespace in _TORCH_NAMESPACES else "opaque"


def _kind_of_loops(operations: Iterable[Any]) -> Kind:
    return "copy" if all(_only_copies(o) for o in operations) else "fused"


def _only_copies(operation: Any) -> bool:
    data = getattr(operation, "data", None)
    return isinstance(data, ir.Pointwise) and set(data.inner_fn_opcount().used_ops) <= {"load"}


def _generated(lowering: MarkedLowering, kernel: BaseSchedulerNode) -> tuple[int, int]:
    """Bytes that a generated kernel reads and writes, without buffers that only it uses."""
    parts = set(kernel.get_nodes())
    users = {b.get_name(): {u.node for u in b.users} for b in kernel.get_outputs()}
    reads: Accesses = defaultdict(list)
    writes: Accesses = defaultdict(list)
    for part in parts:
        for dep in part.read_writes.reads:
            if dep.name not in users and not isinstance(dep, dependencies.WeakDep):
                reads[dep.name].append(_access(lowering, dep))
        for dep in part.read_writes.writes:
            if users[dep.name] - parts:
                writes[dep.name].append(_access(lowering, dep))
    return _bytes(lowering, reads), _bytes(lowering, writes)


def _access(lowering: MarkedLowering, dep: dependencies.Dep) -> Access:
    """A dependency with concrete sizes. If its address depends on data or on more than the loops, it covers the whole buffer."""
    if not isinstance(dep, dependencies.MemoryDep):
        return Access(None)
    index = sympy.sympify(lowering.sizevars.replace_backed_symbols_with_hints(sympy.sympify(dep.index)))
    if index.free_symbols - set(dep.var_names):
        return Access(None)
    return Access(index, tuple(dep.var_names), tuple(map(lowering.sizevars.optimization_hint, dep.size)))


def _called(lowering: MarkedLowering, kernel: BaseSchedulerNode) -> tuple[int, int]:
    """Bytes of the operands of a called kernel, and of its results; of several results, only those that are used."""
    operation: Any = kernel.node
    reads: Accesses = defaultdict(list)
    for value in tree_leaves(list(operation.inputs)):
        layout = value.maybe_get_layout() if isinstance(value, ir.IRNode) else None
        if isinstance(layout, ir.Layout):
            reads[value.get_name()].append(_strided(lowering, layout))
    overwritten: Accesses = {name: [Access(None)] for name in operation.get_mutation_names()}
    written = sum(_layout_bytes(lowering, x) for o in kernel.get_outputs() for x in _result_layouts(o))
    return _bytes(lowering, reads), _bytes(lowering, overwritten) + written


def _strided(lowering: MarkedLowering, layout: ir.Layout) -> Access:
    hint = lowering.sizevars.optimization_hint
    variables = tuple(sympy.Symbol(f"i{n}", integer=True) for n in range(len(layout.size)))
    steps = sum((hint(s) * v for s, v in zip(layout.stride, variables, strict=True)), sympy.Integer(0))
    return Access(hint(layout.offset) + steps, variables, tuple(map(hint, layout.size)))


def _result_layouts(output: SchedulerBuffer) -> Iterator[ir.Layout]:
    layout = getattr(output.node, "layout", None)
    if isinstance(layout, ir.MultiOutputLayout):
        for user in output.users:
            part = user.node.node if isinstance(user.node, BaseSchedulerNode) else None
            if isinstance(part, ir.MultiOutput):
                yield part.get_layout()
    elif isinstance(layout, ir.Layout):
        yield layout


def _layout_bytes(lowering: MarkedLowering, layout: ir.Layout) -> int:
    hint = lowering.sizevars.optimization_hint
    return math.prod(map(hint, layout.size)) * get_dtype_size(layout.dtype)


def _bytes(lowering: MarkedLowering, accesses: Accesses) -> int:
    """Bytes of the elements accessed, each counted once."""
    total = 0
    for name, found in accesses.items():
        layout = lowering.get_buffer(name).get_layout()
        size = lowering.sizevars.optimization_hint(layout.storage_size())
        total += touched(size, found) * get_dtype_size(layout.dtype)
    return total
