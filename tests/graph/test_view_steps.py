"""Arguments and shapes of which no step can be read."""

import pytest
import torch
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fluxrewrite.graph.op_table import Fact
from fluxrewrite.graph.views import Permute, Select, cast_steps, holds, unchanged, view_steps

COMPUTED = object()
"""An argument that is no constant of the graph."""


def fact(op, *writes, **args):
    return Fact(op, args, {}, writes)


def symbol():
    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    return mode.from_tensor(torch.empty(6), symbolic_context=context, source=LocalSource("x")).shape[0]


def test_values_of_one_kind_are_held_by_wider_ones_of_that_kind():
    assert holds(torch.float64, torch.bfloat16)
    assert holds(torch.complex128, torch.complex64)
    assert not holds(torch.float16, torch.bfloat16)
    assert not holds(torch.float32, torch.int32)
    assert not holds(torch.complex64, torch.float32)


def test_a_cast_keeps_the_shape():
    assert cast_steps(torch.float32, torch.float64, (2, 3), (2, 3)) is not None
    assert cast_steps(torch.float32, torch.float64, (2, 3), (3, 2)) is None
    assert cast_steps(torch.int32, torch.float64, (2, 3), (2, 3)) is None
    assert cast_steps(torch.int32, torch.int32, (2, 3), (2, 3)) is not None


def test_what_writes_or_joins_is_not_what_it_was_given():
    x = object()
    assert unchanged(fact("dropout", input=x, training=False)) is x
    assert unchanged(fact("dropout", x, input=x, training=False)) is None
    assert unchanged(fact("cat", tensors=x)) is None
    assert unchanged(fact("cat", tensors=(x, x))) is None


def test_a_product_with_one_is_what_it_was_given_unless_one_is_of_another_kind():
    x = object()
    for one, found in ((1, x), (1.0, x), (1 + 0j, None), (2, None)):
        assert unchanged(fact("mul", input=x, other=one)) is found
        assert unchanged(fact("mul", input=one, other=x)) is found


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (fact("permute", dims=(1, COMPUTED)), "an axis is computed"),
        (fact("transpose", dim0=COMPUTED, dim1=1), "an axis is computed"),
        (fact("transpose", dim0=0, dim1=COMPUTED), "an axis is computed"),
        (fact("movedim", source=(COMPUTED,), destination=0), "an axis is computed"),
        (fact("movedim", source=0, destination=(COMPUTED,)), "an axis is computed"),
        (fact("getattr", name="real"), "another attribute"),
        (fact("getitem", index=True), "a mask, which adds an axis"),
        (fact("getitem", index=(0, False)), "a mask, which adds an axis"),
        (fact("getitem", index=slice(COMPUTED, None)), "a start is computed"),
        (fact("getitem", index=slice(None, None, COMPUTED)), "a step is computed"),
    ],
)
def test_arguments_of_which_no_step_is_read(given, why):
    assert view_steps(given, (2, 3), (3, 2)) is None, why


def test_the_attribute_t_turns_matrices_and_mt_the_last_two_axes():
    assert view_steps(fact("getattr", name="T"), (2, 3), (3, 2)) == (Permute((1, 0)),)
    assert view_steps(fact("getattr", name="T"), (2, 3, 4), (4, 3, 2)) is None
    assert view_steps(fact("getattr", name="mT"), (2, 3, 4), (2, 4, 3)) == (Permute((0, 2, 1)),)


def test_positions_from_the_end_of_a_symbolic_axis_are_not_known():
    n = symbol()
    assert view_steps(fact("getitem", index=1), (n, 3), (3,)) == (Select(0, 1),)
    assert view_steps(fact("getitem", index=-1), (n, 3), (3,)) is None
    assert view_steps(fact("getitem", index=slice(-2, None)), (n, 3), (2, 3)) is None
