"""One call in other words: function, method, operator or overload; arguments by position or by name; axes from either end."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from fluxrewrite.graph.op_table import read

from .edit import Draft, Draw, Unfit

__all__ = ["CALLS"]

aten = torch.ops.aten
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def _binary(name: str, function: Any, sign: Any, overloads: Any) -> Callable[..., Iterator[Call]]:
    def spelled(a: Any, b: Any) -> Iterator[Call]:
        yield function, (a, b), {}
        yield function, (a,), {"other": b}
        yield function, (), {"other": b, "input": a}
        yield sign, (a, b), {}
        if isinstance(a, Node):
            yield name, (a, b), {}
            yield name, (a,), {"other": b}
            yield f"__{sign.__name__}__", (a, b), {}
            overload = overloads.Tensor if isinstance(b, Node) else getattr(overloads, "Scalar", overloads.Tensor)
            yield overload, (a, b), {}
            yield overloads, (a, b), {}

    return spelled


def _mul(a: Any, b: Any) -> Iterator[Call]:
    yield from _binary("mul", torch.mul, operator.mul, aten.mul)(a, b)
    yield torch.multiply, (a, b), {}
    if isinstance(b, Node):
        yield "__rmul__", (b, a), {}


def _add(a: Any, b: Any) -> Iterator[Call]:
    yield from _binary("add", torch.add, operator.add, aten.add)(a, b)
    yield torch.add, (a, b), {"alpha": 1}
    if isinstance(b, Node):
        yield "__radd__", (b, a), {}


def _sub(a: Any, b: Any) -> Iterator[Call]:
    yield from _binary("sub", torch.sub, operator.sub, aten.sub)(a, b)
    yield torch.rsub, (b, a), {}
    if isinstance(b, Node):
        yield "__rsub__", (b, a), {}


def _matmul(a: Any, b: Any) -> Iterator[Call]:
    yield torch.matmul, (a, b), {}
    yield torch.matmul, (a,), {"other": b}
    yield operator.matmul, (a, b), {}
    yield "matmul", (a, b), {}
    yield "__matmul__", (a, b), {}
    yield aten.matmul.default, (a, b), {}
    if len(Draft.shape(a)) == 3:
        yield torch.bmm, (a, b), {}
        yield torch.bmm, (a,), {"mat2": b}
        yield "bmm", (a, b), {}
        yield aten.bmm.default, (a, b), {}


def _neg(x: Any) -> Iterator[Call]:
    for target in (torch.neg, torch.negative, operator.neg, "neg", "negative", "__neg__", aten.neg.default):
        yield target, (x,), {}
    yield torch.neg, (), {"input": x}


def _softmax(x: Any, dim: int, dtype: Any = None) -> Iterator[Call]:
    yield F.softmax, (x, dim), {"dtype": dtype}
    yield F.softmax, (x,), {"dim": dim, "dtype": dtype}
    yield torch.softmax, (x, dim, dtype), {}
    yield torch.softmax, (), {"input": x, "dim": dim, "dtype": dtype}
    yield "softmax", (x, dim, dtype), {}
    yield "softmax", (x,), {"dim": dim, "dtype": dtype}
    yield torch.special.softmax, (x, dim), {"dtype": dtype}
    yield aten.softmax.int, (x, dim, dtype), {}
    if dtype is None:
        yield aten._softmax.default, (x, dim, False), {}


def _linear(x: Any, weight: Any, bias: Any = None) -> Iterator[Call]:
    yield F.linear, (x, weight, bias), {}
    yield F.linear, (x, weight), {"bias": bias}
    yield F.linear, (), {"weight": weight, "input": x, "bias": bias}
    yield aten.linear.default, (x, weight, bias), {}


def _rms_norm(x: Any, size: Any, weight: Any = None, eps: Any = None) -> Iterator[Call]:
    yield F.rms_norm, (x, size, weight, eps), {}
    yield F.rms_norm, (x,), {"normalized_shape": size, "weight": weight, "eps": eps}
    yield torch.rms_norm, (x, size), {"weight": weight, "eps": eps}
    yield torch.rms_norm, (x, list(size), weight, eps), {}
    yield aten.rms_norm.default, (x, list(size), weight, eps), {}


def _sdpa(q: Any, k: Any, v: Any, mask: Any, p: Any, causal: Any, scale: Any, gqa: Any) -> Iterator[Call]:
    rest = {"scale": scale, "enable_gqa": gqa}
    named = {"attn_mask": mask, "dropout_p": p, "is_causal": causal, **rest}
    yield F.scaled_dot_product_attention, (q, k, v, mask, p, causal), rest
    yield F.scaled_dot_product_attention, (q, k, v), named
    yield F.scaled_dot_product_attention, (), {"value": v, "key": k, "query": q, **named}
    yield aten.scaled_dot_product_attention.default, (q, k, v, mask, p, causal), rest


def _joined(names: tuple[Any, ...]) -> Callable[..., Iterator[Call]]:
    def spelled(tensors: Any, dim: int) -> Iterator[Call]:
        for target in names:
            yield target, (list(tensors), dim), {}
        yield names[0], (tuple(tensors), dim), {}
        yield names[0], (list(tensors),), {"dim": dim}
        yield names[0], (), {"dim": dim, "tensors": tuple(tensors)}

    return spelled


def _unbind(x: Any, dim: int) -> Iterator[Call]:
    yield torch.unbind, (x, dim), {}
    yield "unbind", (x, dim), {}
    yield "unbind", (x,), {"dim": dim}
    yield aten.unbind.int, (x, dim), {}


def _chunk(x: Any, chunks: int, dim: int) -> Iterator[Call]:
    yield torch.chunk, (x, chunks, dim), {}
    yield "chunk", (x, chunks), {"dim": dim}
    yield "chunk", (x,), {"chunks": chunks, "dim": dim}
    yield aten.chunk.default, (x, chunks, dim), {}


def _masked_fill(x: Any, mask: Any, value: Any) -> Iterator[Call]:
    yield "masked_fill", (x, mask, value), {}
    yield "masked_fill", (x,), {"mask": mask, "value": value}
    yield torch.masked_fill, (x, mask, value), {}
    yield aten.masked_fill.Scalar, (x, mask, value), {}


def _where(condition: Any, x: Any, other: Any) -> Iterator[Call]:
    yield torch.where, (condition, x, other), {}
    if isinstance(x, Node):
        yield "where", (x, condition, other), {}
    yield aten.where.ScalarOther, (condition, x, other), {}


def _plain(*targets: Any) -> Callable[..., Iterator[Call]]:
    def spelled(x: Any) -> Iterator[Call]:
        for target in targets:
            yield target, (x,), {}
        yield targets[0], (), {"input": x}

    return spelled


_TABLE: Mapping[str, tuple[Callable[..., Iterator[Call]], tuple[str, ...]]] = {
    "mul": (_mul, ("input", "other")),
    "add": (_add, ("input", "other")),
    "sub": (_sub, ("input", "other")),
    "div": (_binary("div", torch.div, operator.truediv, aten.div), ("input", "other")),
    "matmul": (_matmul, ("input", "other")),
    "neg": (_neg, ("input",)),
    "softmax": (_softmax, ("input", "dim", "dtype")),
    "linear": (_linear, ("input", "weight", "bias")),
    "rms_norm": (_rms_norm, ("input", "normalized_shape", "weight", "eps")),
    "sdpa": (_sdpa, ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")),
    "cat": (_joined((torch.cat, torch.concat, torch.concatenate, aten.cat.default)), ("tensors", "dim")),
    "stack": (_joined((torch.stack, aten.stack.default)), ("tensors", "dim")),
    "unbind": (_unbind, ("input", "dim")),
    "chunk": (_chunk, ("input", "chunks", "dim")),
    "masked_fill": (_masked_fill, ("input", "mask", "value")),
    "where": (_where, ("condition", "input", "other")),
    "view_as_complex": (_plain(torch.view_as_complex, aten.view_as_complex.default), ("input",)),
    "view_as_real": (_plain(torch.view_as_real, aten.view_as_real.default), ("input",)),
    "silu": (_plain(F.silu, aten.silu.default), ("input",)),
    "logical_not": (
        _plain(torch.logical_not, operator.invert, torch.bitwise_not, "logical_not", "__invert__"),
        ("input",),
    ),
}


def _arguments(node: Node, names: tuple[str, ...]) -> list[Any]:
    """By canonical name; raises Unfit where the node has an argument that `names` leaves out."""
    fact = read(node)
    other = {n for n, v in fact.args.items() if n not in names and v != fact.defaults.get(n)}
    if other:
        raise Unfit(f"{node.name} with {', '.join(other)}")
    defaults = {"dropout_p": 0.0, "is_causal": False, "enable_gqa": False, "dim": 0}
    return [fact.args.get(n, fact.defaults.get(n, defaults.get(n)) if n != "dropout_p" else 0.0) for n in names]


def other_call(draft: Draft, draw: Draw) -> None:
    """The same operation as a function, a method, an operator or an overload, arguments by position or by name."""
    node = draw.one(draft.having(*_TABLE))
    spelled, names = _TABLE[read(node).op]
    given = [_exact(name, value) for name, value in zip(names, _arguments(node, names), strict=True)]
    calls = [c for c in spelled(*given) if isinstance(c[1][0] if c[1] else None, (Node, list, tuple)) or not callable(c[0])
             or c[0] in (operator.mul, operator.add, operator.sub) or not c[1] or isinstance(c[1][0], Node)]  # fmt: skip
    target, args, kwargs = draw.one(calls)
    before = draft.tensor(node)
    draft.change(node, args, kwargs, target)
    after = draft._computed(node)
    if before is not None and (after.shape, after.dtype) != (before.shape, before.dtype):
        raise AssertionError(f"{target} answers {after.shape} {after.dtype}")


def _exact(name: str, value: Any) -> Any:
    """Booleans and numbers as the schemas have them: the vocabulary's defaults are plain floats."""
    return bool(value) if name in ("is_causal", "enable_gqa") else value


