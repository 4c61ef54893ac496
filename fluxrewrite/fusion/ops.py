"""A graph in the operations that a compiler decides on, before it is known which of their values are stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.fx import Node

from ..errors import InputError
from ..graph.shapes import LEFT_OUT, hints
from ..graph.view import GraphView
from ..site import Site
from .graph_walk import ViewedBuffer, Walk
from .groups import Kind
from .rules import DecomposedStep, Rules
from .strided import StridedRegion

__all__ = ["LoweredOp", "Ops"]


@dataclass(eq=False, slots=True)
class LoweredOp:
    """One operation of the compiler's own graph; a view of it is a `ViewedBuffer`.

    Attributes:
        kind: "input" of the graph; "map", "reduce", "cat" and "view" are loops; a "stage" of a reduction goes from memory to
            memory; "library" and "opaque" are calls, "result" is a tensor that a call returns.
        node: name of the graph's node that it computes, or computes a part of; "" for inputs and views.
        expensive: not computed twice.
        own_kernel: in a kernel of its own.
        vector: a library call that computes its operands inside.
        summed: elements summed for each of the result.
        results: what a call returns.
        kept: the caller reads it.
    """

    index: int
    kind: Literal["input", "map", "reduce", "stage", "cat", "view", "library", "opaque", "result"]
    node: str
    sizes: tuple[int, ...]
    itemsize: int
    operands: tuple[ViewedBuffer[LoweredOp], ...] = ()
    expensive: bool = False
    own_kernel: bool = False
    vector: bool = False
    summed: int = 1
    results: list[LoweredOp] = field(default_factory=list)
    kept: bool = False

    elements: int = field(init=False)
    """Elements of its result."""

    def __post_init__(self) -> None:
        self.elements = math.prod(self.sizes)

    @property
    def computes(self) -> bool:
        """Whether it is a loop that a consumer may compute inside."""
        return self.kind in ("map", "reduce", "cat", "view") and not self.own_kernel


class Ops(Walk[LoweredOp]):
    """Reads a graph into `ops`, in order."""

    def __init__(self, view: GraphView, rules: Rules, calls: Sequence[Site]) -> None:
        super().__init__(view, rules, calls)
        self.ops: list[LoweredOp] = []
        self._views: dict[tuple[int, StridedRegion], ViewedBuffer[LoweredOp]] = {}

    @property
    def values(self) -> dict[Node, Any]:
        """The value of each node: a `ViewedBuffer`, a list of them, or None."""
        return self._values

    def _add(
        self, kind: Any, node: str, sizes: Sequence[int], itemsize: int, *operands: ViewedBuffer[LoweredOp]
    ) -> LoweredOp:
        op = LoweredOp(len(self.ops), kind, node, tuple(sizes), itemsize, operands=operands)
        self.ops.append(op)
        return op

    def _arrived(self, tensor: Any) -> ViewedBuffer[LoweredOp] | None:
        if not isinstance(tensor, torch.Tensor):
            return None
        return _all_of(self._add("input", "", hints(tensor.shape, LEFT_OUT), tensor.element_size()))

    def _result(self, value: Any) -> None:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, ViewedBuffer):
                self._whole(one, one.region.sizes).base.kept = True

    def _seen(self, node: Node, op: str) -> Any:
        """A view; a part of a computed value becomes an operation of its own.

        HLO has no strided views: a slice is an instruction, so its uses are counted apart from those of the whole. A broadcast
        is left as a view, for its consumer repeats the elements without storing them.
        """
        value = super()._seen(node, op)
        if not isinstance(value, ViewedBuffer) or not value.base.computes or 0 in value.region.strides:
            return value
        part = value.region.elements < value.base.elements
        return self._whole(value, value.region.sizes) if part else value

    # *** calls

    def _library(self, node: Node, op: str) -> bool:
        return op not in self.rules.steps and super()._library(node, op)

    def _called(
        self, kind: Kind, name: str, operands: Sequence[ViewedBuffer[LoweredOp]], results: Sequence[torch.Tensor]
    ) -> list[ViewedBuffer[LoweredOp]]:
        call = self._add(kind, name, (), 0, *(self._taken(kind, v) for v in operands))
        if kind == "opaque":
            copied = [(v, t) for v, t in zip(operands, call.operands, strict=True) if _copies(v, t)]
            self.copies[name] = tuple((self._named(v), t.base.elements * t.base.itemsize) for v, t in copied)
        for tensor in results:
            call.results.append(self._add("result", name, hints(tensor.shape, LEFT_OUT), tensor.element_size()))
        return [_all_of(made) for made in call.results]

    def _taken(self, kind: Kind, value: ViewedBuffer[LoweredOp]) -> ViewedBuffer[LoweredOp]:
        """What a call reads from memory: its operand, or a copy. A product takes a matrix transposed as well."""
        region = value.region
        turned = len(region.sizes) == 2 and region.strides == (1, region.sizes[0])
        if kind == "library" and turned and region.elements == value.base.elements:
            return value
        gaps = kind == "opaque" and self.rules.contiguous_calls and not region.contiguous
        copied = self.rules.whole_operands or gaps or not region.strided
        return self._whole(value, region.sizes) if copied else value

    def _whole(self, value: ViewedBuffer[LoweredOp], sizes: tuple[int, ...]) -> ViewedBuffer[LoweredOp]:
        """The value as the whole result of an operation, through a view where needed. Equal views are one, so a copy is shared."""
        base, region = value.base, value.region
        plain = _plain(value)
        if plain and (base.sizes == sizes or not base.computes):
            return value
        if sizes != region.sizes:
            region = region.reshaped(sizes)
        found = self._views.get((base.index, region))
        if found is None:
            made = self._add("view", "", sizes, base.itemsize, ViewedBuffer(base, region))
            found = self._views[base.index, region] = _all_of(made)
        return found

    # *** loops

    def _compute(self, node: Node, op: str, tensor: torch.Tensor) -> None:
        sizes, itemsize = hints(tensor.shape, LEFT_OUT), tensor.element_size()
        operands = self._operands(node)
        parts = self.rules.of(op)
        if op in self.rules.steps:
            self._values[node] = _Steps(self, node, sizes, itemsize).run(self.rules.steps[op])
        elif parts[-1] == "reduce":
            largest = max((v.region.elements for v in operands), default=1)
            count = max(1, largest // max(1, math.prod(sizes)))
            self._values[node] = _all_of(self.reduced(node.name, operands, sizes, itemsize, count))
        elif parts[-1] == "store":
            self._values[node] = _all_of(self._joined(node, sizes, itemsize, operands))
        else:
            self._values[node] = _all_of(self.loop(node.name, sizes, itemsize, operands, op in self.rules.heavy))

    def _joined(
        self, node: Node, sizes: tuple[int, ...], itemsize: int, operands: Sequence[ViewedBuffer[LoweredOp]]
    ) -> LoweredOp:
        last = self.view.arg(node, "dim") in (-1, len(sizes) - 1)
        own_kernel = self.rules.own_cat is not None and last and sizes[-1] >= self.rules.own_cat
        taken = [self._whole(v, v.region.sizes) for v in operands] if own_kernel else operands
        made = self._add("cat", node.name, sizes, itemsize, *taken)
        made.own_kernel = own_kernel
        return made

    def loop(
        self,
        node: str,
        sizes: tuple[int, ...],
        itemsize: int,
        operands: Sequence[ViewedBuffer[LoweredOp]],
        expensive: bool,
    ) -> LoweredOp:
        """A loop over elements."""
        made = self._add("map", node, sizes, itemsize, *operands)
        made.expensive = expensive
        return made

    def product(
        self, node: str, sizes: tuple[int, ...], itemsize: int, operands: Sequence[ViewedBuffer[LoweredOp]]
    ) -> LoweredOp:
        """A matrix product. An operand that is multiplied by one matrix is taken as rows."""
        first, *others = operands
        *rows, columns = first.region.sizes
        vector = math.prod(rows) <= self.rules.vector_rows
        if others and len(rows) > 1 and len(others[0].region.sizes) == 2 and not vector:
            first = self._whole(first, (math.prod(rows), columns))
        taken = [first, *others]
        call = self._add("library", node, (), 0, *(taken if vector else [self._taken("library", v) for v in taken]))
        call.vector = vector
        call.results.append(self._add("result", node, sizes, itemsize))
        return call.results[0]

    def reduced(
        self, node: str, operands: Sequence[ViewedBuffer[LoweredOp]], sizes: tuple[int, ...], itemsize: int, count: int
    ) -> LoweredOp:
        """A reduction of `count` elements to each one, in stages if the compiler uses them."""
        window = self.rules.window
        while window is not None and count > window:
            count = math.ceil(count / window)
            taken = [self._whole(v, v.region.sizes) for v in operands]
            made = self._add("stage", node, (*sizes, count), itemsize, *taken)
            made.summed, operands = window, [_all_of(made)]
        made = self._add("reduce", node, sizes, itemsize, *operands)
        made.summed, made.expensive = count, True
        return made


class _Steps:
    """Makes the parts of one node, as its rules describe them."""

    def __init__(self, ops: Ops, node: Node, sizes: tuple[int, ...], itemsize: int) -> None:
        self.ops, self.node, self.sizes, self.itemsize = ops, node, sizes, itemsize
        self.named: dict[str, ViewedBuffer[LoweredOp]] = {}

    def run(self, steps: Sequence[DecomposedStep]) -> ViewedBuffer[LoweredOp]:
        made: ViewedBuffer[LoweredOp] | None = None
        for step in steps:
            made = self._step(step)
            self.named[step.name] = made
        assert made is not None
        return made

    def _step(self, step: DecomposedStep) -> ViewedBuffer[LoweredOp]:
        operands = [v for name in step.of for v in self._found(name)]
        if not operands:
            raise self._wrong(step, f"no tensor and no earlier part among {', '.join(step.of) or '(nothing)'}")
        itemsize = step.itemsize or self.itemsize
        name = self.node.name
        if step.only_with and not self._found(step.only_with):
            return operands[0]
        if step.kind == "reduce":
            *rows, count = operands[0].region.sizes
            made = self.ops.reduced(name, operands[:1], tuple(rows), itemsize, count)
            return ViewedBuffer(made, StridedRegion.whole((*rows, 1)))
        sizes = self._sizes(step)
        if step.kind == "dot":
            return _all_of(self.ops.product(name, sizes, itemsize, operands))
        return _all_of(self.ops.loop(name, sizes, itemsize, operands, step.expensive))

    def _found(self, name: str) -> list[ViewedBuffer[LoweredOp]]:
        if name in self.named:
            return [self.named[name]]
        if name == "others":
            return self.ops._operands(self.node)[1:]
        value = self.ops.values.get(self.ops.view.arg(self.node, name))
        return [value] if isinstance(value, ViewedBuffer) else []

    def _sizes(self, step: DecomposedStep) -> tuple[int, ...]:
        sizes = self._sizes_of(step, step.like) if step.like else self.sizes
        if step.last:
            name, axis = step.last.rsplit(".", 1)
            sizes = (*sizes[:-1], self._sizes_of(step, name)[int(axis)])
        return sizes

    def _sizes_of(self, step: DecomposedStep, name: str) -> tuple[int, ...]:
        found = self._found(name)
        if not found:
            raise self._wrong(step, f"{name} is neither a tensor nor an earlier part")
        return found[0].region.sizes

    def _wrong(self, step: DecomposedStep, why: str) -> InputError:
        op = self.ops.view.op(self.node)
        return InputError(
            f"rules {self.ops.rules.name}: steps.{op}: part {step.name or step.kind!r} of {self.node}: {why}"
        )


def _all_of(op: LoweredOp) -> ViewedBuffer[LoweredOp]:
    return ViewedBuffer(op, StridedRegion.whole(op.sizes))


def _plain(value: ViewedBuffer[LoweredOp]) -> bool:
    """Whether it is the whole result of the operation, in order, so that memory holds it without a copy."""
    return value.region.contiguous and value.region.elements == value.base.elements


def _copies(value: ViewedBuffer[LoweredOp], taken: ViewedBuffer[LoweredOp]) -> bool:
    return taken.base is not value.base and not _plain(value)
