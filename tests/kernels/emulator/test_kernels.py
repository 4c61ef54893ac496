"""Whole kernels: tiled matmul of any shape, and flash attention of one head."""

from __future__ import annotations

import time

import ml_dtypes
import numpy as np
import pytest
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import jit, simulate
from fluxrewrite.kernels.emulator import language as nl
from hypothesis import given, settings
from hypothesis import strategies as st


@jit
def tiled_matmul(lhs_t, rhs, tile_k, tile_m, tile_n):
    (k, m), n = lhs_t.shape, rhs.shape[1]
    out = nl.ndarray((m, n), nl.float32, nl.shared_hbm)
    for i in range(0, m, tile_m):
        for j in range(0, n, tile_n):
            rows, columns = min(tile_m, m - i), min(tile_n, n - j)
            total = nl.ndarray((rows, columns), nl.float32, nl.psum)
            for p in range(0, k, tile_k):
                depth = min(tile_k, k - p)
                left = nl.ndarray((depth, rows), lhs_t.dtype)
                right = nl.ndarray((depth, columns), rhs.dtype)
                nisa.dma_copy(left, lhs_t[p : p + depth, i : i + rows])
                nisa.dma_copy(right, rhs[p : p + depth, j : j + columns])
                nisa.nc_matmul(total, left, right, accumulate=p > 0)
            done = nl.ndarray((rows, columns), nl.float32)
            nisa.tensor_copy(done, total)
            nisa.dma_copy(out[i : i + rows, j : j + columns], done)
    return out


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 300), st.integers(1, 200), st.integers(1, 600)),
    tiles=st.tuples(st.integers(16, 128), st.integers(16, 128), st.integers(64, 512)),
    low=st.booleans(),
)
def test_any_tiling_of_a_matmul(sizes, tiles, low):
    rng = np.random.default_rng(0)
    dtype = ml_dtypes.bfloat16 if low else np.float32
    a = rng.standard_normal((sizes[0], sizes[1])).astype(dtype)
    b = rng.standard_normal((sizes[0], sizes[2])).astype(dtype)
    run = simulate(tiled_matmul)(a, b, *tiles)
    expected = a.astype(np.float64).T @ b.astype(np.float64)
    np.testing.assert_allclose(run.outputs, expected, rtol=1e-4, atol=1e-3)
    assert run.profile.macs == sizes[0] * sizes[1] * sizes[2]
    assert max(r.busy_us for r in run.profile.table()) <= run.profile.latency_us


def _flash_step(q, k, v, top, total, acc):
    """One 128 x 128 tile of scores, folded into the running maximum, sum and result."""
    scores = nl.ndarray((128, 128), nl.float32, nl.psum)
    nisa.nc_matmul(scores, q, k, accumulate=False)
    here, new, negative = (nl.ndarray((128, 1), nl.float32) for _ in range(3))
    nisa.tensor_reduce(here, nl.maximum, scores, 1)
    nisa.tensor_tensor(new, top, here, nl.maximum)
    nisa.tensor_scalar(negative, new, nl.multiply, -1.0)
    p, rows, decay = nl.ndarray((128, 128), v.dtype), nl.ndarray((128, 1), nl.float32), nl.ndarray((128, 1), nl.float32)
    nisa.activation_reduce(p, nl.exp, scores, nl.add, rows, bias=negative)
    nisa.activation(decay, nl.exp, top, bias=negative)
    nisa.scalar_tensor_tensor(total, total, nl.multiply, decay, nl.add, rows)
    turned, pt = nl.ndarray((128, 128), v.dtype, nl.psum), nl.ndarray((128, 128), v.dtype)
    nisa.nc_transpose(turned, p)
    nisa.tensor_copy(pt, turned)
    part = nl.ndarray((128, v.shape[-1]), nl.float32, nl.psum)
    nisa.nc_matmul(part, pt, v, accumulate=False)
    nisa.scalar_tensor_tensor(acc, acc, nl.multiply, decay, nl.add, part)
    nisa.tensor_copy(top, new)


@jit
def flash(q_t, k_t, v):
    """Attention of one head: q_t and k_t [d, S], v [S, d], S a multiple of 128."""
    d, s = q_t.shape
    out = nl.ndarray((s, d), v.dtype, nl.shared_hbm)
    q, k, values = nl.load(q_t), nl.load(k_t), nl.ndarray((128, s // 128, d), v.dtype)
    nisa.dma_copy(values, v.reshape_dim(0, (s // 128, 128)).permute((1, 0, 2)))
    for i in range(s // 128):
        top, total = nl.full((128, 1), -3e38, nl.float32), nl.zeros((128, 1), nl.float32)
        acc, done = nl.zeros((128, d), nl.float32), nl.ndarray((128, d), v.dtype)
        for j in range(s // 128):
            part = slice(128 * j, 128 * j + 128)
            _flash_step(q[:, 128 * i : 128 * i + 128], k[:, part], values[:, j, :], top, total, acc)
        nisa.reciprocal(total, total)
        nisa.tensor_scalar(done, acc, nl.multiply, total)
        nisa.dma_copy(out[128 * i : 128 * i + 128], done)
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (ml_dtypes.bfloat16, 1e-2)])
def test_one_head_of_768_tokens_is_right_and_quick(rng, dtype, tolerance):
    q, k, v = (rng.standard_normal((768, 128)).astype(dtype) for _ in range(3))
    q = (q * dtype(128**-0.5)).astype(dtype)
    start = time.perf_counter()
    run = simulate(flash)(np.ascontiguousarray(q.T), np.ascontiguousarray(k.T), v)
    assert time.perf_counter() - start < 5
    scores = q.astype(np.float64) @ k.astype(np.float64).T
    p = np.exp(scores - scores.max(1, keepdims=True))
    expected = p @ v.astype(np.float64) / p.sum(1, keepdims=True)
    assert np.linalg.norm(run.outputs - expected) <= tolerance * np.linalg.norm(expected)
    assert run.profile.engine("tensor").instructions == 3 * 36


def test_long_sequences_profile_without_numerics():
    start = time.perf_counter()
    shape = np.broadcast_to(np.zeros((), ml_dtypes.bfloat16), (128, 1536))
    run = simulate(flash, numerics=False)(shape, shape, shape.T)
    assert time.perf_counter() - start < 5
    assert run.profile.macs == 2 * 1536 * 1536 * 128
    assert run.profile.engine("tensor").instructions == 3 * 144
