"""A graph that is edited step by step, with the fake values of its nodes kept true."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from fluxrewrite.graph.op_table import read

__all__ = ["Draft", "Draw", "Unfit"]

T = TypeVar("T")
VALUE = "example_value"


class Unfit(Exception):
    """An edit that cannot be made here: the operation refuses its arguments."""


class Draw:
    """Choices of one edit, from one number: the same number chooses the same again."""

    def __init__(self, number: int) -> None:
        self._random = random.Random(number)

    def one(self, options: Sequence[T]) -> T:
        """One of the options. Raises Unfit where there is none."""
        if not options:
            raise Unfit("nothing to choose from")
        return options[self._random.randrange(len(options))]

    def coin(self) -> bool:
        return self._random.random() < 0.5

    def shuffled(self, items: Iterable[T]) -> list[T]:
        found = list(items)
        self._random.shuffle(found)
        return found


class Draft:
    """A copy of a graph under edit.

    Attributes:
        graph: the copy. Its output is one tuple of values.
        dirty: nodes whose arguments or place an edit has changed; `settle` computes their values anew.
        touched: whether the graph was changed since someone said that it was not.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = Graph()
        twins: dict[Node, Node] = {}
        self.graph.output(self.graph.graph_copy(graph, twins))
        self.mode = next(v.fake_mode for n in self.graph.nodes if hasattr(v := n.meta.get(VALUE), "fake_mode"))
        self.dirty: set[Node] = set()
        self.touched = False

    @property
    def nodes(self) -> list[Node]:
        return list(self.graph.nodes)

    @property
    def calls(self) -> list[Node]:
        return [n for n in self.graph.nodes if n.op.startswith("call_")]

    @property
    def inputs(self) -> list[Node]:
        return [n for n in self.graph.nodes if n.op == "placeholder"]

    @property
    def output(self) -> Node:
        return self.graph.output_node()

    def tensors(self) -> list[Node]:
        """All nodes with one tensor."""
        return [n for n in self.graph.nodes if self.tensor(n) is not None]

    def having(self, *ops: str) -> list[Node]:
        """Calls of these canonical names."""
        return [n for n in self.calls if read(n).op in ops]

    @staticmethod
    def tensor(node: Any) -> torch.Tensor | None:
        value = node.meta.get(VALUE) if isinstance(node, Node) else None
        return value if isinstance(value, torch.Tensor) else None

    @classmethod
    def shape(cls, node: Any) -> tuple[int, ...]:
        value = cls.tensor(node)
        return () if value is None else tuple(value.shape)

    def order(self) -> dict[Node, int]:
        return {n: i for i, n in enumerate(self.graph.nodes)}

    def writes(self) -> bool:
        """Whether an operation of the graph modifies memory."""
        return any(read(n).writes for n in self.calls)

    def written(self) -> set[int]:
        """The memory that operations of the graph modify."""
        return {m for n in self.calls for w in read(n).writes for m in self.memory(w)}

    @staticmethod
    def memory(node: Node) -> set[int]:
        """What stands for the memory of a node's values: views have that of what they view."""
        return _memory(tree_leaves(node.meta.get(VALUE)))

    def before(self, at: Node) -> Callable[..., Node]:
        """`call(target, *args, **kwargs)`: a new node in front of `at`; a method where the target is a text."""

        def call(target: Any, *args: Any, **kwargs: Any) -> Node:
            with self.graph.inserting_before(at):
                kind = "call_method" if isinstance(target, str) else "call_function"
                node = self.graph.create_node(kind, target, args, kwargs)
            try:
                node.meta[VALUE] = self._computed(node)
            except Unfit:
                self.graph.erase_node(node)
                raise
            self.touched = True
            return node

        return call

    def after(self, node: Node) -> Callable[..., Node]:
        """As `before`, behind `node`; behind all inputs where it is one."""
        at = node.next
        while at.op == "placeholder":
            at = at.next
        return self.before(at)

    def replace(self, old: Node, new: Node, users: Iterable[Node] | None = None) -> None:
        """Let `users`, all users where None, read `new` in the place of `old`. `old` goes where it is not used any more."""
        self.touched = True
        for user in list(old.users if users is None else users):
            if user is not new:
                user.replace_input_with(old, new)
                self.dirty.add(user)
        if not old.users and old.op != "placeholder" and not read(old).writes:
            self.erase(old)

    def erase(self, node: Node) -> None:
        """Take a node without users away, and what is not used without it."""
        above = node.all_input_nodes
        self.dirty.discard(node)
        self.graph.erase_node(node)
        for source in above:
            if not source.users and source.op.startswith("call_") and not read(source).writes:
                self.erase(source)

    def change(
        self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, target: Any = None
    ) -> None:
        """Other arguments, and another target where one is given. Raises Unfit, with the node as it was, if it cannot run."""
        old = (node.op, node.target, node.args, node.kwargs)
        if target is not None:
            node.op = "call_method" if isinstance(target, str) else "call_function"
            node.target = target
        node.args, node.kwargs = args, dict(node.kwargs if kwargs is None else kwargs)
        try:
            self._computed(node)
        except Unfit:
            node.op, node.target, node.args, node.kwargs = old
            raise
        self.touched = True
        self.dirty.add(node)

    def settle(self) -> None:
        """Compute the values that the edits changed, down to where they are what they were. Raises Unfit if one cannot run."""
        self.touched = True
        changed: set[Node] = set()
        for node in self.calls:
            if node not in self.dirty and not changed.intersection(node.all_input_nodes):
                continue
            value = self._computed(node)
            if node in self.dirty or not _as_before(node, value):
                node.meta[VALUE] = value
                changed.add(node)
        self.dirty.clear()
        self.graph.lint()

    def _computed(self, node: Node) -> Any:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get(VALUE))
        try:
            with self.mode, torch.no_grad():
                if isinstance(node.target, str):
                    return getattr(args[0], node.target)(*args[1:], **kwargs)
                return node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:
            raise Unfit(f"{node.target}: {error}") from error


def _as_before(node: Node, value: Any) -> bool:
    """Whether a value is laid out as the one that the node has, in memory of its own: then nothing below it changes."""
    old, new = tree_leaves(node.meta.get(VALUE)), tree_leaves(value)
    return len(old) == len(new) and all(map(_same, old, new)) and not _memory(new) & set(_entering(node))


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and bool(a == b)
    return (a.shape, a.stride(), a.dtype, a.storage_offset()) == (b.shape, b.stride(), b.dtype, b.storage_offset())


def _memory(values: Iterable[Any]) -> set[int]:
    return {v.untyped_storage()._cdata for v in values if isinstance(v, torch.Tensor)}


def _entering(node: Node) -> Iterator[int]:
    for source in node.all_input_nodes:
        yield from Draft.memory(source)
