"""The norm_rope_attention kernel in the emulator against float64 NumPy."""

from __future__ import annotations

import importlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fluxrewrite.kernels import emulator

BF16, FP32, FP16 = ml_dtypes.bfloat16, np.float32, np.float16
TOLERANCE = {BF16: 1e-2, FP16: 2e-3, FP32: 1e-5}


@pytest.fixture(scope="module")
def kernel() -> Any:
    with emulator.installed():
        return importlib.import_module("fluxrewrite.kernels.nki.norm_rope_attention").norm_rope_attention


def rotated(x: np.ndarray, interleaved: bool) -> np.ndarray:
    if interleaved:
        return np.stack((-x[..., 1::2], x[..., 0::2]), -1).reshape(x.shape)
    first, second = np.split(x, 2, -1)
    return np.concatenate((-second, first), -1)


def normed(x: np.ndarray, gamma: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gamma.astype(np.float64)


def expected(streams: Any, cos: Any, sin: Any, scale: float, interleaved: bool, eps: list[float]) -> np.ndarray:
    """[B, S, H, D] in float64; `eps` in the order q0, k0, q1, k1."""
    q = np.concatenate([normed(s[0], s[3], e) for s, e in zip(streams, eps[0::2], strict=False)], 1)
    k = np.concatenate([normed(s[1], s[4], e) for s, e in zip(streams, eps[1::2], strict=False)], 1)
    v = np.concatenate([s[2].astype(np.float64) for s in streams], 1)
    c, s = (t.astype(np.float64)[None, :, None] for t in (cos, sin))
    q, k = (x * c + rotated(x, interleaved) * s for x in (q, k))
    scores = np.einsum("bshd,blhd->bhsl", q, k) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhsl,blhd->bshd", weights / weights.sum(-1, keepdims=True), v)


def make(sizes: tuple[int, int, int], lengths: tuple[int, ...], dtype: Any, boost: float, weight: float) -> Any:
    """Streams of (q, k, v, gamma_q, gamma_k) for (B, H, D), each stream and tensor of its own size of numbers."""
    batch, heads, size = sizes
    rng = np.random.default_rng(11)
    streams = []
    for i, length in enumerate(lengths):
        factors = (boost, 0.1 * boost, 1.0 + i)
        raw = [(rng.standard_normal((batch, length, heads, size)) * f).astype(dtype) for f in factors]
        gammas = [(weight * (1 + 0.3 * rng.standard_normal(size))).astype(dtype) for _ in range(2)]
        streams.append((*raw, *gammas))
    return streams


def tables(length: int, size: int, interleaved: bool) -> tuple[np.ndarray, np.ndarray]:
    angle = np.random.default_rng(2).uniform(0, 6.28, (length, size // 2))
    full = np.repeat(angle, 2, -1) if interleaved else np.concatenate((angle, angle), -1)
    return np.cos(full).astype(np.float32), np.sin(full).astype(np.float32)


def check(
    kernel: Any,
    sizes: tuple[int, int, int],
    lengths: tuple[int, ...],
    dtype: Any,
    *,
    interleaved: bool = True,
    bounded: bool = False,
    lnc: int = 1,
    boost: float = 1.0,
    weight: float = 1.0,
    flat: bool = False,
    scale: float | None = None,
    eps: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3),
    tolerance: float | None = None,
    cosine: float = 0.9999,
) -> Any:
    """Run (B, H, D) on one or two streams and compare; returns the run."""
    streams = make(sizes, lengths, dtype, boost, weight)
    cos, sin = tables(sum(lengths), sizes[2], interleaved)
    scale = sizes[2] ** -0.5 if scale is None else scale
    wanted = expected(streams, cos, sin, scale, interleaved, list(eps))
    two = len(lengths) == 2
    run = emulator.simulate(kernel, lnc=lnc)(
        *streams[0], cos, sin, *(streams[1] if two else (None,) * 5), scale, *eps, two, interleaved, bounded, flat
    )
    got = run.outputs
    batch, heads, size = sizes
    assert got.shape == ((batch, sum(lengths), heads * size) if flat else wanted.shape)
    assert got.dtype == dtype
    got = got.astype(np.float64).reshape(wanted.shape)
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - wanted) <= (tolerance or TOLERANCE[dtype]) * np.linalg.norm(wanted)
    assert (got * wanted).sum() > cosine * np.linalg.norm(got) * np.linalg.norm(wanted)
    return run


modes = pytest.mark.parametrize("bounded", [False, True], ids=["exact", "bounded"])
types = pytest.mark.parametrize("dtype", [BF16, FP32])


@modes
@types
@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "halves"])
@pytest.mark.parametrize("size", [64, 128])
def test_two_streams(kernel: Any, size: int, interleaved: bool, dtype: Any, bounded: bool) -> None:
    check(kernel, (1, 2, size), (77, 200), dtype, interleaved=interleaved, bounded=bounded)


@modes
@types
@pytest.mark.parametrize("length", [1, 77, 128, 130, 512, 768])
def test_one_stream(kernel: Any, length: int, dtype: Any, bounded: bool) -> None:
    check(kernel, (1, 1, 128), (length,), dtype, bounded=bounded)


@modes
@pytest.mark.parametrize("lengths", [(1, 1), (5, 130), (128, 128), (300, 1), (512, 256), (200, 800), (512, 1024)])
def test_joined_lengths(kernel: Any, lengths: tuple[int, ...], bounded: bool) -> None:
    check(kernel, (1, 1, 64), lengths, BF16, bounded=bounded)


