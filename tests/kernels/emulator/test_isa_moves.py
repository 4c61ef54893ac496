"""What the Tensor engine, DMA and the conversions compute, against plain NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl
from fluxrewrite.kernels.emulator import simulate

BF16 = ml_dtypes.bfloat16


@pytest.fixture
def x(rng):
    return rng.standard_normal((64, 48)).astype(np.float32)


@pytest.mark.parametrize("types", [(np.float32, np.float32), (BF16, BF16)], ids=["fp32", "bf16"])
def test_matmul_accumulates_in_psum(bench, rng, types):
    a = rng.standard_normal((128, 64)).astype(types[0])
    b = rng.standard_normal((128, 96)).astype(types[1])

    def kernel(p, q):
        left, right, dst = bench.load(p), bench.load(q), nl.ndarray((64, 96), nl.float32, nl.psum)
        for i in range(2):
            nisa.nc_matmul(dst, left[64 * i : 64 * i + 64], right[64 * i : 64 * i + 64], accumulate=i > 0)
        return bench.save(dst)

    out = simulate(kernel)(a, b).outputs
    np.testing.assert_allclose(out, a.astype(np.float64).T @ b.astype(np.float64), rtol=1e-4, atol=1e-4)


def test_matmul_infers_accumulation_and_false_overwrites(bench, rng):
    a, b = (rng.standard_normal((32, 32)).astype(np.float32) for _ in range(2))

    def kernel(p, q):
        left, right, dst = bench.load(p), bench.load(q), nl.ndarray((32, 32), nl.float32, nl.psum)
        nisa.nc_matmul(dst, left, right)
        nisa.nc_matmul(dst, left, right)
        twice = bench.save(dst)
        nisa.nc_matmul(dst, left, right, accumulate=False)
        return twice, bench.save(dst)

    twice, once = simulate(kernel)(a, b).outputs
    np.testing.assert_allclose(twice, 2 * (a.T @ b), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(once, a.T @ b, rtol=1e-5, atol=1e-5)


def test_double_row_contracts_256(bench, rng):
    a = rng.standard_normal((128, 2, 16)).astype(ml_dtypes.float8_e4m3)
    b = rng.standard_normal((128, 2, 24)).astype(ml_dtypes.float8_e4m3)

    def kernel(p, q):
        dst = nl.ndarray((16, 24), nl.float32, nl.psum)
        nisa.nc_matmul(dst, bench.load(p), bench.load(q), perf_mode=nisa.matmul_perf_mode.double_row)
        return bench.save(dst)

    expected = np.einsum("kim,kin->mn", a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(simulate(kernel)(a, b).outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "buffer", "engine"),
    [((128, 96), nl.psum, "tensor"), ((32, 16), nl.sbuf, "vector"), ((20, 30), nl.psum, "unknown")],
)
def test_transpose_keeps_every_bit(bench, rng, shape, buffer, engine):
    data = rng.standard_normal(shape).astype(BF16)
    data[0, 0] = np.nan
    out = bench.compute(
        lambda d, a: nisa.nc_transpose(d, a, engine=getattr(nisa.engine, engine)),
        data,
        shape=shape[::-1],
        dtype=nl.bfloat16,
        out_buffer=buffer,
    )
    np.testing.assert_array_equal(out.view(np.uint16), data.T.copy().view(np.uint16))


def test_matmul_transpose_mode(bench, rng):
    data = rng.standard_normal((64, 32)).astype(np.float32)

    def kernel(a):
        dst = nl.ndarray((32, 64), nl.float32, nl.psum)
        nisa.nc_matmul(dst, bench.load(a), nl.shared_identity_matrix(64, nl.float32), is_transpose=True)
        return bench.save(dst)

    np.testing.assert_array_equal(simulate(kernel)(data).outputs, data.T)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((96, 80), (1, 0)), ((4, 6, 8), (2, 1, 0)), ((4, 5, 6, 8), (3, 1, 2, 0))],
    ids=["2d", "3d", "4d"],
)
def test_dma_transpose(bench, rng, shape, axes):
    data = rng.standard_normal(shape).astype(np.float32)

    def kernel(a):
        dst = nl.ndarray(tuple(shape[i] for i in axes), nl.float32)
        nisa.dma_transpose(dst, a)
        return bench.save(dst)

    np.testing.assert_array_equal(simulate(kernel)(data).outputs, data.transpose(axes))


def test_dma_converts_and_reshapes(bench, x):
    def kernel(a):
        tile = nl.ndarray((32, 96), nl.bfloat16)
        nisa.dma_copy(tile, a.reshape((32, 96)))
        return bench.save(tile)

    np.testing.assert_array_equal(simulate(kernel)(x).outputs, x.reshape(32, 96).astype(BF16))


@pytest.mark.parametrize(
    ("value", "stored"), [(2.5, 2), (3.5, 4), (-1.0, 0), (300.0, 255), (np.nan, 0)], ids=lambda v: str(v)
)
def test_floats_become_integers_by_rounding_to_even_and_saturating(bench, value, stored):
    data = np.full((2, 2), value, np.float32)
    out = bench.compute(nisa.tensor_copy, data, shape=(2, 2), dtype=nl.uint8)
    assert (out == stored).all()


def test_copies_of_one_type_are_bit_exact(bench):
    data = np.full((2, 2), 2**31 - 1, np.int32)
    out = bench.compute(nisa.tensor_copy, data, shape=(2, 2), dtype=nl.int32)
    np.testing.assert_array_equal(out, data)


def test_tf32_keeps_ten_bits(bench):
    data = np.array([[1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, np.inf]], np.float32)
    out = bench.compute(nisa.tensor_copy, data, shape=(1, 4), dtype=nl.tfloat32)
    np.testing.assert_array_equal(out, [[1 + 2**-10, 1, 1 + 2**-9, np.inf]])
