"""What changes nothing: views to the same shape, casts to the same dtype, products with one, copies."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.fx import Node

from .edit import Draft, Draw, Unfit

__all__ = ["NOOPS"]

aten = torch.ops.aten
Call = Callable[..., Node]


def _views(call: Call, x: Node, draw: Draw) -> Iterator[Callable[[], Node]]:
    shape, rank = Draft.shape(x), len(Draft.shape(x))
    dim = draw.one(range(rank + 1))
    yield lambda: call("view", x, *shape)
    yield lambda: call("reshape", x, shape)
    yield lambda: call("view_as", x, x)
    yield lambda: call("squeeze", call("unsqueeze", x, dim), dim)
    yield lambda: call(operator.getitem, x, Ellipsis)
    yield lambda: call(operator.getitem, x, (*[slice(None)] * rank,))
    yield lambda: call(operator.getitem, call("unsqueeze", x, 0), 0)
    yield lambda: call("permute", x, *range(rank))
    yield lambda: call("expand", x, *shape)
    yield lambda: call(aten.alias.default, x)
    if rank > 1:
        a, b = draw.shuffled(range(rank))[:2]
        yield lambda: call("transpose", call("transpose", x, a, b), b, a)
        yield lambda: call("flatten", x, a, a)
        yield lambda: call("narrow", x, a, 0, shape[a])


def _casts(call: Call, x: Node, draw: Draw) -> Iterator[Callable[[], Node]]:
    dtype = Draft.tensor(x).dtype  # type: ignore[union-attr]
    yield lambda: call("to", x, dtype)
    yield lambda: call("to", x, dtype=dtype)
    yield lambda: call("type_as", x, x)
    yield lambda: call("type", x, dtype)
    yield lambda: call("to", x, x)
    yield lambda: call(torch.ops.prims.convert_element_type.default, x, dtype)
    if dtype == torch.float32:
        yield lambda: call("float", x)
    if dtype == torch.bfloat16:
        yield lambda: call("to", call("float", x), torch.bfloat16)
        yield lambda: call("bfloat16", call("to", x, torch.float32))


def _copies(call: Call, x: Node, draw: Draw) -> Iterator[Callable[[], Node]]:
    yield lambda: call("contiguous", x)
    yield lambda: call("clone", x)
    yield lambda: call(torch.clone, x)
    yield lambda: call(aten.clone.default, x)
    yield lambda: call("to", x, Draft.tensor(x).dtype, copy=True)  # type: ignore[union-attr]
    yield lambda: call(torch.cat, [x])


def _ones(call: Call, x: Node, draw: Draw) -> Iterator[Callable[[], Node]]:
    yield lambda: call(operator.mul, x, 1)
    yield lambda: call(operator.mul, 1.0, x)
    yield lambda: call("mul", x, 1.0)
    yield lambda: call(operator.truediv, x, 1)
    yield lambda: call("div", x, 1.0)
    yield lambda: call(F.dropout, x, 0.0, True)
    yield lambda: call(F.dropout, x, 0.3, False)


def _noop(make: Callable[..., Iterator[Callable[[], Node]]]) -> Callable[[Draft, Draw], None]:
    def edit(draft: Draft, draw: Draw) -> None:
        floats = [n for n in draft.tensors() if draft.tensor(n).dtype.is_floating_point and n.users]  # type: ignore[union-attr]
        if make is not _views:  # a copy of what is written is something else
            written = draft.written()
            floats = [n for n in floats if not written & draft.memory(n)]
        x = draw.one(floats)
        users = list(x.users)
        new = draw.one(list(make(draft.after(x), x, draw)))()
        if draft.tensor(new).dtype != draft.tensor(x).dtype:  # type: ignore[union-attr]
            raise Unfit("it changes the dtype")
        draft.replace(x, new, users if draw.coin() else [draw.one(users)])

    return edit


NOOPS = {
    "view of the same shape": _noop(_views),
    "cast to the same dtype": _noop(_casts),
    "copy": _noop(_copies),
    "product with one": _noop(_ones),
}
