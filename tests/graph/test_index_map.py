"""Which elements a chain of views exposes, told without running it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fluxrewrite.graph.index_map import Elements, pure_reshape, viewed
from fluxrewrite.graph.views import Cast, Expand, Permute, Reshape, Select, Slice


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
    seen = Elements.of(shape)
    for kind, seed in chain:
        found = apply(tensor, kind, seed)
        if found is None:
            continue
        tensor, step = found
        seen = seen.apply(step)
        lanes = seen and seen.lanes()
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
    assert Elements.of((2, 5, 12)).apply(step).lanes() is None, why


def test_where_the_other_axes_went_is_known():
    seen = Elements.of((4, 4, 12)).apply(Permute((1, 0, 2)))
    assert seen.lanes().axes == (1, 0, 2)
    seen = seen.apply(Reshape((4, 4, 3, 4)))
    assert seen.lanes().axes == (1, 0, 2, 2)
    assert seen.apply(Select(2, 1)).lanes().block == (4, 4)


def test_axes_that_are_merged_and_split_again_stay_separate():
    seen = viewed((2, 5, 12), [Reshape((10, 12)), Reshape((120,)), Reshape((2, 5, 4, 18 // 6)), Reshape((2, 5, 3, 4))])
    assert seen.lanes().axes == (0, 1, 2, 2)
    assert seen.lanes().strides == (0, 0, 4, 1)


@st.composite
def any_views(draw):
    """A shape and random views of it, of every kind."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    kinds = st.sampled_from(["reshape", "turn", "slice", "select", "new", "cast"])
    return shape, draw(st.lists(st.tuples(kinds, st.integers(0, 999)), max_size=6))


def any_view(tensor, kind, seed):
    """(view, step), or None where it does not apply."""
    rank = tensor.dim()
    dim = seed % max(rank, 1)
    if kind == "cast":
        return tensor, Cast(True)
    if kind == "new":
        out = tensor.unsqueeze(dim)
    elif kind == "reshape":
        total, shape = tensor.numel(), []
        while total > 1:
            factor = [f for f in (2, 3, 4, 6, total) if total % f == 0][seed % 2]
            shape, total, seed = [*shape, factor], total // factor, seed // 2 + 1
        out = tensor.reshape(shape)
    elif not rank:
        return None
    elif kind == "turn":
        dims = torch.randperm(rank, generator=torch.Generator().manual_seed(seed)).tolist()
        return tensor.permute(dims), Permute(tuple(dims))
    elif kind == "select":
        index = seed % tensor.shape[dim]
        return tensor.select(dim, index), Select(dim, index)
    else:
        start, by = seed % tensor.shape[dim], 1 + seed % 2
        out = tensor.narrow(dim, start, tensor.shape[dim] - start)
        out = out[(*[slice(None)] * dim, slice(None, None, by))]
        return out, Slice(dim, start, out.shape[dim], by)
    return out, Reshape(tuple(out.shape))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(any_views())
def test_elements_follow_random_views(case):
    """What the runs say is where the numbers of the tensor went; two chains are the same when their numbers are."""
    shape, chain = case
    tensor = whole = torch.arange(torch.Size(shape).numel()).view(shape)
    steps = []
    for kind, seed in chain:
        found = any_view(tensor, kind, seed)
        if found is not None:
            tensor, step = found
            steps.append(step)
    seen = viewed(shape, steps)
    if seen is None:
        return
    assert seen.shape == tuple(tensor.shape)
    assert torch.equal(numbers(seen), tensor)
    assert seen.whole == (tensor.shape == whole.shape and torch.equal(tensor, whole))
    if tensor.numel() == whole.numel():
        assert pure_reshape(shape, steps, tensor.shape) == torch.equal(tensor, whole.reshape(tensor.shape))
    if seen.permutation is not None:
        assert torch.equal(whole.permute(seen.permutation), tensor)