@modes
def test_batches_heads_and_flat_result(kernel: Any, bounded: bool) -> None:
    check(kernel, (2, 3, 64), (40, 100), BF16, bounded=bounded, flat=True)
    check(kernel, (1, 6, 64), (150,), FP16, bounded=bounded)


@modes
@pytest.mark.parametrize("sizes", [(1, 4, 64), (1, 1, 64), (3, 1, 64)])
def test_two_cores(kernel: Any, sizes: tuple[int, int, int], bounded: bool) -> None:
    check(kernel, sizes, (77, 200), BF16, bounded=bounded, lnc=2)


@modes
@types
@pytest.mark.parametrize("boost", [1e-4, 1e4])
def test_norm_takes_any_size_of_input(kernel: Any, boost: float, dtype: Any, bounded: bool) -> None:
    check(kernel, (1, 1, 64), (50, 90), dtype, boost=boost, bounded=bounded, eps=(1e-10,) * 4)


def test_logits_of_ten_thousand_need_the_exact_kernel(kernel: Any) -> None:
    """Norm weights of 35 at D = 64 give logits up to 35 * 35 * 8, about 10,000."""
    check(kernel, (1, 1, 64), (100, 1500), FP32, weight=35.0, tolerance=2e-3)


def test_logits_of_ten_thousand_in_bfloat16(kernel: Any) -> None:
    """Rounding q and k to bfloat16, which every implementation does, moves such logits by tens: near ties flip."""
    check(kernel, (1, 1, 64), (100, 1500), BF16, weight=35.0, tolerance=0.15, cosine=0.99)


def test_bounded_at_its_limit(kernel: Any) -> None:
    """q = +-k: the greatest scores are +-scale * D * gamma_q * gamma_k = +-64."""
    rng = np.random.default_rng(0)
    for sign in (1.0, -1.0):
        q = rng.standard_normal((1, 1, 1, 64)).repeat(200, 1).astype(FP32)
        v = rng.standard_normal((1, 200, 1, 64)).astype(FP32)
        gamma_q, gamma_k = np.full(64, 2.0, FP32), np.full(64, 4.0, FP32)
        cos, sin = np.ones((200, 64), FP32), np.zeros((200, 64), FP32)
        stream = (q, (sign * q).astype(FP32), v, gamma_q, gamma_k)
        wanted = expected([stream], cos, sin, 0.125, True, [1e-6] * 4)
        got = emulator.simulate(kernel)(*stream, cos, sin, scale=0.125, two_streams=False, is_bounded=True).outputs
        assert np.linalg.norm(got - wanted) <= 1e-4 * np.linalg.norm(wanted)


def test_tables_of_other_types_and_general_rotations(kernel: Any) -> None:
    """cos and sin may be bfloat16, and differ within a pair."""
    streams = make((1, 1, 64), (60, 80), FP32, 1.0, 1.0)
    rng = np.random.default_rng(4)
    cos, sin = (rng.uniform(-1, 1, (140, 64)).astype(BF16) for _ in range(2))
    wanted = expected(streams, cos, sin, 0.125, True, [1e-6] * 4)
    got = emulator.simulate(kernel)(*streams[0], cos, sin, *streams[1], 0.125).outputs
    assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)


def profile(kernel: Any, lengths: tuple[int, int], heads: int, bounded: bool) -> Any:
    def zeros(*shape: int, dtype: Any = BF16) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), shape)

    streams = [(*(zeros(1, n, heads, 128),) * 3, zeros(128), zeros(128)) for n in lengths]
    table = zeros(sum(lengths), 128, dtype=np.float32)
    run = emulator.simulate(kernel, numerics=False)
    return run(*streams[0], table, table, *streams[1], 0.0883, is_bounded=bounded).profile


def attention_profile(length: int, heads: int) -> Any:
    with emulator.installed():
        attention = importlib.import_module("fluxrewrite.kernels.nki.attention").attention
    x = np.broadcast_to(np.zeros((), BF16), (1, length, heads, 128))
    return emulator.simulate(attention, numerics=False)(x, x, x, None, 0.0883, False, "bshd", "bshd").profile


@pytest.mark.parametrize(("lengths", "heads"), [((512, 256), 24), ((512, 256), 6), ((512, 4096), 2)])
def test_beats_three_kernels(kernel: Any, lengths: tuple[int, int], heads: int) -> None:
    """Against attention and two rope kernels at what their HBM traffic costs at least."""
    fused = profile(kernel, lengths, heads, True)
    total = sum(lengths)
    ropes = 2 * (2 * total * heads * 128 * 2) / 362e3
    assert fused.latency_us <= 0.8 * (attention_profile(total, heads).latency_us + ropes)


def test_only_inputs_and_output_touch_hbm(kernel: Any) -> None:
    fused = profile(kernel, (512, 256), 6, True)
    tensors = 4 * 768 * 6 * 128 * 2 + 2 * 768 * 128 * 4
    assert fused.dma_bytes <= 1.01 * tensors


@pytest.mark.slow
@modes
@types
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("length", [1, 77, 128, 130, 512, 768, 1000, 1536])
def test_matrix(kernel: Any, length: int, size: int, dtype: Any, bounded: bool) -> None:
    check(kernel, (1, 6, size), (length,), dtype, bounded=bounded)
    check(kernel, (1, 6, size), (77, length), dtype, bounded=bounded, interleaved=False)
    check(kernel, (1, 24, size), (length,), dtype, bounded=bounded, lnc=2)
