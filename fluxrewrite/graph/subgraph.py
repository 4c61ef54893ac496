"""Part of a graph as a module of its own, to compile and run separately."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate, map_arg
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import RewriteError
from .fake_values import name_of, value_of
from .shapes import SYMBOLS, hint

__all__ = ["Operand", "Subgraph", "extract"]


@dataclass(frozen=True)
class Operand:
    """A tensor that enters a part: its name outside, and all that is needed to make one like it.

    Attributes:
        name: name of the node outside, and the position among its tensors.
        shape, stride: in elements.
        dtype, device: of the tensor.
    """

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def like(cls, name: str, value: torch.Tensor) -> Operand:
        """The operand for a fake tensor. Symbolic sizes become those of the traced inputs.

        Raises RewriteError for a size that is not known before the model runs.
        """
        sizes, strides = (tuple(hint(n, None) for n in ns) for ns in (value.shape, value.stride()))
        return cls(name, sizes, strides, value.dtype, value.device)

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape} {self.stride} {self.device}"


@dataclass(frozen=True)
class Subgraph:
    """Some nodes of a graph as a module.

    Attributes:
        module: takes the operands and returns a tuple of the tensors that the rest of the graph uses. All sizes are numbers.
        operands: the tensors that it takes, in order.
    """

    module: GraphModule
    operands: tuple[Operand, ...]

    @property
    def digest(self) -> str:
        """Equal for parts that compute the same on tensors of the same kind. Names and the values of weights do not count.

        Blocks of a model repeat, so parts with equal digests are measured once.
        """
        return hashlib.sha256("\n".join(_lines(self)).encode()).hexdigest()


def extract(gm: GraphModule, nodes: Collection[Node]) -> Subgraph:
    """The part of `gm` that computes `nodes`. Sizes that the rest of the graph computes become numbers.

    Args:
        gm: a graph with fake values (`example_value` or `val`). It is not changed.
        nodes: calls of functions and methods.

    Raises:
        RewriteError: a value that enters is neither a tensor nor a number, or its size is not known before the model runs.
    """
    wanted = set(nodes)
    inside = [n for n in gm.graph.nodes if n in wanted]
    outside = dict.fromkeys(a for n in inside for a in n.all_input_nodes if a not in wanted)
    graph, made, operands = Graph(gm), dict[Node, Any](), list[Operand]()
    # Two passes, because placeholders must come before all other nodes of a graph.
    for node in outside:
        if node.op != "get_attr":
            made[node] = _enter(graph, node, operands)
    for node in outside:
        if node.op == "get_attr":
            made[node] = graph.node_copy(node)
    symbolic = any(isinstance(v, torch.SymInt) for n in inside for v in _numbers(value_of(n)))
    for node in inside:
        made[node] = graph.node_copy(node, made.__getitem__)
        # A compiler would take these fake values for symbolic shapes, but all inputs of the part have sizes that are numbers.
        if symbolic:
            for key in ("example_value", "val"):
                made[node].meta.pop(key, None)
    graph.output(tuple(_leave(graph, inside, made)))
    graph.lint()
    return Subgraph(GraphModule(gm, graph, class_name="Subgraph"), tuple(operands))


def _numbers(value: Any) -> Iterator[Any]:
    for leaf in tree_leaves(value):
        yield from (*leaf.shape, *leaf.stride()) if isinstance(leaf, torch.Tensor) else (leaf,)


def _enter(graph: Graph, node: Node, operands: list[Operand]) -> Any:
    """The replacement for a value from outside the part: placeholders for tensors, numbers for sizes."""

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            operand = Operand.like(f"{node.name}.{len(made)}", value)
            placeholder = graph.placeholder(node.name if not made else f"{node.name}_part{len(made)}")
            if not any(isinstance(n, torch.SymInt) for n in _numbers(value)):
                placeholder.meta["example_value"] = value
            made.append(placeholder)
            operands.append(operand)
            return placeholder
        if value is None or isinstance(value, (int, float, complex, str, torch.dtype, torch.device)):
            return value
        if isinstance(value, SYMBOLS):
            return hint(value, None)
        raise RewriteError(f"{node.name} is a {type(value).__name__}, which a part of a graph cannot take")

    made: list[Node] = []
    value = value_of(node)
    if value is None:
        raise RewriteError(f"{node.name} has no value: the graph was not traced with shapes")
    return tree_map(leaf, tuple(value) if isinstance(value, torch.Size) else value)


def _leave(graph: Graph, inside: Collection[Node], made: dict[Node, Any]) -> Iterator[Node]:
    """The tensors that the rest of the graph uses."""
    known = set(inside)
    for node in inside:
        if all(user in known for user in node.users):
            continue
        value = value_of(node)
        if isinstance(value, torch.Tensor):
            yield made[node]
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                if isinstance(item, torch.Tensor):
                    yield graph.call_function(operator.getitem, (made[node], i))


def _lines(part: Subgraph) -> Iterator[str]:
    # Numbers instead of names: names are what differs between equal blocks.
    number: dict[Node, str] = {}
    operands = iter(part.operands)
    for node in part.module.graph.nodes:
        number[node] = f"%{len(number)}"
        if node.op == "placeholder":
            yield f"operand {next(operands)}"
            continue
        arguments = map_arg((node.args, node.kwargs), number.__getitem__)
        yield f"{node.op} {_target(part, node)} {map_aggregate(arguments, _constant)}"


def _target(part: Subgraph, node: Node) -> str:
    if node.op != "get_attr":
        return name_of(node.target)
    attribute = attrgetter(str(node.target))(part.module)
    # The kind of a weight and not its values, so that blocks with weights of their own have equal digests.
    if isinstance(attribute, torch.Tensor):
        return str(Operand.like("", attribute))
    return attribute.code if isinstance(attribute, GraphModule) else str(attribute)


def _constant(value: Any) -> Any:
    return name_of(value) if callable(value) and not isinstance(value, (type, torch.dtype)) else value