def numbers(seen):
    """What the runs say is seen of a tensor that counts its elements."""
    strides = torch.empty(seen.source, device="meta").stride()
    found = torch.full((), sum(o * s for o, s in zip(seen.offsets, strides, strict=True)))
    for runs in seen.runs:
        for run in runs:
            found = found.unsqueeze(-1) + torch.arange(run.size) * run.stride * strides[run.axis]
    return found.reshape(seen.shape)


def test_axes_of_size_one_are_paired_in_order():
    assert viewed((2, 1, 3), [Permute((0, 2, 1))]).permutation == (0, 2, 1)
    assert viewed((1, 1, 3), [Permute((1, 0, 2))]).whole
    assert viewed((2, 1, 3), [Reshape((2, 3))]).permutation is None


def symbol():
    source = LocalSource("x")  # torch 2.9 names a symbol after the tensor's source alone
    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    return mode.from_tensor(torch.empty(6), symbolic_context=context, source=source).shape[0]


def test_symbolic_sizes_are_followed_where_they_are_certain():
    n = symbol()
    assert viewed((2, n, 12), [Reshape((2 * n, 12)), Reshape((2 * n, 3, 4)), Reshape((2, n, 3, 4))]).lanes().axes == (
        0,
        1,
        2,
        2,
    )
    assert viewed((2, n, 12), [Permute((0, 2, 1)), Permute((0, 2, 1))]).whole
    assert viewed((2, n, 12), [Slice(1, 1, n - 1)]).lanes() is None
    assert viewed((n, 12), [Reshape((2, n // 2, 12))]) is None


def test_views_that_cannot_be_mapped():
    assert viewed((2, 3), [Expand((4, 2, 3))]) is None
    assert viewed((2, 3), [Expand((2, 3))]).whole
    assert viewed((4, 3), [Permute((1, 0)), Reshape((2, 6)), Slice(1, 1, 4)]) is None
    assert not pure_reshape((2, 3), [Permute((1, 0)), Reshape((6,))], (6,))


def test_parts_of_joined_axes_are_mapped_only_if_the_inner_axes_stay_whole():
    turned = viewed((4, 3), [Permute((1, 0)), Reshape((12,))])
    assert turned.apply(Slice(0, 4, 8)) is not None
    for step in (Slice(0, 2, 4), Slice(0, 0, 6), Slice(0, 0, 4, 2)):
        assert turned.apply(step) is None
    n = symbol()
    assert viewed((2, n, 12), [Reshape((2 * n, 12)), Select(0, 3)]) is None
    assert viewed((2, n, 12), [Permute((1, 0, 2)), Reshape((2 * n, 12)), Slice(0, 0, n)]) is None


def test_an_axis_of_one_is_sliced_whole_or_not_at_all():
    assert viewed((1, 3), [Slice(0, 0, 1)]).whole
    assert viewed((1, 3), [Slice(0, 1, 1)]) is None
    assert viewed((1, 3), [Slice(0, 0, 0)]) is None


def test_a_reshape_has_all_elements():
    assert viewed((2, 3), [Reshape((2,))]) is None


def test_part_of_an_axis_is_no_permutation_of_it():
    assert viewed((4, 3), [Slice(0, 0, 2)]).permutation is None


def test_one_position_is_one_however_it_is_taken():
    assert viewed((4, 3), [Slice(0, 2, 1)]).same(viewed((4, 3), [Select(0, 2), Reshape((1, 3))]))


def test_views_of_other_shapes_or_other_parts_differ():
    assert not viewed((2, 3), []).same(viewed((2, 3), [Reshape((2, 3, 1))]))
    assert not viewed((2, 3), [Reshape((2, 1, 3))]).same(viewed((2, 3), []))
    wide = viewed((4, 4), [Slice(0, 0, 2), Reshape((8,))])
    tall = viewed((4, 4), [Slice(1, 0, 2), Reshape((8,))])
    assert not wide.same(tall)
