"""One name for each operation, regardless of its spelling.

A node of a Dynamo or export graph may call `torch.mul`, `operator.mul`, `x.mul(...)` or `aten.mul.Tensor`. This table names all
of them `mul` and binds their arguments to the same names. An operation that is not in the table keeps its own name and binds no
arguments, so no pattern can match it by accident.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node
from torch.utils._pytree import tree_leaves

__all__ = ["CASTS", "COMMUTATIVE", "ELEMENTWISE", "OPERANDS", "RESHAPES", "Fact", "is_collective", "read"]

aten = torch.ops.aten

COMMUTATIVE = frozenset({"add", "mul"})
ELEMENTWISE = frozenset({"add", "mul", "sub", "div", "neg", "where", "masked_fill", "clamp", "dropout", "copy"})
RESHAPES = frozenset({"reshape", "copy"})
CASTS = frozenset({"cast"})
OPERANDS = {op: ("input", "other") for op in ("add", "mul", "sub", "div", "matmul")} | {
    "baddbmm": ("input", "batch1", "batch2")
}
"""Tensor operands in canonical order, for operations with more than one. All others have `input` only."""


@dataclass(frozen=True)
class Fact:
    """What a node does.

    Attributes:
        op: canonical name.
        args: the arguments given, by canonical name.
        defaults: defaults of the others.
        writes: the values that it modifies in place.
    """

    op: str
    args: Mapping[str, Any]
    defaults: Mapping[str, Any]
    writes: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Spelling:
    op: str
    params: tuple[str, ...]
    defaults: Mapping[str, Any]
    gathers: str | None = None
    inplace: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)


_BY_TARGET: dict[Any, _Spelling] = {}
_BY_METHOD: dict[str, _Spelling] = {}
# One parameter has several names: aten calls it `self`, torch `input`, and the functions that follow NumPy `x` or `axis`.
_ALIASES = {
    "self": "input",
    "tensor": "input",
    "x": "input",
    "a": "input",
    "b": "other",
    "mat2": "other",
    "size": "shape",
    "axis": "dim",
}


def _define(op: str, params: str, *targets: Any, methods: str = "", inplace: bool = False, **fixed: Any) -> None:
    """Add a row to the table.

    Args:
        op: canonical name.
        params: as in "input other alpha=1". A starred name collects the remaining positional arguments: "input *shape".
        targets: functions and op packets of this name.
        methods: methods of tensors of this name, separated by spaces.
        inplace: it modifies its first argument.
        fixed: arguments that this spelling implies.
    """
    names, defaults, gathers = [], dict[str, Any](), None
    for word in params.split():
        name, has_default, default = word.partition("=")
        if name.startswith("*"):
            gathers = name = name[1:]
        if has_default:
            defaults[name] = (
                {"None": None, "True": True, "False": False}.get(default) if default[0].isalpha() else float(default)
            )
        names.append(name)
    spelling = _Spelling(op, tuple(names), defaults, gathers=gathers, inplace=inplace, fixed=fixed)
    for target in targets:
        _BY_TARGET[target] = spelling
    for method in methods.split():
        _BY_METHOD[method] = spelling


def _define_arithmetic() -> None:
    _define(
        "mul", "input other", torch.mul, torch.multiply, operator.mul, aten.mul, methods="mul multiply __mul__ __rmul__"
    )
    _define("add", "input other alpha=1", torch.add, operator.add, aten.add, methods="add __add__ __radd__")
    _define(
        "sub", "input other alpha=1", torch.sub, torch.subtract, operator.sub, aten.sub, methods="sub subtract __sub__"
    )
    _define("sub", "other input alpha=1", torch.rsub, aten.rsub, methods="rsub __rsub__")
    _define("div", "input other rounding_mode=None", torch.div, torch.divide, torch.true_divide, operator.truediv, aten.div,
            methods="div divide true_divide __truediv__")  # fmt: skip
    _define("neg", "input", torch.neg, torch.negative, operator.neg, aten.neg, methods="neg negative __neg__")
    _define("matmul", "input other", torch.matmul, torch.bmm, torch.mm, operator.matmul, aten.matmul, aten.bmm, aten.mm,
            methods="matmul bmm mm __matmul__")  # fmt: skip
    _define("baddbmm", "input batch1 batch2 beta=1 alpha=1", torch.baddbmm, aten.baddbmm, methods="baddbmm")
    _define("where", "condition input other", torch.where, aten.where)
    _define("where", "input condition other", methods="where")
    _define("masked_fill", "input mask value", torch.masked_fill, aten.masked_fill, methods="masked_fill")
    _define("logical_not", "input", torch.logical_not, torch.bitwise_not, operator.invert, aten.logical_not, aten.bitwise_not,
            methods="logical_not bitwise_not __invert__")  # fmt: skip
    for name in ("add", "mul", "sub", "div"):
        operators = [getattr(operator, "itruediv" if name == "div" else "i" + name), getattr(aten, name + "_")]
        _define(name + "_", "input other alpha=1", *operators, methods=f"{name}_ __i{name}__", inplace=True)


def _define_layers() -> None:
    _define("linear", "input weight bias=None", F.linear, aten.linear)
    _define("sdpa", "query key value attn_mask=None dropout_p=0 is_causal=False scale=None enable_gqa=False",
            F.scaled_dot_product_attention, aten.scaled_dot_product_attention)  # fmt: skip
    # One row for each order of parameters: arguments given by position mean different things in these functions.
    _define("softmax", "input dim=None _stacklevel=3 dtype=None", F.softmax)
    _define(
        "softmax", "input dim=None dtype=None", torch.softmax, aten.softmax, torch.special.softmax, methods="softmax"
    )
    _define("softmax", "input dim=None half_to_float=False", aten._softmax)
    _define("rms_norm", "input normalized_shape weight=None eps=None", F.rms_norm, torch.rms_norm, aten.rms_norm)
    _define("layer_norm", "input normalized_shape weight=None bias=None eps=0.00001", F.layer_norm, aten.layer_norm)
    _define(
        "layer_norm", "input normalized_shape weight=None bias=None eps=0.00001 cudnn_enable=True", torch.layer_norm
    )
    _define("dropout", "input p=0.5 training=True inplace=False", F.dropout)
    _define("dropout", "input p training", torch.dropout, aten.dropout)
    _define("silu", "input inplace=False", F.silu, aten.silu)
    _define("gelu", "input approximate=None", F.gelu, aten.gelu)
    _define("sum", "input dim=None keepdim=False dtype=None", torch.sum, aten.sum, methods="sum")
    _define("repeat", "input *repeats", torch.tile, aten.repeat, methods="repeat tile")
    _define("repeat_interleave", "input repeats dim=None output_size=None", torch.repeat_interleave, aten.repeat_interleave,
            methods="repeat_interleave")  # fmt: skip
    _define("embedding", "weight indices", torch.embedding, aten.embedding)
    _define("embedding", "indices weight", F.embedding)
    for name in ("tanh", "sigmoid", "exp", "sqrt", "rsqrt", "sin", "cos", "abs", "relu"):
        _define(name, "input", getattr(torch, name), getattr(aten, name), methods=name)
    for name in ("conv1d", "conv2d", "conv3d"):
        _define(name, "input weight bias=None", getattr(F, name), getattr(aten, name))


def _define_views() -> None:
    # All become a reshape to the traced shape, so their different parameters need not be understood.
    _define("reshape", "input *shape", torch.reshape, aten.view, aten.reshape, aten._unsafe_view, aten.unsqueeze, aten.squeeze,
            aten.flatten, aten.unflatten, torch.flatten, torch.unflatten, torch.unsqueeze, torch.squeeze, torch.ravel,
            methods="reshape view flatten unflatten unsqueeze squeeze view_as reshape_as ravel")  # fmt: skip
    _define("copy", "input memory_format=None", torch.clone, aten.clone, aten.contiguous, aten.alias,
            methods="contiguous clone")  # fmt: skip
    _define("permute", "input *dims", torch.permute, aten.permute, methods="permute")
    _define("transpose", "input dim0 dim1", torch.transpose, torch.swapaxes, torch.swapdims, aten.transpose,
            methods="transpose swapaxes swapdims")  # fmt: skip
    _define(
        "movedim", "input source destination", torch.movedim, torch.moveaxis, aten.movedim, methods="movedim moveaxis"
    )
    _define("t", "input", torch.t, aten.t, methods="t")
    _define("expand", "input *shape", aten.expand, methods="expand expand_as")
    _define("getattr", "input name", getattr)
    for name, overload in (("T", aten.numpy_T), ("mT", aten.mT)):  # how Dynamo of torch 2.15 writes the attribute
        _define("getattr", "input", overload, name=name)
    _define("getitem", "input index", operator.getitem, methods="__getitem__")
    _define("slice", "input dim=0 start=None end=None step=1", aten.slice)
    _define("narrow", "input dim start length", torch.narrow, aten.narrow, methods="narrow")
    _define("select", "input dim index", torch.select, aten.select, methods="select")
    _define("chunk", "input chunks dim=0", torch.chunk, aten.chunk, methods="chunk")
    _define("split", "input split dim=0", torch.split, torch.split_with_sizes, aten.split, aten.split_with_sizes,
            methods="split split_with_sizes")  # fmt: skip
    _define("unbind", "input dim=0", torch.unbind, aten.unbind, methods="unbind")
    _define("cat", "tensors dim=0", torch.cat, torch.concat, torch.concatenate, aten.cat)
    _define("stack", "tensors dim=0", torch.stack, aten.stack)
    _define("view_as_complex", "input", torch.view_as_complex, aten.view_as_complex)
    _define("view_as_real", "input", torch.view_as_real, aten.view_as_real)


def _define_casts() -> None:
    _define("cast", "input *rest", aten.to, aten._to_copy, torch.ops.prims.convert_element_type,
            methods="to type type_as float half bfloat16 double cpu cuda")  # fmt: skip


def _define_collectives() -> None:
    # Not a view: looked through, a reader would take the tensor from before the wait.
    _define("wait", "input", torch.ops._c10d_functional.wait_tensor)


_define_arithmetic()
_define_collectives()
_define_layers()
_define_views()
_define_casts()


def is_collective(op: str) -> bool:
    """Whether this is the canonical name of a functional collective, an exchange between ranks."""
    return op.startswith("_c10d_functional.")


def _packet(target: Any) -> Any:
    """The overload packet of an OpOverload, so that mul.Tensor and mul.Scalar share an entry; any other target unchanged."""
    return getattr(target, "overloadpacket", target)


def _own_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target.name()).replace("::", ".").removesuffix(".default").removeprefix("aten.")
    return str(getattr(target, "__name__", target))


_INPLACE_OPERATORS = frozenset(
    getattr(operator, f"i{name}")
    for name in [
        "add",
        "and",
        "concat",
        "floordiv",
        "lshift",
        "matmul",
        "mod",
        "mul",
        "or",
        "pow",
        "rshift",
        "sub",
        "truediv",
        "xor",
    ]
) | {operator.setitem, operator.delitem}


def _writes(node: Node, spelling: _Spelling | None) -> tuple[Any, ...]:
    """The values that the node modifies in place."""
    # Also for targets that the table does not know: a write that is missed makes every rewrite around it wrong.
    written = [value for value in _written_arguments(node, spelling) if value is not None]
    return tuple(value for value in tree_leaves(written) if isinstance(value, Node)) if written else ()


def _written_arguments(node: Node, spelling: _Spelling | None) -> Iterator[Any]:
    first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("self"))
    name = str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))
    # Methods and plain functions have no schema that says what they write. PyTorch's naming is all there is.
    if name.endswith("_") and not name.endswith("__"):
        yield first
    if name == "__setitem__" or (spelling is not None and spelling.inplace):
        yield first
    if node.op == "call_method":
        return
    if node.target in _INPLACE_OPERATORS or _asks_for_inplace(node):
        yield first
    yield node.kwargs.get("out")
    for schema in _schemas(node.target):
        for index, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)


def _asks_for_inplace(node: Node) -> bool:
    """Whether a function of torch.nn.functional was called with `inplace=True`, by position or by name."""
    if node.kwargs.get("inplace") is True:
        return True
    if True not in node.args or getattr(node.target, "__module__", "") != "torch.nn.functional":
        return False
    names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    return "inplace" in names and node.args[names.index("inplace") :][:1] == (True,)


def _schemas(target: Any) -> list[Any]:
    """Schemas of an overload, or of all overloads of a packet."""
    if isinstance(target, torch._ops.OpOverload):
        return [target._schema]
    if isinstance(target, torch._ops.OpOverloadPacket):
        # Which overload a packet calls is decided at the call, so one that may write counts.
        return [getattr(target, name)._schema for name in target.overloads()]
    return []


def _bind(spelling: _Spelling, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound = dict(spelling.fixed)
    for position, name in enumerate(spelling.params):
        if position >= len(args):
            break
        if name == spelling.gathers:
            rest = args[position:]
            bound[name] = tuple(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else tuple(rest)
            break
        bound[name] = args[position]
    for name, value in kwargs.items():
        bound[name if name in spelling.params else _ALIASES.get(name, name)] = value
    return bound


def read(node: Node) -> Fact:
    """What `node` does. An unknown target keeps its own name. A placeholder or output is named by its fx opcode."""
    if node.op not in ("call_function", "call_method"):
        return Fact(node.op, {}, {}, ())
    lookup: Callable[[Any], _Spelling | None] = _BY_METHOD.get if node.op == "call_method" else _BY_TARGET.get  # type: ignore[assignment]
    try:
        spelling = lookup(_packet(node.target))
    except TypeError:  # an unhashable callable
        spelling = None
    writes = _writes(node, spelling)
    if spelling is None:
        return Fact(_own_name(node.target), {}, {}, writes)
    return Fact(spelling.op, _bind(spelling, node.args, node.kwargs), spelling.defaults, writes)
