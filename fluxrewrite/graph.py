"""A read-only view of a traced graph: canonical names, bound arguments, shapes, module paths, and what views do.

Nothing is normalised by mutation: the view answers questions about the graph that Dynamo (or torch.export) made.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.fx import Graph, Node

from . import steps as st
from .traced import value_of
from .vocabulary import CASTS, RESHAPES, Fact, read

__all__ = ["GraphView", "module_path"]

T = TypeVar("T")
_FLOATS = {torch.float16: 1, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
_COMPLEX = {torch.complex32: 1, torch.complex64: 2, torch.complex128: 3}
_PATH_PART = re.compile(r"\['([^']+)'\]|\.([A-Za-z_0-9]+)|\[(\d+)\]")


def module_path(node: Node) -> str:
    """Path of the module that `node` was traced in, as in `named_modules()`: "transformer_blocks.0.attn"; "" at the top."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return _plain_path(next(reversed(stack.values()))[0])


@lru_cache(maxsize=4096)
def _plain_path(source: str) -> str:
    head, _, tail = source.partition("]") if source.startswith(("L[", "G[")) else ("", "", source)
    if not head:
        return str(source).removeprefix("L.").strip(".")
    parts = [a or b or c for a, b, c in _PATH_PART.findall(tail)]
    skipped = {"_modules", "__dict__", "cell_contents", "__closure__", "_orig_mod"}
    return ".".join(p for p in parts if p not in skipped)


