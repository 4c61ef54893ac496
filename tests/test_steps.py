import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fluxrewrite.steps import Lanes, Permute, Reshape, Select, Slice, same_dim, same_shape, size_of


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


@st.composite
def views(draw):
    """A shape whose last axis is tracked, and random views of it."""
    last = draw(st.sampled_from([6, 12, 24]))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), last)
    return shape, draw(
        st.lists(
            st.tuples(st.sampled_from(["split", "merge", "turn", "slice", "select"]), st.integers(0, 99)), max_size=5
        )
    )


def apply(tensor, kind, seed):
    """(view, step) of a random view of `tensor`, or None where it does not apply."""
    rank, last = tensor.dim(), tensor.shape[-1]
    if kind == "split" and rank < 6:
        factor = [f for f in (2, 3) if last % f == 0]
        if factor:
            out = tensor.unflatten(-1, (factor[seed % len(factor)], -1))
            return out, Reshape(tuple(out.shape))
    if kind == "merge" and rank > 3:
        out = tensor.flatten(-2)
        return out, Reshape(tuple(out.shape))
    if kind == "turn":
        dims = torch.randperm(rank, generator=torch.Generator().manual_seed(seed)).tolist()
        return tensor.permute(dims), Permute(tuple(dims))
    if kind == "slice" and last > 1:
        start, step = seed % (last - 1), 1 + seed % 2
        out = tensor[..., start::step]
        return out, Slice(rank - 1, start, out.shape[-1], step)
    if kind == "select" and rank > 1:
        dim = seed % rank
        index = seed % tensor.shape[dim]
        return tensor.select(dim, index), Select(dim, index)
    return None


@settings(max_examples=200, deadline=None)
@given(views())
def test_lanes_follow_random_views(case):
    """What Lanes say of a chain of views is what the views do to the numbers of the tracked axis; or they say nothing."""
    shape, chain = case
    tensor = torch.arange(shape[-1]).expand(shape)
    lanes = Lanes.of(shape)
    for kind, seed in chain:
        found = apply(tensor, kind, seed)
        if found is None:
            continue
        tensor, step = found
        lanes = lanes.apply(step)
        if lanes is None:
            return
        assert lanes.sizes == tuple(tensor.shape)
        expected = torch.full(tuple(tensor.shape), lanes.offset)
        for axis, stride in enumerate(lanes.strides):
            positions = torch.arange(tensor.shape[axis]) * stride
            expected = expected + positions.view([-1 if a == axis else 1 for a in range(tensor.dim())])
        assert torch.equal(tensor, expected)
        if lanes.block is not None:
            start, length = lanes.block
            assert sorted(set(tensor.flatten().tolist())) == list(range(start, start + length))


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (Slice(1, 0, 2), "tokens are left out"),
        (Select(0, 0), "a batch is picked"),
        (Reshape((2, 5 * 12)), "tokens and features are mixed"),
    ],
)
def test_other_axes_must_stay_whole(step, why):
    assert Lanes.of((2, 5, 12)).apply(step) is None, why


def test_where_the_other_axes_went_is_known():
    lanes = Lanes.of((4, 4, 12)).apply(Permute((1, 0, 2)))
    assert lanes.axes == (1, 0, 2)
    lanes = lanes.apply(Reshape((4, 4, 3, 4)))
    assert lanes.axes == (1, 0, 2, 2)
    assert lanes.apply(Select(2, 1)).block == (4, 4)
