import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxrewrite.fusion.strided import StridedRegion, dense
from fluxrewrite.graph import views


def positions(t):
    """Where in memory the elements of a tensor lie."""
    found = torch.full(t.shape, t.storage_offset())
    for dim, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        shape = [1] * t.dim()
        shape[dim] = size
        found = found + (torch.arange(size) * stride).reshape(shape)
    return set(found.flatten().tolist())


def same(region, t):
    assert region.sizes == tuple(t.shape)
    assert [s for n, s in zip(region.sizes, region.strides, strict=True) if n > 1] == [
        s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1
    ]
    assert region.offset == t.storage_offset()
    assert region.elements == len(positions(t))
    assert region.contiguous == t.is_contiguous()


def permute(data, t):
    dims = tuple(data.draw(st.permutations(range(t.dim()))))
    return views.Permute(dims), lambda: t.permute(dims)


def narrow(data, t):
    dim = data.draw(st.integers(0, t.dim() - 1))
    start = data.draw(st.integers(0, t.shape[dim] - 1))
    by = data.draw(st.integers(1, 3))
    size = len(range(start, t.shape[dim], by))
    return views.Slice(dim, start, size, by), lambda: t[(slice(None),) * dim + (slice(start, None, by),)]


def select(data, t):
    dim = data.draw(st.integers(0, t.dim() - 1))
    index = data.draw(st.integers(0, t.shape[dim] - 1))
    return views.Select(dim, index), lambda: t.select(dim, index)


def expand(data, t):
    front = data.draw(st.lists(st.integers(1, 3), max_size=1))
    shape = (*front, *(data.draw(st.integers(1, 3)) if n == 1 else n for n in t.shape))
    return views.Expand(shape), lambda: t.expand(shape)


def reshape(data, t):
    left, shape = t.numel(), []
    while left > 1:
        shape.append(data.draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0])))
        left //= shape[-1]
    if data.draw(st.booleans()):
        shape.insert(data.draw(st.integers(0, len(shape))), 1)
    return views.Reshape(tuple(shape)), lambda: t.view(shape)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_chain_of_views_is_where_torch_says(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    t, region = torch.empty(shape), StridedRegion.whole(shape)
    for _ in range(data.draw(st.integers(1, 4))):
        if t.dim() == 0:
            return
        step, viewed = data.draw(st.sampled_from([permute, narrow, select, expand, reshape]))(data, t)
        region = region.apply(step)
        try:
            after = viewed()
        except RuntimeError:  # torch has no strides for it
            assert not region.strided
            assert not region.contiguous
            assert region.elements == len(positions(t))
            assert math.prod(region.sizes) == t.numel()
            return
        t = after
        assert region.strided
        same(region, t)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equal_keys_are_the_same_elements(data):
    t = torch.empty(4, 6)
    step, viewed = data.draw(st.sampled_from([permute, narrow, select, expand, reshape]))(data, t)
    other, viewed_too = data.draw(st.sampled_from([permute, narrow, select, expand, reshape]))(data, t)
    equal = StridedRegion.whole(t.shape).apply(step).key == StridedRegion.whole(t.shape).apply(other).key
    assert equal == (positions(viewed()) == positions(viewed_too()))


def test_axes_that_were_renamed_are_the_same_elements():
    whole = StridedRegion.whole((6, 8))
    assert whole.key == whole.apply(views.Permute((1, 0))).key == whole.apply(views.Reshape((2, 3, 8))).key
    assert whole.key != whole.apply(views.Slice(0, 0, 3)).key


@pytest.mark.parametrize("sizes", [(), (1,), (2, 3), (2, 1, 3), (0, 3)])
def test_dense_strides_are_torch_s(sizes):
    assert dense(sizes) == torch.empty(sizes).stride()


def test_symbolic_sizes_count_as_traced(trace):
    gm = trace(lambda x: x.transpose(0, 1) + 1, dynamic=True, x=torch.ones(5, 6))
    shape = next(iter(gm.graph.find_nodes(op="call_method"))).meta["example_value"].shape
    assert not isinstance(shape[0], int)
    assert StridedRegion.whole((30,)).apply(views.Reshape(tuple(shape))).sizes == (6, 5)


def test_views_of_broadcast_elements_without_strides():
    """Key heads that are repeated, then transposed: the elements stay as many as they are."""
    heads = StridedRegion.whole((2, 5, 3, 4)).apply(views.Permute((0, 2, 1, 3))).apply(views.Reshape((2, 3, 1, 20)))
    repeated = heads.apply(views.Expand((2, 3, 2, 20))).apply(views.Reshape((2, 6, 5, 4)))
    assert (repeated.strided, repeated.elements) == (False, 120)
    for step in (views.Permute((0, 1, 3, 2)), views.Slice(3, 1, 2), views.Select(2, 0)):
        assert repeated.apply(step).elements == 120
