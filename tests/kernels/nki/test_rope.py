"""The NKI rope kernel under the emulator, against float64."""

from __future__ import annotations

import importlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fluxrewrite.kernels import emulator
from fluxrewrite.kernels.emulator import language as nl

BF16 = ml_dtypes.bfloat16
SIZES = (1, 77, 128, 130, 512, 768, 1000, 1536)


@pytest.fixture(scope="module")
def rope() -> Any:
    with emulator.installed():
        return importlib.import_module("fluxrewrite.kernels.nki.rope").rope


def reference(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool, sequence_dim: int) -> np.ndarray:
    x, cos, sin = (t.astype(np.float64) for t in (x, cos, sin))
    half = x.shape[-1] // 2
    if cos.shape[-1] == half:
        cos, sin = (np.repeat(t, 2, -1) if interleaved else np.concatenate((t, t), -1) for t in (cos, sin))
    cos, sin = (np.expand_dims(t if t.ndim == 3 else t[None], 3 - sequence_dim) for t in (cos, sin))
    turned = np.empty_like(x)
    first, second = (np.s_[..., 0::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., :half], np.s_[..., half:])
    turned[first], turned[second] = -x[second], x[first]
    return x * cos + turned * sin


def inputs(shape: tuple[int, ...], dtype: Any, table: tuple[int, ...], table_dtype: Any) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(sum(shape))
    angle = rng.uniform(-np.pi, np.pi, table)
    return (
        rng.standard_normal(shape).astype(dtype),
        np.cos(angle).astype(table_dtype),
        np.sin(angle).astype(table_dtype),
    )


def check(actual: np.ndarray, expected: np.ndarray, dtype: Any) -> None:
    values = actual.astype(np.float64)
    assert actual.dtype == dtype
    norm = np.linalg.norm(expected)
    assert np.linalg.norm(values - expected) <= (1e-5 if dtype == np.float32 else 1e-2) * norm
    assert np.vdot(values, expected) >= 0.9999 * norm * np.linalg.norm(values)


def run(
    rope: Any,
    tokens: int,
    heads: int,
    size: int,
    dtype: Any,
    interleaved: bool,
    sequence_dim: int,
    half: bool,
    lnc: int,
) -> None:
    shape = (1, tokens, heads, size) if sequence_dim == 1 else (1, heads, tokens, size)
    x, cos, sin = inputs(shape, dtype, (tokens, size // 2 if half else size), np.float32)
    out = emulator.simulate(rope, lnc=lnc)(x, cos, sin, interleaved, sequence_dim).outputs
    check(out, reference(x, cos, sin, interleaved, sequence_dim), dtype)


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("tokens", SIZES)
def test_sizes(rope, tokens, size, dtype):
    case = SIZES.index(tokens) + (size == 64) + 3 * (dtype == BF16)
    heads = (24, 6, 1)[case % 3] if tokens < 512 else (6, 1)[case % 2]
    run(rope, tokens, heads, size, dtype, case % 2 == 0, 1 + case // 2 % 2, case % 5 == 0, 1 + case // 4 % 2)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("sequence_dim", [1, 2])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_forms(rope, interleaved, sequence_dim, half, lnc, dtype):
    run(rope, 130, 6, 64, dtype, interleaved, sequence_dim, half, lnc)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("heads", [1, 6, 24])
@pytest.mark.parametrize("tokens", SIZES)
def test_matrix(rope, tokens, heads, size, dtype):
    for interleaved in (True, False):
        for sequence_dim in (1, 2):
            for half in (True, False):
                run(rope, tokens, heads, size, dtype, interleaved, sequence_dim, half, 1 + half)


@pytest.mark.parametrize("tables", [(77, 128), (2, 77, 64)])
@pytest.mark.parametrize("lnc", [1, 2])
def test_batches_share_tables_or_have_their_own(rope, tables, lnc):
    x, cos, sin = inputs((2, 77, 3, 128), BF16, tables, BF16)
    out = emulator.simulate(rope, lnc=lnc)(x, cos, sin, True, 1).outputs
    check(out, reference(x, cos, sin, True, 1), BF16)


@pytest.mark.parametrize("size", [2, 6, 192, 512])
def test_any_even_head_size(rope, size):
    run(rope, 300, 3, size, np.float32, True, 1, False, 1)


@pytest.mark.parametrize("device", ["trn1", "trn2", "trn3"])
def test_devices_and_output_dtype(rope, device):
    x, cos, sin = inputs((1, 40, 2, 64), BF16, (40, 64), np.float32)
    out = emulator.simulate(rope, device=device)(x, cos, sin, False, 1, nl.float32).outputs
    check(out, reference(x, cos, sin, False, 1), np.float32)


def test_products_are_not_rounded_to_the_input_type(rope):
    x, cos, sin = inputs((1, 130, 2, 64), BF16, (130, 64), np.float32)
    out = emulator.simulate(rope)(x, cos, sin, True, 1, nl.float32).outputs
    np.testing.assert_allclose(out, reference(x, cos, sin, True, 1), rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_where_it_is(rope):
    x, cos, sin = inputs((1, 130, 2, 64), np.float32, (130, 64), np.float32)
    x[0, 5, 1, 3], x[0, 128, 0, 0] = np.nan, np.inf
    out = emulator.simulate(rope)(x, cos, sin, True, 1).outputs
    touched = np.argwhere(~np.isfinite(out))
    assert sorted(map(tuple, touched.tolist())) == [(0, 5, 1, 2), (0, 5, 1, 3), (0, 128, 0, 0), (0, 128, 0, 1)]


def profile(rope: Any, tokens: int, heads: int, lnc: int = 1) -> emulator.Profile:
    x = np.broadcast_to(np.zeros((), BF16), (1, tokens, heads, 128))
    table = np.broadcast_to(np.zeros((), np.float32), (tokens, 128))
    return emulator.simulate(rope, lnc=lnc, numerics=False)(x, table, table, True, 1).profile


@pytest.mark.parametrize("lnc", [1, 2])
def test_nothing_is_moved_twice(rope, lnc):
    assert profile(rope, 768, 24, lnc).dma_bytes == 2 * 768 * 24 * 128 * 2 + 2 * 768 * 128 * 4


@pytest.mark.parametrize(("tokens", "heads", "most"), [(768, 24, 44), (768, 6, 16), (4608, 24, 230)])
def test_modelled_time(rope, tokens, heads, most):
    cost = profile(rope, tokens, heads)
    assert cost.latency_us < most
    if tokens == 4608:
        # Three two-input instructions an element, shared by the two engines that can run them.
        assert min(cost.engine("vector").utilisation, cost.engine("gpsimd").utilisation) > 0.94
        assert profile(rope, tokens, heads, 2).latency_us < 0.53 * cost.latency_us
