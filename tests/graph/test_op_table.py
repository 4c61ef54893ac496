import operator

import pytest
import torch
import torch.nn.functional as F
from torch.fx import Graph

from fluxrewrite.graph.op_table import read

aten = torch.ops.aten


def node(target, *args, **kwargs):
    graph = Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    given = {"x": x, "y": y}
    args = [given.get(a, a) if isinstance(a, str) else a for a in args]
    kwargs = {k: given.get(v, v) if isinstance(v, str) else v for k, v in kwargs.items()}
    make = graph.call_method if isinstance(target, str) else graph.call_function
    return make(target, tuple(args), kwargs), x, y


SPELLINGS = {
    "mul": [torch.mul, operator.mul, "mul", aten.mul.Tensor, aten.mul.Scalar, torch.multiply],
    "add": [torch.add, operator.add, "add", aten.add.Tensor],
    "sub": [torch.sub, operator.sub, "sub", aten.sub.Tensor, torch.subtract],
    "div": [torch.div, operator.truediv, "div", "true_divide", aten.div.Tensor],
    "matmul": [torch.matmul, operator.matmul, torch.bmm, "bmm", "__matmul__", aten.bmm.default, aten.mm.default],
}


@pytest.mark.parametrize(("op", "target"), [(op, t) for op, targets in SPELLINGS.items() for t in targets])
def test_one_name_and_the_same_arguments(op, target):
    made, x, y = node(target, "x", "y")
    fact = read(made)
    assert fact.op == op
    assert (fact.args["input"], fact.args["other"]) == (x, y)
    assert fact.writes == ()


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (F.linear, ("x", "y"), {}),
        (F.linear, (), {"weight": "y", "input": "x"}),
        (torch._C._nn.linear, ("x",), {"weight": "y", "bias": None}),
        (aten.linear.default, ("x", "y"), {}),
    ],
)
def test_positions_and_keywords_bind_alike(target, args, kwargs):
    made, x, y = node(target, *args, **kwargs)
    fact = read(made)
    assert (fact.op, fact.args["input"], fact.args["weight"], fact.args.get("bias")) == ("linear", x, y, None)


def test_rsub_swaps_its_operands():
    made, x, y = node(torch.rsub, "x", "y")
    fact = read(made)
    assert (fact.op, fact.args["input"], fact.args["other"]) == ("sub", y, x)


@pytest.mark.parametrize("args", [("x", 2, 3), ("x", (2, 3)), ("x", [2, 3])])
def test_sizes_are_gathered(args):
    assert read(node("permute", *args)[0]).args["dims"] == (2, 3)


def test_where_as_a_method():
    made, x, y = node("where", "x", "y", 0.0)
    assert read(made).args == {"input": x, "condition": y, "other": 0.0}


def test_unknown_targets_keep_their_name_and_bind_nothing():
    fact = read(node(torch.linalg.norm, "x")[0])
    assert fact.op == "linalg_norm"
    assert fact.args == {}
    assert read(node("frobnicate", "x")[0]).op == "frobnicate"


WRITERS = [
    ("add_", ("x", "y"), {}),
    ("__setitem__", ("x", 0, "y"), {}),
    (operator.iadd, ("x", "y"), {}),
    (operator.ixor, ("x", "y"), {}),
    (operator.setitem, ("x", 0, "y"), {}),
    (F.silu, ("x", True), {}),
    (F.silu, ("x",), {"inplace": True}),
    (torch.relu_, (), {"input": "x"}),
    (torch.mul, ("y", "y"), {"out": "x"}),
    (aten.add_.Tensor, ("x", "y"), {}),
    (aten.copy_, ("x", "y"), {}),
]


@pytest.mark.parametrize(("target", "args", "kwargs"), WRITERS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_writes_are_seen(target, args, kwargs):
    made, x, _ = node(target, *args, **kwargs)
    assert x in read(made).writes


def test_what_does_not_write():
    for target, args, kwargs in [
        (F.silu, ("x", False), {}),
        ("__add__", ("x", "y"), {}),
        (F.dropout, ("x", 0.1, True), {}),
    ]:
        assert read(node(target, *args, **kwargs)[0]).writes == ()
