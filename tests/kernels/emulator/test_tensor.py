"""Views of tensors, against the same views of NumPy arrays."""

from __future__ import annotations

import numpy as np
import pytest
from fluxrewrite.kernels.emulator import HardwareLimit, simulate
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl
from hypothesis import given, settings
from hypothesis import strategies as st

X = np.arange(8 * 6 * 4, dtype=np.float32).reshape(8, 6, 4)


def view_of(make, array=X):
    """``make`` applied to an HBM tensor and to an SBUF tile with the contents of ``array``."""

    def kernel(hbm):
        tile = nl.ndarray(hbm.shape, hbm.dtype)
        nisa.dma_copy(tile, hbm)
        return make(tile).array().copy()

    return simulate(kernel)(array).outputs


@pytest.mark.parametrize(
    ("make", "same"),
    [
        (lambda t: t[:, 1:5:2], lambda a: a[:, 1:5:2]),
        (lambda t: t[2], lambda a: a[2:3]),
        (lambda t: t[..., -1], lambda a: a[..., -1]),
        (lambda t: t[nl.ds(2, 3), 0, :], lambda a: a[2:5, 0, :]),
        (lambda t: t[:, 0, 0], lambda a: a[:, 0, 0:1]),
        (lambda t: t.slice(1, 2, 6, 3), lambda a: a[:, 2:6:3]),
        (lambda t: t.select(2, 1), lambda a: a[:, :, 1]),
        (lambda t: t.permute((0, 2, 1)), lambda a: a.transpose(0, 2, 1)),
        (lambda t: t[:, 0:1].broadcast(1, 3), lambda a: np.repeat(a[:, 0:1], 3, 1)),
        (lambda t: t.expand_dim(2), lambda a: a[:, :, None]),
        (lambda t: t.expand_dim(1).squeeze_dim(1), lambda a: a),
        (lambda t: t.reshape_dim(1, (2, -1)), lambda a: a.reshape(8, 2, 3, 4)),
        (lambda t: t.flatten_dims(1, 2), lambda a: a.reshape(8, 24)),
        (lambda t: t.reshape((8, 3, 8)), lambda a: a.reshape(8, 3, 8)),
        (lambda t: t[:, 0:3].reshape((8, 12)), lambda a: a[:, 0:3].reshape(8, 12)),
        (
            lambda t: t.rearrange(("p", ("a", "b"), "c"), ("p", "b", "c", "a"), {"a": 2}),
            lambda a: a.reshape(8, 2, 3, 4).transpose(0, 2, 3, 1),
        ),
        (lambda t: t.rearrange(("p", "a", "c"), ("p", ("a", "c"))), lambda a: a.reshape(8, 24)),
        (lambda t: t.ap([[24, 8], [1, 4], [8, 3]], offset=1), lambda a: as_strided(a, 1, (8, 4, 3), (24, 1, 8))),
        (lambda t: t[2:].ap([[24, 2], [1, 4]]), lambda a: a[2:4, 0]),
        (lambda t: t.view(nl.int16), lambda a: a.view(np.int16)),
        (lambda t: t.view(nl.uint8).view(nl.float32), lambda a: a),
        (lambda t: t[:, 2:4].view(nl.int32), lambda a: a[:, 2:4].view(np.int32)),
    ],
)
def test_views(make, same):
    np.testing.assert_array_equal(view_of(make), same(X))


