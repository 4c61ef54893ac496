import torch
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fluxrewrite.graph.shapes import same_dim, same_shape, size_of
from fluxrewrite.graph.views import AxisLanes, Expand, Reshape, Select, same_steps


def symbolic(size, name="x"):
    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    # torch 2.9 names a symbol after the tensor's source alone: without one, two symbols would be one
    source = LocalSource(name)
    return mode.from_tensor(torch.empty(size), symbolic_context=context, source=source).shape[0]


def test_sizes_that_are_equal_for_certain():
    a, b = symbolic(6, "a"), symbolic(7, "b")
    assert same_dim(a, a)
    assert same_dim(a * 2, a + a)
    assert not same_dim(a, b)
    assert not same_dim(a, 6)
    assert same_shape((2, a), (2, a))
    assert not same_shape((2, a), (2, a, 1))


def test_size_as_int_or_text():
    a = symbolic(6)
    assert size_of(7) == 7
    assert size_of(a) == str(a)
    assert a == 6  # a guard: from here on the symbol is known
    assert size_of(a) == 6


def test_steps_that_do_the_same_for_certain():
    assert same_steps([Select(0, 1), Reshape((2, 3))], [Select(0, 1), Reshape((2, 3))])
    assert not same_steps([Select(0, 1)], [Select(0, 2)])
    assert not same_steps([Reshape((2, 3))], [Expand((2, 3))])
    assert not same_steps([Reshape((2, 3))], [Reshape((3, 2))])


def test_a_block_has_a_known_length():
    assert AxisLanes((6,), (1,), (0,), 0).block == (0, 6)
    assert AxisLanes((symbolic(6),), (1,), (0,), 0).block is None
