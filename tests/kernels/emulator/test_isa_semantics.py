"""What the instructions compute, against plain NumPy."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl
from fluxrewrite.kernels.emulator import simulate

BF16 = ml_dtypes.bfloat16
FP32_MIN = np.finfo(np.float32).min


@pytest.fixture
def x(rng):
    return rng.standard_normal((64, 48)).astype(np.float32)


@pytest.fixture
def y(rng):
    return rng.standard_normal((64, 48)).astype(np.float32)


BINARY = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "greater": np.greater,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
}


@pytest.mark.parametrize("op", BINARY)
def test_tensor_tensor(bench, x, y, op):
    out = bench.compute(lambda d, a, b: nisa.tensor_tensor(d, a, b, getattr(nl, op)), x, y, shape=x.shape)
    np.testing.assert_array_equal(out, BINARY[op](x, y).astype(np.float32))


def test_tensor_tensor_computes_in_float32_and_rounds_once(bench, x, y):
    a, b = x.astype(BF16), y.astype(BF16)
    out = bench.compute(
        lambda d, p, q: nisa.tensor_tensor(d, p, q, nl.multiply), a, b, shape=x.shape, dtype=nl.bfloat16
    )
    expected = (a.astype(np.float32) * b.astype(np.float32)).astype(BF16)
    assert out.dtype == BF16
    np.testing.assert_array_equal(out.view(np.uint16), expected.view(np.uint16))


def test_tensor_tensor_of_int32_is_exact_on_gpsimd_only(bench):
    a = np.full((4, 4), 2**30 + 1, np.int32)
    b = np.full((4, 4), 1, np.int32)
    exact = bench.compute(lambda d, p, q: nisa.tensor_tensor(d, p, q, nl.add), a, b, shape=a.shape, dtype=nl.int32)
    rounded = bench.compute(
        lambda d, p, q: nisa.tensor_tensor(d, p, q, nl.add, engine=nisa.engine.vector),
        a,
        b,
        shape=a.shape,
        dtype=nl.int32,
    )
    assert (exact == 2**30 + 2).all()
    assert (rounded == 2**30).all()


def test_bit_operators(bench, rng):
    a, b = (rng.integers(0, 2**16, (8, 8)).astype(np.int32) for _ in range(2))
    out = bench.compute(lambda d, p, q: nisa.tensor_tensor(d, p, q, nl.bitwise_xor), a, b, shape=a.shape, dtype="int32")
    np.testing.assert_array_equal(out, a ^ b)

    def shift(dst, p, q):
        nisa.tensor_scalar(dst, p, nl.right_shift, 3, op1=nl.bitwise_and, operand1=7)

    out = bench.compute(shift, a, b, shape=a.shape, dtype="int32")
    np.testing.assert_array_equal(out, a >> 3 & 7)


@pytest.mark.parametrize("reverse", [(False, False), (True, False), (False, True)])
def test_tensor_scalar_with_a_constant_and_a_tile(bench, x, reverse):
    s = np.arange(64, dtype=np.float32)[:, None]

    def body(dst, data, tile):
        nisa.tensor_scalar(dst, data, nl.subtract, 2.0, reverse[0], nl.subtract, tile, reverse[1])

    out = bench.compute(body, x, s, shape=x.shape)
    first = 2 - x if reverse[0] else x - 2
    np.testing.assert_array_equal(out, s - first if reverse[1] else first - s)


def test_tensor_scalar_rsqrt_on_gpsimd(bench, x):
    data = np.abs(x) + 1
    out = bench.compute(lambda d, a: nisa.tensor_scalar(d, a, nl.rsqrt, 0.0), data, shape=x.shape)
    np.testing.assert_allclose(out, 1 / np.sqrt(data), rtol=1e-6)


@pytest.mark.parametrize("reverse", [(False, False), (True, True)])
def test_scalar_tensor_tensor(bench, x, y, reverse):
    s = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]

    def body(dst, data, tile, other):
        nisa.scalar_tensor_tensor(dst, data, nl.subtract, tile, nl.subtract, other, *reverse)

    out = bench.compute(body, x, s, y, shape=x.shape)
    np.testing.assert_array_equal(out, y - (s - x) if reverse[0] else (x - s) - y)


@pytest.mark.parametrize(
    ("op", "fn"), [("add", np.add.reduce), ("maximum", np.maximum.reduce), ("multiply", np.multiply.reduce)]
)
@pytest.mark.parametrize("negate", [False, True])
def test_tensor_reduce(bench, x, op, fn, negate):
    out = bench.compute(lambda d, a: nisa.tensor_reduce(d, getattr(nl, op), a, 1, negate), x, shape=(64, 1))
    np.testing.assert_allclose(out[:, 0], -fn(x, axis=1) if negate else fn(x, axis=1), rtol=1e-5)


def test_tensor_reduce_of_some_axes(bench, x):
    def body(dst, a):
        nisa.tensor_reduce(dst, nl.add, a.reshape((64, 4, 3, 4)), (2, 3))

    out = bench.compute(body, x, shape=(64, 4))
    np.testing.assert_allclose(out, x.reshape(64, 4, 12).sum(-1), rtol=1e-5, atol=1e-6)


def test_reciprocal(bench, x):
    out = bench.compute(nisa.reciprocal, x, shape=x.shape)
    np.testing.assert_array_equal(out, 1 / x)


def test_tensor_tensor_scan(bench, x, y):
    out = bench.compute(lambda d, a, b: nisa.tensor_tensor_scan(d, a, b, 0.5, nl.multiply, nl.add), x, y, shape=x.shape)
    state, expected = np.full(64, 0.5, np.float32), np.empty_like(x)
    for i in range(x.shape[1]):
        state = x[:, i] * state + y[:, i]
        expected[:, i] = state
    np.testing.assert_allclose(out, expected, rtol=1e-5)


FUNCTIONS = {
    "exp": np.exp,
    "tanh": np.tanh,
    "square": np.square,
    "copy": lambda v: v,
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "relu": lambda v: np.maximum(v, 0),
    "gelu": lambda v: np.vectorize(lambda t: 0.5 * t * (1 + math.erf(t / math.sqrt(2))))(v),
    "softplus": lambda v: np.log1p(np.exp(v)),
    "sign": np.sign,
}


@pytest.mark.parametrize("op", FUNCTIONS)
def test_activation(bench, x, op):
    s = np.linspace(0.5, 1, 64, dtype=np.float32)[:, None]
    b = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]

    def body(dst, data, scale, bias):
        nisa.activation(dst, getattr(nl, op), data, bias=bias, scale=scale)

    out = bench.compute(body, x, s, b, shape=x.shape)
    np.testing.assert_allclose(out, FUNCTIONS[op](x.astype(np.float64) * s + b), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["rsqrt", "sqrt", "log", "reciprocal"])
def test_activation_within_its_range(bench, x, op):
    data = np.abs(x) + 0.5
    fn = {"rsqrt": lambda v: v**-0.5, "sqrt": np.sqrt, "log": np.log, "reciprocal": np.reciprocal}[op]
    out = bench.compute(lambda d, a: nisa.activation(d, getattr(nl, op), a), data, shape=x.shape)
    np.testing.assert_allclose(out, fn(data), rtol=1e-5, atol=1e-6)


def test_activation_sums_rows_over_several_calls(bench, x, y):
    def kernel(a, b):
        first, second, total = bench.load(a), bench.load(b), nl.ndarray((64, 1), nl.float32)
        out = nl.ndarray(a.shape, nl.float32)
        nisa.activation(out, nl.exp, first, reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.reset_reduce)
        nisa.activation(out, nl.exp, second, reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.reduce, reduce_res=total)
        alone = nl.ndarray((64, 1), nl.float32)
        nisa.activation_reduce(out, nl.exp, first, nl.add, alone)
        return bench.save(total), bench.save(alone)

    both, alone = simulate(kernel)(x, y).outputs
    np.testing.assert_allclose(both[:, 0], np.exp(x).sum(1) + np.exp(y).sum(1), rtol=1e-5)
    np.testing.assert_allclose(alone[:, 0], np.exp(x).sum(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("op", "fn"), [("add", np.add), ("multiply", np.multiply), ("maximum", np.maximum), ("minimum", np.minimum)]
)
def test_tensor_scalar_reduce(bench, x, op, fn):
    def kernel(a):
        data, out = bench.load(a), nl.ndarray(a.shape, nl.float32)
        rows, more, negative = (nl.ndarray((64, 1), nl.float32) for _ in range(3))
        reducer = getattr(nl, op)
        nisa.tensor_scalar_reduce(out, data, nl.add, 1.0, reducer, rows)
        nisa.tensor_scalar_reduce(out, data, nl.add, 2.0, reducer, more, reduce_cmd=nisa.reduce_cmd.reduce)
        nisa.tensor_scalar_reduce(
            out,
            data,
            nl.add,
            1.0,
            reducer,
            negative,
            reduce_cmd=nisa.reduce_cmd.load_reduce,
            reduce_init=0.5,
            reduce_res_negate=True,
        )
        return bench.save(out), bench.save(rows), bench.save(more), bench.save(negative)

    out, rows, more, negative = simulate(kernel)(x).outputs
    np.testing.assert_array_equal(out, x + 1)
    once, twice = fn.reduce(x + 1, axis=1), fn.reduce(x + 2, axis=1)
    np.testing.assert_allclose(rows[:, 0], once, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(more[:, 0], fn(once, twice), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(negative[:, 0], -fn(0.5, once), rtol=1e-4, atol=1e-4)


def test_exponential_on_trn3(bench, x):
    m = x.max(1, keepdims=True)

    def kernel(a, b):
        data, peak = bench.load(a), bench.load(b)
        out, total = nl.ndarray(a.shape, nl.float32), nl.ndarray((64, 1), nl.float32)
        nisa.exponential(out, data, peak, total, nisa.reduce_cmd.reset_reduce)
        return bench.save(out), bench.save(total)

    out, total = simulate(kernel, device="trn3")(x, m).outputs
    np.testing.assert_allclose(out, np.exp(x - m), rtol=1e-5)
    np.testing.assert_allclose(total[:, 0], np.exp(x - m).sum(1), rtol=1e-5)


def test_bn_stats_and_aggr(bench, rng):
    data = rng.standard_normal((16, 700)).astype(np.float32)

    def kernel(a):
        tile, stats, out = bench.load(a), nl.ndarray((16, 2, 6), nl.float32), nl.ndarray((16, 2), nl.float32)
        nisa.bn_stats(stats[:, 0, :], tile[:, 0:512])
        nisa.bn_stats(stats[:, 1, :], tile[:, 512:700])
        nisa.bn_aggr(out, stats)
        return bench.save(out)

    out = simulate(kernel)(data).outputs
    np.testing.assert_allclose(out[:, 0], data.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out[:, 1], data.var(1), rtol=1e-4)


def test_iota_runs_through_its_pattern(bench):
    def body(dst):
        nisa.iota(dst, [[100, 3], [1, 4]], offset=7, channel_multiplier=1000)

    out = bench.compute(body, shape=(8, 12), dtype=nl.int32)
    p, i, j = np.ogrid[0:8, 0:3, 0:4]
    np.testing.assert_array_equal(out, (7 + 1000 * p + 100 * i + j).reshape(8, 12))


def test_affine_select_masks_causally(bench, rng):
    s = rng.standard_normal((32, 32)).astype(np.float32)

    def body(dst, data):
        nisa.affine_select(dst, [[-1, 32]], 1, data, -1e9, cmp_op=nl.greater_equal)

    out = bench.compute(body, s, shape=s.shape)
    np.testing.assert_array_equal(out, np.where(np.tril(np.ones((32, 32))), s, np.float32(-1e9)))


def test_range_select(bench, x):
    low = np.arange(64, dtype=np.float32)[:, None] / 2
    high = low + 20

    def kernel(a, b0, b1):
        out, top = nl.ndarray(a.shape, nl.float32), nl.ndarray((64, 1), nl.float32)
        nisa.range_select(
            out,
            bench.load(a),
            nl.greater_equal,
            nl.less,
            bench.load(b0),
            bench.load(b1),
            reduce_res=top,
            range_start=5,
        )
        return bench.save(out), bench.save(top)

    out, top = simulate(kernel)(x, low, high).outputs
    index = 5 + np.arange(48)[None, :]
    expected = np.where((index >= low) & (index < high), x, FP32_MIN)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(top[:, 0], expected.max(1))


@pytest.mark.parametrize("reverse", [False, True])
def test_selection_by_predicate(bench, x, y, reverse):
    p = (x > 0).astype(np.uint8)

    def kernel(a, b, c):
        picked, out, top = bench.load(b), nl.ndarray(a.shape, nl.float32), nl.ndarray((64, 1), nl.float32)
        predicate, data = bench.load(c), bench.load(a)
        nisa.tensor_copy_predicated(picked, data, predicate, reverse_pred=reverse)
        nisa.select_reduce(out, predicate, data, -2.0, top, nisa.reduce_cmd.reset_reduce, reverse_pred=reverse)
        return bench.save(picked), bench.save(out), bench.save(top)

    picked, out, top = simulate(kernel)(x, y, p).outputs
    keep = (p == 0) if reverse else (p != 0)
    np.testing.assert_array_equal(picked, np.where(keep, x, y))
    np.testing.assert_array_equal(out, np.where(keep, x, np.float32(-2)))
    np.testing.assert_array_equal(top[:, 0], np.where(keep, x, np.float32(-2)).max(1))


@pytest.mark.parametrize(("op", "fn"), [("add", np.sum), ("average", np.mean), ("maximum", np.max)])
def test_tensor_partition_reduce(bench, x, op, fn):
    out = bench.compute(lambda d, a: nisa.tensor_partition_reduce(d, getattr(nl, op), a), x, shape=(1, 48))
    np.testing.assert_allclose(out[0], fn(x, axis=0), rtol=1e-4, atol=1e-5)


def test_stream_shuffle_works_by_quadrant(bench, x):
    mask = [(i + 1) % 32 for i in range(31)] + [255]

    def kernel(a, b):
        dst = bench.load(b)
        nisa.nc_stream_shuffle(dst, bench.load(a), mask)
        return bench.save(dst)

    keep = np.zeros_like(x)
    out = simulate(kernel)(x, keep).outputs
    for p in range(64):
        np.testing.assert_array_equal(out[p], keep[p] if p % 32 == 31 else x[p + 1])