class GraphView:
    """Questions about a `torch.fx.Graph`.

    Built in one pass, linear in the graph. The graph must not change while the view is in use. `nodes` are its nodes in
    order, `named` the same by name.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: tuple[Node, ...] = tuple(graph.nodes)
        self.named: Mapping[str, Node] = {node.name: node for node in self.nodes}
        self._order = {node: i for i, node in enumerate(self.nodes)}
        self._facts = {node: read(node) for node in self.nodes}
        self._by_op: dict[str, list[Node]] = {}
        for node in self.nodes:
            self._by_op.setdefault(self._facts[node].op, []).append(node)
        self._steps: dict[Node, tuple[Node, tuple[st.Step, ...]] | None] = {}
        self._tensors: dict[Node, torch.Tensor | None] = {}
        self._stripped: dict[bool, dict[Node, Node]] = {False: {}, True: {}}
        self._bared: dict[Node, Node] = {}
        self._memo: dict[Any, Any] = {}
        self._writes: dict[Any, list[int]] = self._find_writes()

    # *** what a node is

    def op(self, value: Any) -> str:
        """Canonical name of what made `value`; "literal" for what is not a node."""
        return self._facts[value].op if isinstance(value, Node) else "literal"

    def fact(self, node: Node) -> Fact:
        """Name, bound arguments and defaults of `node`."""
        return self._facts[node]

    def arg(self, node: Node, name: str, default: Any = None) -> Any:
        """The argument called `name`, whether given by position or by keyword; its own default when it was left out."""
        fact = self._facts[node]
        return fact.args.get(name, fact.defaults.get(name, default))

    def order(self, node: Node) -> int:
        """Position of `node` in the graph."""
        return self._order[node]

    def with_op(self, *ops: str) -> Iterator[Node]:
        """All nodes of these canonical names, in graph order within a name."""
        for op in ops:
            yield from self._by_op.get(op, ())

    def inventory(self) -> Counter[str]:
        """How many nodes of each canonical name there are."""
        return Counter({op: len(nodes) for op, nodes in self._by_op.items()})

    def path(self, *nodes: Node) -> str:
        """The deepest module that holds all `nodes`."""
        paths = [module_path(n).split(".") for n in nodes]
        common = []
        for parts in zip(*paths, strict=False):
            if len(set(parts)) > 1:
                break
            common.append(parts[0])
        return ".".join(common)

    def memo(self, key: Any, compute: Callable[[GraphView], T]) -> T:
        """`compute(self)`, once per view: passes share what they find."""
        if key not in self._memo:
            self._memo[key] = compute(self)
        result: T = self._memo[key]
        return result

    # *** what a value is

    def value(self, node: Any) -> Any:
        """The traced fake value of a node, `traced.value_of`; None for what is no node."""
        return value_of(node) if isinstance(node, Node) else None

    def tensor(self, node: Any) -> torch.Tensor | None:
        """The traced value if it is one tensor.

        Not a value batched or dualised by torch.func, which has other shapes, nor a DTensor, of which a rank has only a part.
        """
        if not isinstance(node, Node):
            return None
        if node not in self._tensors:
            value = self.value(node)
            plain = isinstance(value, torch.Tensor) and not isinstance(value, DTensor)
            batched = plain and torch._C._functorch.is_functorch_wrapped_tensor(value)
            self._tensors[node] = value if plain and not batched else None
        return self._tensors[node]

    def shape(self, node: Any) -> st.Shape | None:
        """Shape of a tensor value; sizes are ints or SymInts."""
        value = self.tensor(node)
        return None if value is None else tuple(value.shape)

    def dtype(self, node: Any) -> torch.dtype | None:
        """Dtype of a tensor value."""
        value = self.tensor(node)
        return None if value is None else value.dtype

    def number(self, value: Any) -> int | float | bool | None:
        """A number written in the graph, or None.

        With `dynamic=True` Dynamo makes symbols of the model's floats too; such a symbol is specialised to the value that
        it was traced with, which adds a guard: another value recompiles.
        """
        value = self.value(value) if isinstance(value, Node) else value
        if isinstance(value, torch.SymFloat):
            return float(value)
        if isinstance(value, (torch.SymInt, torch.SymBool)):
            return None
        return value if isinstance(value, (int, float, bool)) else None

    # *** looking through views and casts

    def source(self, node: Any) -> tuple[Node, tuple[st.Step, ...]] | None:
        """For a view or cast: the value that it views, and the steps that lead from that to `node`. None for all else."""
        if not isinstance(node, Node):
            return None
        if node not in self._steps:
            self._steps[node] = self._read_steps(node)
        return self._steps[node]

    def strip(self, node: Any, lossy: bool = False) -> Any:
        """Look through casts and views that change nothing; through rounding casts too if `lossy`."""
        known, passed = self._stripped[lossy], []
        while isinstance(node, Node):
            if node in known:
                node = known[node]
                break
            found = self.source(node)
            if found is None or not all(self._neutral(s, found[0], lossy) for s in found[1]):
                break
            passed.append(node)
            node = found[0]
        known.update(dict.fromkeys(passed, node))
        return node

    def bare(self, node: Any) -> Any:
        """Look through views that change nothing, but not through casts."""
        passed: list[Node] = []
        while isinstance(node, Node):
            if node in self._bared:
                node = self._bared[node]
                break
            found = self.source(node)
            shape = self.shape(found[0]) or () if found is not None else ()
            if found is None or not all(isinstance(s, st.Reshape) and st.same_shape(s.shape, shape) for s in found[1]):
                break
            passed.append(node)
            node = found[0]
        self._bared.update(dict.fromkeys(passed, node))
        return node

    def alike(self, a: Any, b: Any) -> bool:
        """Whether two nodes are one value: the same node, or the same views and casts of one, however often written down."""
        while a is not b:
            above, beside = self.source(a), self.source(b)
            if above is None or beside is None or not st.same_steps(above[1], beside[1]):
                return False
            a, b = self.bare(above[0]), self.bare(beside[0])
        return True

    def permuted(self, node: Any) -> tuple[Node, tuple[int, ...]] | None:
        """(source, axes) when `node` is one permutation of a source, and nothing else."""
        node = self.bare(node)
        found = self.source(node)
        if found is None or len(found[1]) != 1 or not isinstance(found[1][0], st.Permute):
            return None
        return self.bare(found[0]), found[1][0].dims

    def chain(self, node: Node) -> Iterator[tuple[Node, tuple[st.Step, ...]]]:
        """`node`'s views, nearest first: each source with all steps from it down to `node`; at most 16 of them."""
        taken: tuple[st.Step, ...] = ()
        for _ in range(16):
            found = self.source(node)
            if found is None:
                return
            node, taken = found[0], found[1] + taken
            yield node, taken

    def forwards(self, node: Node) -> bool:
        """Whether `node` only views, casts or splits another value."""
        return self.source(node) is not None or self.op(node) in ("split", "chunk", "unbind")

    def _neutral(self, step: st.Step, source: Node, lossy: bool) -> bool:
        if isinstance(step, st.Cast):
            return step.lossless or lossy
        return isinstance(step, st.Reshape) and st.same_shape(step.shape, self.shape(source) or ())

    def _read_steps(self, node: Node) -> tuple[Node, tuple[st.Step, ...]] | None:
        fact, shape = self._facts[node], self.shape(node)
        source = fact.args.get("input")
        if shape is None or not isinstance(source, Node):
            return None
        if fact.op == "getitem" and self.forwards(source) and self.tensor(source) is None:
            return self._element(source, fact.args.get("index"), shape)
        before = self.tensor(source)
        if before is None or before.device != (self.value(node)).device:
            return None
        if fact.op in CASTS:
            steps = _cast(before.dtype, self.dtype(node), tuple(before.shape), shape)
        elif before.dtype != self.dtype(node):
            return None
        else:
            steps = _view_steps(fact, tuple(before.shape), shape)
        return None if steps is None or self._torn(source, node) else (source, steps)

    def _torn(self, source: Node, node: Node) -> bool:
        """Whether `node` is a copy of `source` and one of the two is written to: then they may differ."""
        if not self._writes:
            return False
        memory = {self.memory(source), self.memory(node)}
        return len(memory) > 1 and any(m in self._writes for m in memory)

    def _element(self, pieces: Node, index: Any, shape: st.Shape) -> tuple[Node, tuple[st.Step, ...]] | None:
        """Piece `index` of a split, chunk or unbind."""
        whole = self._facts[pieces].args.get("input")
        values, before = self.value(pieces), self.shape(whole)
        if whole is None or before is None or not isinstance(index, int) or not isinstance(values, (tuple, list)):
            return None
        dim, index = int(self.arg(pieces, "dim", 0)) % len(before), index % len(values)
        if self.op(pieces) == "unbind":
            return whole, (st.Select(dim, index),)
        starts = self.memo(("starts", pieces), lambda _: [0, *itertools.accumulate(v.shape[dim] for v in values)])
        start = starts[index]
        return (whole, (st.Slice(dim, start, shape[dim]),)) if isinstance(start, int) else None

    # *** what is modified in place

    def written(self, nodes: Iterable[Any], first: int, last: int) -> Node | None:
        """A node between positions `first` and `last` that modifies the memory of one of `nodes`, if there is one."""
        if not self._writes:
            return None
        for node in nodes:
            positions = self._writes.get(self.memory(node), []) if isinstance(node, Node) else []
            at = bisect.bisect_left(positions, first)
            if at < len(positions) and positions[at] <= last:
                return self.nodes[positions[at]]
        return None

    def writers(self, node: Node) -> list[Node]:
        """All nodes that modify the memory of `node`, in order."""
        return [self.nodes[at] for at in self._writes.get(self.memory(node), ())]

    def memory(self, node: Node) -> Any:
        """What stands for the memory of `node`: the storage of its fake value, which views share and copies do not."""
        value = self.value(node)
        return value.untyped_storage()._cdata if isinstance(value, FakeTensor) else node

    def _find_writes(self) -> dict[Any, list[int]]:
        """Positions of the nodes that write to each memory, in order."""
        found: dict[Any, list[int]] = {}
        for node in self.nodes:
            for written in self._facts[node].writes:
                found.setdefault(self.memory(written), []).append(self._order[node])
        return found