def as_strided(a, offset, shape, strides):
    return np.lib.stride_tricks.as_strided(a.reshape(-1)[offset:], shape, [4 * s for s in strides])


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda t: t.permute((1, 0, 2)), HardwareLimit.VIEW),
        (lambda t: t.permute((0, 1)), HardwareLimit.VIEW),
        (lambda t: t.broadcast(1, 2), HardwareLimit.VIEW),
        (lambda t: t[0:1].broadcast(0, 2), HardwareLimit.VIEW),
        (lambda t: t.expand_dim(0), HardwareLimit.VIEW),
        (lambda t: t.squeeze_dim(1), HardwareLimit.VIEW),
        (lambda t: t.reshape((6, 8, 4)), HardwareLimit.VIEW),
        (lambda t: t.reshape((8, 25)), HardwareLimit.VIEW),
        (lambda t: t[:, :, 0:3].reshape((8, 18)), HardwareLimit.VIEW),
        (lambda t: t[:, 0:6:2].flatten_dims(1, 2), HardwareLimit.VIEW),
        (lambda t: t.reshape_dim(1, (4, 2)), HardwareLimit.VIEW),
        (lambda t: t.rearrange(("p", "a"), ("p", "a")), HardwareLimit.VIEW),
        (lambda t: t.rearrange(("p", "a", "b"), ("p", "a")), HardwareLimit.VIEW),
        (
            lambda t: t[:, :, 0:3].view(nl.uint8).view(nl.int32)[:, :, 0:1].permute((0, 2, 1)).view(nl.int16),
            HardwareLimit.VIEW,
        ),
        (lambda t: t.view("float64"), HardwareLimit.DTYPE),
        (lambda t: t.select(1, t), HardwareLimit.UNSUPPORTED),
        (lambda t: t.ap([[24, 8], [1, 4]], vector_offset=t), HardwareLimit.UNSUPPORTED),
        (lambda t: t.indirect(t), HardwareLimit.UNSUPPORTED),
        (lambda t: t.__setitem__(0, 1), HardwareLimit.UNSUPPORTED),
        (lambda t: t["a"], HardwareLimit.UNSUPPORTED),
    ],
)
def test_impossible_views(bench, make, limit):
    bench.refused(lambda: make(nl.ndarray((8, 6, 4), nl.float32)), limit)


def test_hbm_tensors_drop_indexed_dimensions_and_permute_freely():
    def kernel(x):
        return x[1].shape, x[1, 2, 3].shape, x.permute((2, 0, 1)).shape, x[0].get_pattern()

    assert simulate(kernel)(X).outputs == ((6, 4), (1,), (4, 8, 6), [[4, 6], [1, 4]])


def test_low_precision_cannot_be_reinterpreted_when_kept_wide():
    def kernel():
        nl.ndarray((4, 4), nl.bfloat16).view(nl.int16)

    simulate(kernel)()
    with pytest.raises(Exception, match="precise=False"):
        simulate(kernel, precise=False)()


@st.composite
def sliced(draw):
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=4)))
    keys = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        stop = draw(st.integers(start + 1, n))
        keys.append(slice(start, stop, draw(st.integers(1, 3))))
    return shape, tuple(keys)


@settings(max_examples=80, deadline=None)
@given(sliced())
def test_slices_and_their_bounding_boxes(case):
    shape, keys = case
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    def kernel(x):
        view = x[keys]
        return view.array().copy(), view.box()

    out, box = simulate(kernel)(array).outputs
    np.testing.assert_array_equal(out, array[keys])
    touched = np.argwhere(np.isin(array, array[keys]))
    expected = tuple(zip(touched.min(0).tolist(), touched.max(0).tolist(), strict=True))
    assert box == expected or (box is None and array[keys].shape == shape)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_boxes_of_any_pattern_hold_every_element(data):
    shape = (8, 5, 6)
    total = 240
    dims = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), min_size=1, max_size=3))
    reach = sum(s * (n - 1) for s, n in dims)
    offset = data.draw(st.integers(0, max(0, total - 1 - reach)))
    if offset + reach >= total:
        return

    def kernel(x):
        return x.ap([list(d) for d in dims], offset).box()

    box = simulate(kernel)(np.zeros(shape, np.float32)).outputs
    index = np.zeros(1, int) + offset
    for s, n in dims:
        index = (index[:, None] + np.arange(n) * s).reshape(-1)
    for coordinates in zip(*np.unravel_index(index, shape), strict=True):
        assert box is None or all(lo <= c <= hi for c, (lo, hi) in zip(coordinates, box, strict=True))
