"""The attention kernel in the emulator against float64 NumPy."""

from __future__ import annotations

import importlib
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fluxrewrite.kernels import emulator

BF16, FP32, FP16 = ml_dtypes.bfloat16, np.float32, np.float16
TOLERANCE = {BF16: 1e-2, FP16: 2e-3, FP32: 1e-5}


@pytest.fixture(scope="module")
def attention() -> Any:
    with emulator.installed():
        return importlib.import_module("fluxrewrite.kernels.nki.attention").attention


def expected(q: Any, k: Any, v: Any, mask: Any, scale: float, causal: bool) -> np.ndarray:
    """Attention in float64, [B, H, S, D]; rows without keys are 0."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.astype(np.float64) for x in (q, np.repeat(k, group, 1), np.repeat(v, group, 1)))
    scores = np.einsum("bhsd,bhld->bhsl", q, k) * scale
    if mask is not None:
        scores = scores + mask.astype(np.float64)
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(top < -1e28, 0, top))
    total = weights.sum(-1, keepdims=True)
    return np.einsum("bhsl,bhld->bhsd", weights / np.where(total == 0, 1, total), v)


def check(
    kernel: Any,
    sizes: tuple[int, int, int, int],
    dtype: Any,
    *,
    keys: int = 0,
    kv_heads: int = 0,
    mask: Any = None,
    causal: bool = False,
    layouts: tuple[str, str] = ("bhsd", "bhsd"),
    lnc: int = 1,
    boost: float = 1.0,
    scale: float | None = None,
    tolerance: float | None = None,
    value_size: int = 0,
) -> Any:
    """Run (B, S, H, D) and compare; returns the run."""
    batch, length, heads, size = sizes
    rng = np.random.default_rng(3)
    keys, kv_heads = keys or length, kv_heads or heads
    q = (rng.standard_normal((batch, heads, length, size)) * boost).astype(dtype)
    k = (rng.standard_normal((batch, kv_heads, keys, size)) * boost).astype(dtype)
    v = rng.standard_normal((batch, kv_heads, keys, value_size or size)).astype(dtype)
    scale = size**-0.5 if scale is None else scale
    wanted = expected(q, k, v, mask, scale, causal)
    swap = (0, 2, 1, 3)
    given = [np.ascontiguousarray(x.transpose(swap)) if layouts[0] == "bshd" else x for x in (q, k, v)]
    run = emulator.simulate(kernel, lnc=lnc)(*given, mask, scale, causal, *layouts)
    got = run.outputs.transpose(swap) if layouts[1] == "bshd" else run.outputs
    assert got.dtype == dtype
    got = got.astype(np.float64)
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - wanted) <= (tolerance or TOLERANCE[dtype]) * np.linalg.norm(wanted)
    cosine = (got * wanted).sum() / max(np.linalg.norm(got) * np.linalg.norm(wanted), 1e-300)
    assert cosine >= 0.9999 or not wanted.any()
    return run


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("length", [1, 77, 128, 130, 512, 768])
def test_any_length(attention: Any, length: int, size: int, dtype: Any) -> None:
    check(attention, (1, length, 1, size), dtype)


@pytest.mark.parametrize(("length", "size", "dtype"), [(1000, 64, BF16), (1536, 128, BF16), (1000, 128, FP32)])
def test_long_sequences(attention: Any, length: int, size: int, dtype: Any) -> None:
    check(attention, (1, length, 1, size), dtype)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("keys", [1, 65, 1700, 3300])
def test_keys_of_their_own_length(attention: Any, keys: int, dtype: Any) -> None:
    """Over 1536 keys, a row has several blocks; over 3072, weights are transposed by DMA too."""
    check(attention, (1, 150, 1, 64), dtype, keys=keys)


@pytest.mark.parametrize("layouts", [("bshd", "bshd"), ("bshd", "bhsd"), ("bhsd", "bshd")])
def test_layouts(attention: Any, layouts: tuple[str, str]) -> None:
    check(attention, (2, 100, 3, 64), BF16, layouts=layouts)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 2), (4, 1)])
def test_grouped_heads(attention: Any, heads: int, kv_heads: int) -> None:
    check(attention, (1, 140, heads, 64), BF16, keys=96, kv_heads=kv_heads, layouts=("bshd", "bshd"))


@pytest.mark.parametrize("size", [1, 32, 80, 127])
def test_other_head_sizes(attention: Any, size: int) -> None:
    check(attention, (1, 130, 1, size), FP32)


def test_value_size_of_its_own_and_float16(attention: Any) -> None:
    check(attention, (1, 130, 1, 64), FP16, value_size=128)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(("length", "keys"), [(1, 1), (77, 77), (300, 300), (640, 640), (200, 90), (90, 200)])
def test_causal(attention: Any, length: int, keys: int, dtype: Any) -> None:
    check(attention, (1, length, 1, 64), dtype, keys=keys, causal=True, boost=3.0)


def test_causal_over_several_blocks(attention: Any) -> None:
    check(attention, (1, 1800, 1, 64), BF16, causal=True)


def test_causal_does_the_lower_half_only(attention: Any) -> None:
    run = check(attention, (1, 768, 1, 64), BF16, causal=True)
    assert (
        run.profile.engine("scalar").busy_us
        < 0.75 * check(attention, (1, 768, 1, 64), BF16).profile.engine("scalar").busy_us
    )


def random_mask(shape: tuple[int, ...], dtype: Any, dropped: float = -np.inf) -> np.ndarray:
    rng = np.random.default_rng(5)
    mask = np.where(rng.random(shape) < 0.4, dropped, rng.standard_normal(shape)).astype(np.float32)
    return mask.astype(dtype)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(
    "shape", [(150, 200), (1, 1, 150, 200), (2, 1, 150, 200), (2, 2, 150, 200), (2, 1, 1, 200), (1, 2, 150, 1)]
)
def test_additive_masks(attention: Any, shape: tuple[int, ...], dtype: Any) -> None:
    mask = random_mask(shape, dtype)
    check(attention, (2, 150, 2, 64), dtype, keys=200, mask=mask)


@pytest.mark.parametrize("dropped", [-np.inf, np.finfo(np.float32).min, -1e30])
def test_rows_without_keys_are_zero(attention: Any, dropped: float) -> None:
    mask = random_mask((140, 1700), FP32, dropped)
    mask[3], mask[130:] = dropped, dropped
    run = check(attention, (1, 140, 1, 64), FP32, keys=1700, mask=mask)
    assert not run.outputs[0, 0, 3].any()
    assert not run.outputs[0, 0, 130:].any()


def test_a_finite_mask_of_all_keys_is_no_mask(attention: Any) -> None:
    check(attention, (1, 100, 1, 64), FP32, mask=np.full((100, 100), -10000.0, np.float32), tolerance=1e-3)


def test_mask_with_causal(attention: Any) -> None:
    mask = random_mask((1, 1, 200, 200), FP32)
    check(attention, (1, 200, 1, 64), FP32, mask=mask, causal=True)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("keys", [200, 3300])
def test_logits_of_ten_thousand(attention: Any, keys: int, dtype: Any, sign: int) -> None:
    """All logits of a row lie near +-10,000, so exp of any of them alone is inf or 0; the maximum comes last."""
    rng = np.random.default_rng(0)
    q = np.full((1, 1, 130, 64), 16.0)
    q[..., 1] = sign * rng.standard_normal((1, 1, 130)).round(2)
    k = np.full((1, 1, keys, 64), sign * 78.0)
    k[..., 1] = np.linspace(-3, 3, keys)
    v = rng.standard_normal((1, 1, keys, 64))
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    wanted = expected(q, k, v, None, 0.125, False)
    logits = np.einsum("sd,ld->sl", q[0, 0].astype(np.float64), k[0, 0].astype(np.float64)) * 0.125
    assert np.abs(logits).min() > 9000
    got = emulator.simulate(attention)(q, k, v, None, 0.125).outputs.astype(np.float64)
    assert np.isfinite(got).all()
    # One float32 rounding of a score is 6e-8 of 78,000, which the exponential turns into a relative error.
    assert np.linalg.norm(got - wanted) <= (1e-2 if dtype == BF16 else 2e-3) * np.linalg.norm(wanted)


def test_logits_spread_over_twenty_thousand(attention: Any) -> None:
    check(attention, (1, 200, 1, 64), FP32, keys=1700, boost=60.0, tolerance=2e-3)
    check(attention, (1, 200, 1, 64), BF16, keys=1700, boost=60.0)


@pytest.mark.parametrize(
    ("sizes", "kv_heads"), [((1, 200, 4, 64), 2), ((1, 300, 3, 64), 3), ((1, 1, 1, 64), 1), ((3, 40, 2, 64), 1)]
)
def test_two_cores(attention: Any, sizes: tuple[int, int, int, int], kv_heads: int) -> None:
    check(attention, sizes, BF16, kv_heads=kv_heads, lnc=2)
    check(attention, sizes, FP32, kv_heads=kv_heads, lnc=2, causal=True)


def test_one_head_of_klein_is_quick(attention: Any) -> None:
    start = time.perf_counter()
    check(attention, (1, 768, 1, 128), BF16)
    assert time.perf_counter() - start < 10


def profile(kernel: Any, length: int, heads: int, lnc: int = 1) -> Any:
    x = np.broadcast_to(np.zeros((), BF16), (1, length, heads, 128))
    return emulator.simulate(kernel, numerics=False, lnc=lnc)(x, x, x, None, 128**-0.5, False, "bshd", "bshd").profile


def test_tensor_engine_is_busy_on_long_sequences(attention: Any) -> None:
    cost = profile(attention, 4608, 2)
    assert cost.engine("tensor").utilisation >= 0.7
    assert cost.latency_us < 450
    assert cost.peak("psum") <= 16384


def test_two_cores_take_half_the_time(attention: Any) -> None:
    assert profile(attention, 768, 24, 2).latency_us < 0.55 * profile(attention, 768, 24).latency_us


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("length", [1, 77, 128, 130, 512, 768, 1000, 1536])
def test_matrix(attention: Any, length: int, size: int, dtype: Any) -> None:
    check(attention, (1, length, 6, size), dtype, layouts=("bshd", "bshd"))
    check(attention, (1, length, 24, size), dtype, kv_heads=8)
    check(attention, (1, length, 2, size), dtype, causal=True)
    check(attention, (1, length, 2, size), dtype, mask=random_mask((length, length), dtype))