def _cast(before: torch.dtype, after: torch.dtype | None, old: st.Shape, new: st.Shape) -> tuple[st.Step, ...] | None:
    if not st.same_shape(old, new):
        return None
    for ranks in (_FLOATS, _COMPLEX):
        if before in ranks and after in ranks:
            return (st.Cast(before == after or ranks[after] > ranks[before]),)
    return (st.Cast(True),) if before == after else None


def _view_steps(fact: Fact, before: st.Shape, after: st.Shape) -> tuple[st.Step, ...] | None:
    """Steps of a node that keeps dtype and device, from its name and the shapes on both sides."""
    rank = len(before)
    match fact.op:
        case op if op in RESHAPES:
            return (st.Reshape(after),)
        case "permute":
            dims = fact.args.get("dims", ())
            return (st.Permute(tuple(d % rank for d in dims)),) if all(isinstance(d, int) for d in dims) else None
        case "transpose":
            return _swap(rank, fact.args.get("dim0"), fact.args.get("dim1"))
        case "t":
            return _swap(2, 0, 1) if rank == 2 else (st.Reshape(after),)
        case "getattr" if fact.args.get("name") == "T" or fact.args.get("name") == "mT":
            return _swap(rank, -2, -1) if rank == 2 or fact.args["name"] == "mT" else None
        case "expand":
            return (st.Expand(after),)
        case "slice" | "narrow" | "select":
            return _axis_steps(fact, before, after)
        case "getitem":
            return _index_steps(fact.args.get("index"), before, after)
    return None


