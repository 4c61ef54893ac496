"""Changes to any node of any graph: another operand, another number, another operation, one more, one less, memory written."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.fx import Node

from fluxrewrite.graph.op_table import read

from .edit import Draft, Draw, Unfit

__all__ = ["MUTATIONS"]


def _like(draft: Draft, node: Node) -> list[Node]:
    """Other values of the same shape and dtype."""
    this = draft.tensor(node)
    found = [n for n in draft.tensors() if n is not node]
    return [
        n for n in found if (n.meta["example_value"].shape, n.meta["example_value"].dtype) == (this.shape, this.dtype)
    ]  # type: ignore[union-attr]


def rewired(draft: Draft, draw: Draw) -> None:
    """Another value of the same shape and dtype as one operand."""
    user = draw.one(draft.calls)
    old = draw.one([n for n in user.all_input_nodes if draft.tensor(n) is not None])
    order = draft.order()
    new = draw.one([n for n in _like(draft, old) if order[n] < order[user]])
    draft.replace(old, new, [user])


def number_changed(draft: Draft, draw: Draw) -> None:
    """Another number among the arguments of a call that still answers the same shape."""
    node = draw.one([n for n in draft.calls if any(True for _ in _numbers((n.args, n.kwargs)))])
    count = sum(1 for _ in _numbers((node.args, node.kwargs)))
    at, new = draw.one(range(count)), draw.one([-2, -1, 0, 1, 2, 3, 4, 0.5, -0.25])
    numbers = iter(range(count))
    args, kwargs = _mapped((node.args, node.kwargs), lambda old: type(old)(new) if next(numbers) == at else old)
    before = draft.shape(node)
    draft.change(node, args, kwargs)
    if draft.shape(node) != before:
        raise Unfit("another shape")


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, slice):
        yield from _numbers((value.start, value.stop, value.step))
    elif type(value) in (int, float):
        yield value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _mapped(v, change) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*_mapped((value.start, value.stop, value.step), change))
    return change(value) if type(value) in (int, float) else value


_OTHER: Mapping[str, tuple[Any, ...]] = {
    "add": (torch.mul, torch.sub, torch.maximum),
    "sub": (torch.add, torch.rsub, torch.mul),
    "mul": (torch.add, torch.div, torch.sub),
    "div": (torch.mul, torch.sub),
    "neg": (torch.abs, torch.sin, torch.exp),
    "softmax": (torch.cumsum, torch.log_softmax),
    "sum": (torch.amax, torch.mean),
}


def other_operation(draft: Draft, draw: Draw) -> None:
    """Another operation on the same operands."""
    node = draw.one(draft.having(*_OTHER))
    arguments = tuple(v for k, v in read(node).args.items() if k in ("input", "other", "dim"))
    new = draft.before(node)(draw.one(_OTHER[read(node).op]), *arguments)
    if (draft.shape(new), new.meta["example_value"].dtype) != (draft.shape(node), node.meta["example_value"].dtype):
        raise Unfit("another shape")
    draft.replace(node, new)


def operands_exchanged(draft: Draft, draw: Draw) -> None:
    """The operands of a difference, quotient or matrix product the other way round."""
    node = draw.one([n for n in draft.having("sub", "div", "matmul") if len(n.args) == 2])
    draft.change(node, (node.args[1], node.args[0]))


def left_out(draft: Draft, draw: Draw) -> None:
    """One operand of an operation in the place of its result."""
    node = draw.one([n for n in draft.calls if draft.tensor(n) is not None and n.users])
    like = set(_like(draft, node))
    draft.replace(node, draw.one([n for n in node.all_input_nodes if n in like]))


def put_in(draft: Draft, draw: Draw) -> None:
    """One more operation behind a value, for one of its users or for all."""
    floats = [n for n in draft.tensors() if n.users and n.meta["example_value"].dtype.is_floating_point]
    node, order = draw.one(floats), draft.order()
    users, call, rank = list(node.users), draft.after(node), len(draft.shape(node))
    dim = draw.one(range(rank)) if rank else 0
    earlier = [n for n in _like(draft, node) if order[n] < order[node]] or [node]
    options: list[Callable[[], Node]] = [
        lambda: call("neg", node), lambda: call("mul", node, 2.0), lambda: call("add", node, 1.0),
        lambda: call("flip", node, [dim]), lambda: call("roll", node, 1, dim), lambda: call("tanh", node),
        lambda: call("mul", node, draw.one(earlier)), lambda: call("cumsum", node, dim),
        lambda: call("to", call("to", node, torch.float16), node.meta["example_value"].dtype),
        lambda: call("permute", node, *draw.shuffled(range(rank))),
        lambda: call("expand", call("narrow", node, dim, 0, 1), *draft.shape(node)),
    ]  # fmt: skip
    new = draw.one(options)()
    draft.replace(node, new, users if draw.coin() else [draw.one(users)])


_WRITES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("mul_", (2.0,)), ("add_", (1.0,)), ("zero_", ()), ("neg_", ()), ("fill_", (0.5,)), ("copy_", ()), ("exp_", ()),
)  # fmt: skip


def memory_written(draft: Draft, draw: Draw) -> None:
    """Memory of a value written later on, through the value, a view of it, or a copy that is read too."""
    floats = [n for n in draft.tensors() if n.meta["example_value"].dtype.is_floating_point]
    node = draw.one(floats)
    order = draft.order()
    later = [n for n in draft.nodes if order[n] > order[node] and n.op != "placeholder"]
    at = draw.one(later)
    behind = draft.after(node)
    how = draw.one(["itself", "view", "copy", "source"])
    if how in ("copy", "source"):
        users = list(node.users)
        copy = behind(draw.one(["clone", "contiguous"]), node)
        if users:
            draft.replace(node, copy, users if how == "source" else [draw.one(users)])
        target = node if how == "source" else copy
    else:
        target = node
    call = draft.before(at)
    if how == "view" and draft.shape(node):
        target = draw.one([lambda: call("narrow", node, -1, 0, 1), lambda: call("select", node, 0, 0),
                           lambda: call("view", node, -1), lambda: call(operator.getitem, node, Ellipsis)])()  # fmt: skip
    name, args = draw.one(_WRITES)
    if name == "copy_":
        args = (draw.one([n for n in _like(draft, target) if order.get(n, len(order)) < order[at]]),)
    if 0 in target.meta["example_value"].stride():
        raise Unfit("memory with itself")
    call(name, target, *args)
    draft.dirty.update(n for n in draft.calls if order.get(n, 0) >= order[at])


def inner_value(draft: Draft, draw: Draw) -> None:
    """Any value returned too, or read by something that is."""
    (results,) = draft.output.args
    node = draw.one(draft.tensors())
    made = node if draw.coin() else draft.before(draft.output)(draw.one(["clone", "contiguous", "abs"]), node)
    draft.output.args = ((*results, made),)  # type: ignore[misc]


def one_for_two(draft: Draft, draw: Draw) -> None:
    """One input in the role of another as well."""
    node = draw.one([n for n in draft.inputs if n.users])
    draft.replace(node, draw.one([n for n in _like(draft, node) if n.op == "placeholder"]))


MUTATIONS: Mapping[str, Callable[[Draft, Draw], None]] = {
    "another operand": rewired,
    "another number": number_changed,
    "another operation": other_operation,
    "operands exchanged": operands_exchanged,
    "operation left out": left_out,
    "operation put in": put_in,
    "memory written": memory_written,
    "inner value used": inner_value,
    "one input for two": one_for_two,
}