_AXES = ("dim", "dim0", "dim1", "start_dim", "end_dim")


def other_end(draft: Draft, draw: Draw) -> None:
    """An axis counted from the other end: -1 for 3."""
    node = draw.one(draft.having("softmax", "chunk", "split", "unbind", "transpose", "sum", "cat", "narrow", "select"))
    fact = read(node)
    name = draw.one([n for n in _AXES if isinstance(fact.args.get(n), int)])
    of = fact.args["tensors"][0] if "tensors" in fact.args else fact.args["input"]
    rank, old = len(draft.shape(of)), fact.args[name]
    new = old - rank if old >= 0 else old + rank
    position = next((i for i, a in enumerate(node.args) if type(a) is int and a == old and i > 0), None)
    if name in node.kwargs:
        draft.change(node, node.args, {**node.kwargs, name: new})
    elif position is not None and node.args.count(old) == 1:
        draft.change(node, (*node.args[:position], new, *node.args[position + 1 :]))
    else:
        raise Unfit("the axis is not plain to see")


def commuted(draft: Draft, draw: Draw) -> None:
    """The operands of a sum or product the other way round."""
    node = draw.one([n for n in draft.having("add", "mul") if _is_pair(n)])
    a, b = node.args
    if not isinstance(b, Node) and isinstance(node.target, str):
        raise Unfit("a number has no methods")
    targets = {torch.mul: operator.mul, torch.add: operator.add}
    draft.change(node, (b, a), None, targets.get(node.target) if not isinstance(b, Node) else None)


def _is_pair(node: Node) -> bool:
    return len(node.args) == 2 and not node.kwargs


CALLS = {"other call": other_call, "axis from the other end": other_end, "operands commuted": commuted}