def _swap(rank: int, a: Any, b: Any) -> tuple[st.Step, ...] | None:
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    dims = list(range(rank))
    dims[a], dims[b] = dims[b], dims[a]
    return (st.Permute(tuple(dims)),)


def _axis_steps(fact: Fact, before: st.Shape, after: st.Shape) -> tuple[st.Step, ...] | None:
    dim = fact.args.get("dim", 0) % len(before)
    if fact.op == "select":
        return _index_steps((*[slice(None)] * dim, fact.args.get("index")), before, after)
    start, step = fact.args.get("start", 0), fact.args.get("step", 1)
    return _index_steps((*[slice(None)] * dim, slice(start, None, step)), before, after)


def _index_steps(index: Any, before: st.Shape, after: st.Shape) -> tuple[st.Step, ...] | None:
    """Basic indexing (ints, slices, None, Ellipsis) as selects and slices, then one reshape for the new axes."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(i is None or i is Ellipsis or isinstance(i, (int, slice)) for i in items) or any(
        i is True or i is False for i in items
    ):
        return None
    real = sum(1 for i in items if i is not None and i is not Ellipsis)
    fill: list[Any] = [slice(None)] * (len(before) - real)
    at = next((n for n, i in enumerate(items) if i is Ellipsis), len(items))
    items = [*items[:at], *fill, *items[at + 1 :]]
    steps: list[st.Step] = []
    dim, out = 0, 0  # axis of the running value, axis of the result
    for item in items:
        if item is None:
            out += 1
            continue
        size = before[dim + sum(isinstance(s, st.Select) for s in steps)]
        if isinstance(item, int):
            if item < 0 and not isinstance(size, int):
                return None
            steps.append(st.Select(dim, item % size if item < 0 else item))
            continue
        step = _slice_step(dim, item, size, after[out])
        if step is None:
            return None
        steps.extend(step)
        dim, out = dim + 1, out + 1
    return (*steps, st.Reshape(after)) if None in items else tuple(steps)


def _slice_step(dim: int, item: slice, size: st.Dim, result: st.Dim) -> tuple[st.Step, ...] | None:
    start, by = item.start or 0, item.step or 1
    if not isinstance(start, int) or not isinstance(by, int):
        return None
    if start == 0 and by == 1 and st.same_dim(size, result):
        return ()
    if start < 0:
        if not isinstance(size, int):
            return None
        start = max(0, start + size)
    return (st.Slice(dim, start, result, by),)
