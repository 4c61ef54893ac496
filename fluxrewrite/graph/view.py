"""A read-only view of a traced graph: canonical names, bound arguments, shapes, module paths, views and memory.

The graph is not normalised first. It stays the graph that Dynamo or torch.export made. So the names in reports are names of that
graph, and a rewrite leaves everything that it does not replace as it was.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from . import views
from .fake_values import value_of
from .index_map import pure_reshape, viewed
from .module_paths import module_path
from .op_table import CASTS, Fact, read
from .shapes import Shape, same_shape
from .views import cast_steps, holds, unchanged, view_steps

__all__ = ["GraphView"]

T = TypeVar("T")


class GraphView:
    """Queries on a `torch.fx.Graph`.

    It is built in one pass, in time linear in the graph. The graph must not change while the view is in use.

    Attributes:
        graph: the graph.
        nodes: its nodes, in order.
        named: its nodes by name.
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
        self._steps: dict[Node, tuple[Node, tuple[views.ViewOp, ...]] | None] = {}
        self._tensors: dict[Node, torch.Tensor | None] = {}
        self._shapes: dict[Node, Shape | None] = {}
        self._memories: dict[Node, Any] = {}
        self._stripped: dict[bool, dict[Node, Node]] = {False: {}, True: {}}
        self._bared: dict[Node, Node] = {}
        self._memo: dict[Any, Any] = {}
        self._writes: dict[Any, list[int]] = self._find_writes()

    # *** what a node is

    def op(self, value: Any) -> str:
        """Canonical name of the operation that computes `value`; "literal" if it is not a node."""
        return self._facts[value].op if isinstance(value, Node) else "literal"

    def fact(self, node: Node) -> Fact:
        """Name, bound arguments and defaults of `node`."""
        return self._facts[node]

    def arg(self, node: Node, name: str, default: Any = None) -> Any:
        """The argument `name`, given by position or by keyword. If it was left out: its default in the operation, or `default`."""
        fact = self._facts[node]
        return fact.args.get(name, fact.defaults.get(name, default))

    def order(self, node: Node) -> int:
        """Position of `node` in the graph."""
        return self._order[node]

    def with_op(self, *ops: str) -> Iterator[Node]:
        """All nodes with these canonical names, in graph order within a name."""
        for op in ops:
            yield from self._by_op.get(op, ())

    def inventory(self) -> Counter[str]:
        """The number of nodes with each canonical name."""
        return Counter({op: len(nodes) for op, nodes in self._by_op.items()})

    def path(self, *nodes: Node) -> str:
        """Path of the deepest module that contains all `nodes`."""
        paths = [module_path(n).split(".") for n in nodes]
        common = []
        for parts in zip(*paths, strict=False):
            if len(set(parts)) > 1:
                break
            common.append(parts[0])
        return ".".join(common)

    def memo(self, key: Any, compute: Callable[[GraphView], T]) -> T:
        """`compute(self)`, computed once per view and key. Passes share intermediate results this way."""
        if key not in self._memo:
            self._memo[key] = compute(self)
        result: T = self._memo[key]
        return result

    # *** what a value is

    def value(self, node: Any) -> Any:
        """The traced fake value of a node, as `fake_values.value_of` returns it; None if `node` is not a node."""
        return value_of(node) if isinstance(node, Node) else None

    def tensor(self, node: Any) -> torch.Tensor | None:
        """The traced value if it is a single plain tensor, else None.

        A tensor that torch.func has batched or made dual is not plain, because its shape is not that of the data. Nor is a
        DTensor, of which a rank has only a part.
        """
        if not isinstance(node, Node):
            return None
        if node not in self._tensors:
            value = self.value(node)
            plain = isinstance(value, torch.Tensor) and not isinstance(value, DTensor)
            batched = plain and torch._C._functorch.is_functorch_wrapped_tensor(value)
            self._tensors[node] = value if plain and not batched else None
        return self._tensors[node]

    def results(self, node: Node) -> list[torch.Tensor]:
        """The tensors in a traced value, in order: the value itself if it is a tensor, else those in the tuple or list."""
        value = self.value(node)
        if isinstance(value, torch.Tensor):
            return [value]
        return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]

    def shape(self, node: Any) -> Shape | None:
        """Shape of a tensor value, of ints or SymInts; None for other values."""
        if not isinstance(node, Node):
            return None
        if node not in self._shapes:
            value = self.tensor(node)
            self._shapes[node] = None if value is None else tuple(value.shape)
        return self._shapes[node]

    def dtype(self, node: Any) -> torch.dtype | None:
        """Dtype of a tensor value; None for other values."""
        value = self.tensor(node)
        return None if value is None else value.dtype

    def number(self, value: Any) -> int | float | bool | None:
        """A number written in the graph, or None.

        With `dynamic=True` Dynamo makes symbols of the model's floats too. Such a symbol is specialised to the value that it was
        traced with. This adds a guard, so another value recompiles.
        """
        value = self.value(value) if isinstance(value, Node) else value
        if isinstance(value, torch.SymFloat):
            return float(value)
        return value if isinstance(value, (int, float, bool)) else None

    # *** looking through views and casts

    def source(self, node: Any) -> tuple[Node, tuple[views.ViewOp, ...]] | None:
        """For a view or cast: the value that it views, and the steps from that value to `node`. None for any other node."""
        if not isinstance(node, Node):
            return None
        if node not in self._steps:
            self._steps[node] = self._read_steps(node)
        return self._steps[node]

    def strip(self, node: Any, lossy: bool = False) -> Any:
        """The furthest value above `node` with the same elements, through lossless casts and views; any cast if `lossy`."""
        return self._looked_through(node, self._stripped[lossy], lambda way: lossy or self._exact(way))

    def bare(self, node: Any) -> Any:
        """The furthest value above `node` with the same elements in the same dtype."""
        return self._looked_through(
            node, self._bared, lambda way: self.dtype(way[0]) == self.dtype(way[-1]) and self._exact(way)
        )

    def alike(self, a: Any, b: Any) -> bool:
        """Whether two nodes have one value: the same node, or equal views and casts of one value.

        Traced models repeat views: each use of a table may have an unsqueeze of its own.
        """
        if a is b or not isinstance(a, Node) or not isinstance(b, Node):
            return a is b
        above = {source: taken for source, taken in self.chain(a)}
        above[a] = ()
        for source, taken in ((b, ()), *self.chain(b)):
            if source in above:
                # Steps are compared too, because a broadcast has steps but no map of elements.
                one, two = (viewed(self.shape(source) or (), steps) for steps in (above[source], taken))
                same = views.same_steps(above[source], taken) or (one is not None and two is not None and one.same(two))
                # The same elements have other values if one of the two chains rounds them on the way.
                return same and self._casts(a, source) == self._casts(b, source)
        return False

    def permuted(self, node: Any, dims: tuple[int, ...]) -> Node | None:
        """The nearest value of which `node` is exactly this permutation; None if there is none."""
        for source, taken in self.chain(node):
            seen = (
                viewed(self.shape(source) or (), taken) if not any(isinstance(s, views.Cast) for s in taken) else None
            )
            if seen is not None and seen.permutation == dims:
                return self.bare(source)  # type: ignore[no-any-return]
        return None

    def between(self, node: Any, end: Any) -> list[Node]:
        """The views and casts from `node` up to `end`, without `end`."""
        found: list[Node] = []
        while isinstance(node, Node) and node is not end:
            pieces = self._facts[node].args.get("input")
            found += [node, pieces] if isinstance(pieces, Node) and self.tensor(pieces) is None else [node]
            above = self.source(node)
            node = end if above is None else above[0]
        return found

    def chain(self, node: Node) -> Iterator[tuple[Node, tuple[views.ViewOp, ...]]]:
        """The values that `node` is a view of, nearest first, each with all steps from it down to `node`; at most 16."""
        # Callers map all steps of each source, so without a limit a chain of n views would take n * n steps.
        taken: tuple[views.ViewOp, ...] = ()
        for _ in range(16):
            found = self.source(node)
            if found is None:
                return
            node, taken = found[0], found[1] + taken
            yield node, taken

    def forwards(self, node: Node) -> bool:
        """Whether `node` only views, casts or splits another value."""
        return self.above(node) is not None

    def above(self, node: Node) -> Node | None:
        """The value that `node` only views, casts or splits; for one piece of a split, the node of the split. Otherwise None."""
        found, read = self.source(node), self._facts[node].args.get("input")
        splits = self.op(node) in ("split", "chunk", "unbind")
        if splits or (found is not None and self.op(node) == "getitem"):
            return read if isinstance(read, Node) else None
        return None if found is None else found[0]

    def _looked_through(self, node: Any, known: dict[Node, Node], fits: Callable[[list[Node]], bool]) -> Any:
        """The furthest value above with the elements of `node`.

        Args:
            node: where to start.
            known: results of earlier calls, to which this one adds.
            fits: whether a way from `node` to a source may be taken; called with its nodes, `node` first.
        """
        passed: list[Node] = []
        while isinstance(node, Node):
            if node in known:
                node = known[node]
                break
            passed.append(node)
            above = self._whole_above(node, fits)
            if above is None:
                break
            node = above
        # All nodes on the way have the same result. Keeping it makes long chains linear: matchers start at each of their nodes.
        known.update(dict.fromkeys(passed, node))
        return node

    def _whole_above(self, node: Node, fits: Callable[[list[Node]], bool]) -> Node | None:
        way, shape = [node], self.shape(node) or ()
        for source, taken in self.chain(node):
            way.append(source)
            if same_shape(self.shape(source) or (), shape) and pure_reshape(shape, taken, shape) and fits(way):
                return source
        return None

    def _exact(self, way: list[Node]) -> bool:
        """Whether no cast on the way down from the last node rounds its values."""
        return all(holds(self.dtype(n), self.dtype(way[-1])) for n in way)

    def _casts(self, node: Node, source: Node) -> list[torch.dtype | None]:
        """The dtypes that a value has in turn, from `node` up to `source`."""
        way = [n for n in (*self.between(node, source), source) if self.tensor(n) is not None]
        return [dtype for dtype, _ in itertools.groupby(map(self.dtype, way))]

    def _read_steps(self, node: Node) -> tuple[Node, tuple[views.ViewOp, ...]] | None:
        fact, shape = self._facts[node], self.shape(node)
        same = unchanged(fact)
        source = fact.args.get("input") if same is None else same
        if shape is None or not isinstance(source, Node):
            return None
        if fact.op == "getitem" and self.forwards(source) and self.tensor(source) is None:
            return self._element(source, fact.args.get("index"), shape)
        before = self.tensor(source)
        # A copy to another device moves data. It is an operation and not a view.
        if before is None or before.device != (self.value(node)).device:
            return None
        if fact.op in CASTS:
            steps = cast_steps(before.dtype, self.dtype(node), tuple(before.shape), shape)
        elif before.dtype != self.dtype(node):
            return None
        elif same is not None:
            steps = (views.Reshape(shape),) if same_shape(before.shape, shape) else None
        else:
            steps = view_steps(fact, tuple(before.shape), shape)
        return None if steps is None or self._torn(source, node) else (source, steps)

    def _torn(self, source: Node, node: Node) -> bool:
        """Whether `node` is a copy of `source` and one of the two is written to. Then they may differ.

        The position of the write does not matter: a call that reads `source` instead of the copy may come before or after it.
        """
        if not self._writes:
            return False
        memory = {self.memory(source), self.memory(node)}
        return len(memory) > 1 and any(m in self._writes for m in memory)

    def _element(self, pieces: Node, index: Any, shape: Shape) -> tuple[Node, tuple[views.ViewOp, ...]] | None:
        """Piece `index` of a split, chunk or unbind."""
        whole: Any = self._facts[pieces].args.get("input")
        values, before = self.value(pieces), self.shape(whole)
        if before is None or not isinstance(index, int) or not isinstance(values, (tuple, list)):
            return None
        dim, index = int(self.arg(pieces, "dim", 0)) % len(before), index % len(values)
        if self.op(pieces) == "unbind":
            return whole, (views.Select(dim, index),)
        # Once per split: summed for each piece, the sizes of n pieces would take n * n steps.
        starts = self.memo(("starts", pieces), lambda _: [0, *itertools.accumulate(v.shape[dim] for v in values)])
        start = starts[index]
        return (whole, (views.Slice(dim, start, shape[dim]),)) if isinstance(start, int) else None

    # *** what is modified in place

    def written(self, nodes: Iterable[Any], first: int, last: int) -> Node | None:
        """A node between positions `first` and `last`, both included, that modifies the memory of one of `nodes`, or None."""
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
        """A key for the memory of `node`. Views have the key of their source, copies have one of their own."""
        # The storage of a fake tensor holds no data, but fake views share it as real ones would. So aliases are found without
        # a list of operations that alias, and reshapes that copy are distinguished from those that view.
        if node not in self._memories:
            value = self.value(node)
            self._memories[node] = value.untyped_storage()._cdata if isinstance(value, FakeTensor) else node
        return self._memories[node]

    def _find_writes(self) -> dict[Any, list[int]]:
        """Positions of the nodes that write to each memory, in order."""
        found: dict[Any, list[int]] = {}
        for node in self.nodes:
            for written in self._facts[node].writes:
                found.setdefault(self.memory(written), []).append(self._order[node])
        return found
