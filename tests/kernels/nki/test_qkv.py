"""The NKI qkv kernel under the emulator, against float64."""

from __future__ import annotations

import importlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fluxrewrite.kernels import emulator

BF16 = ml_dtypes.bfloat16
SIZES = (1, 77, 128, 130, 512, 768, 1000, 1536)


@pytest.fixture(scope="module")
def qkv() -> Any:
    with emulator.installed():
        return importlib.import_module("fluxrewrite.kernels.nki.qkv").qkv


def run(
    qkv: Any,
    tokens: int,
    hidden: int,
    widths: tuple[int, ...],
    dtype: Any,
    biased: tuple[bool, ...] = (False, False, False),
    transposed: bool = False,
    lnc: int = 1,
    device: str = "trn2",
) -> None:
    rng = np.random.default_rng(tokens + hidden)
    x = rng.standard_normal((tokens, hidden), np.float32).astype(dtype)
    packed = (rng.standard_normal((sum(widths), hidden), np.float32) / np.sqrt(hidden)).astype(dtype)
    ends = np.cumsum(widths)
    weights = [packed[end - width : end] for end, width in zip(ends, widths, strict=True)]
    biases = [rng.standard_normal(n).astype(dtype) if b else None for n, b in zip(widths, biased, strict=True)]
    passed = [np.ascontiguousarray(w.T) for w in weights] if transposed else weights
    outputs = emulator.simulate(qkv, lnc=lnc, device=device)(x, *passed, *biases, transposed).outputs
    for out, weight, bias in zip(outputs, weights, biases, strict=True):
        expected = x.astype(np.float64) @ weight.astype(np.float64).T
        check(out, expected if bias is None else expected + bias.astype(np.float64), dtype)


def check(actual: np.ndarray, expected: np.ndarray, dtype: Any) -> None:
    values = actual.astype(np.float64)
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    norm = np.linalg.norm(expected)
    assert np.linalg.norm(values - expected) <= (1e-5 if dtype == np.float32 else 1e-2) * norm
    assert np.vdot(values, expected) >= 0.9999 * norm * np.linalg.norm(values)


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("tokens", SIZES)
def test_sizes_at_hidden_768(qkv, tokens, dtype):
    case = SIZES.index(tokens)
    run(qkv, tokens, 768, (256, 128, 64), dtype, transposed=case % 2 == 1, lnc=1 + case // 2 % 2)


@pytest.mark.parametrize(("tokens", "dtype"), [(77, np.float32), (130, BF16), (768, BF16)])
def test_a_quarter_of_klein_4b(qkv, tokens, dtype):
    run(qkv, tokens, 3072, (768, 768, 768), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("hidden", [768, 3072])
@pytest.mark.parametrize("tokens", SIZES)
def test_matrix(qkv, tokens, hidden, dtype, transposed):
    run(qkv, tokens, hidden, (768, 768, 768), dtype, (True, True, True), transposed, 1 + transposed)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize(
    ("tokens", "hidden", "widths"),
    [(1, 1, (1, 1, 1)), (130, 200, (130, 77, 513)), (300, 130, (1100, 3, 5)), (2, 128, (640, 128, 128))],
)
def test_tails_and_unequal_widths(qkv, tokens, hidden, widths, dtype, lnc, transposed):
    run(qkv, tokens, hidden, widths, dtype, transposed=transposed, lnc=lnc)


@pytest.mark.parametrize("biased", [(True, True, True), (True, False, True), (False, True, False)])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_biases(qkv, biased, dtype):
    run(qkv, 150, 256, (600, 128, 100), dtype, biased)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("pieces", [((40, 128), (168, 65), (233, 30)), ((233, 67), (0, 40), (168, 65), (40, 128))])
def test_rows_of_a_packed_weight(qkv, pieces, dtype, lnc, transposed):
    """In any order, with rows that nobody reads, and with a fourth block."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((130, 200), np.float32).astype(dtype)
    weight = (rng.standard_normal((300, 200), np.float32) / 14).astype(dtype)
    bias = rng.standard_normal(300).astype(dtype)
    passed = np.ascontiguousarray(weight.T) if transposed else weight
    rest = (passed, bias) if len(pieces) == 4 else (None, None)
    call = emulator.simulate(qkv, lnc=lnc)
    run = call(x, *[passed] * 3, bias, None, bias, transposed, *rest, *(n for piece in pieces for n in piece))
    assert len(run.outputs) == len(pieces)
    for out, (start, rows), biased in zip(run.outputs, pieces, (1, 0, 1, 1), strict=False):
        part = slice(start, start + rows)
        expected = x.astype(np.float64) @ weight[part].astype(np.float64).T
        check(out, expected + biased * bias[part].astype(np.float64), dtype)


def test_one_projection_alone():
    with emulator.installed():
        linear = importlib.import_module("fluxrewrite.kernels.nki.qkv").linear
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape, np.float32) for shape in ((130, 200), (300, 200), 300))
    for start, rows in ((0, 0), (40, 140)):
        part = slice(start, start + (rows or 300))
        expected = x.astype(np.float64) @ weight[part].astype(np.float64).T + bias[part]
        check(emulator.simulate(linear)(x, weight, bias, start, rows).outputs, expected, np.float32)


@pytest.mark.parametrize("device", ["trn1", "trn3"])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_other_devices(qkv, device, dtype):
    run(qkv, 140, 300, (600, 70, 70), dtype, (True, False, False), device=device)


def test_many_blocks_of_tokens(qkv):
    run(qkv, 2600, 64, (64, 32, 32), BF16)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_hidden_that_leaves_little_room(qkv, dtype, transposed):
    run(qkv, 140, 17000, (60, 3, 2), dtype, transposed=transposed)


def test_what_is_not_finite_stays_in_its_row(qkv):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((130, 200), np.float32), rng.standard_normal((130, 200), np.float32)
    x[3, 7], x[129, 199], weight[2, 5] = np.nan, np.inf, np.nan
    for dtype in (np.float32, BF16):
        out = emulator.simulate(qkv)(*(t.astype(dtype) for t in (x, weight, weight, weight))).outputs[0]
        bad = ~np.isfinite(out.astype(np.float32))
        assert np.flatnonzero(bad.all(1)).tolist() == [3, 129]
        assert np.flatnonzero(bad.all(0)).tolist() == [2]
        assert bad.sum() == 2 * 130 + 128


def profile(qkv: Any, tokens: int, width: int, transposed: bool = False, lnc: int = 1) -> emulator.Profile:
    x = np.broadcast_to(np.zeros((), BF16), (tokens, 3072))
    weight = np.broadcast_to(np.zeros((), BF16), (3072, width) if transposed else (width, 3072))
    call = emulator.simulate(qkv, lnc=lnc, numerics=False)
    return call(x, weight, weight, weight, None, None, None, transposed).profile


@pytest.mark.parametrize("lnc", [1, 2])
def test_the_activation_is_read_once_by_each_core_and_weights_once(qkv, lnc):
    cost = profile(qkv, 768, 3072, lnc=lnc)
    assert cost.dma_bytes == 2 * (lnc * 768 * 3072 + 3 * 3072 * 3072 + 3 * 768 * 3072)
    assert cost.macs == 768 * 3072 * 9216


def test_a_packed_weight_is_read_once_and_not_copied(qkv):
    x, weight = (np.broadcast_to(np.zeros((), BF16), (n, 3072)) for n in (768, 27648))
    call = emulator.simulate(qkv, lnc=2, numerics=False)
    ranges = [n for i in range(3) for n in (3072 * i, 3072)] + [9216, 18432]
    cost = call(x, *[weight] * 3, None, None, None, False, weight, None, *ranges).profile
    assert cost.dma_bytes == 2 * (2 * 768 * 3072 + 27648 * 3072 + 768 * 27648)
    assert cost.macs == 768 * 3072 * 27648


@pytest.mark.parametrize(
    ("tokens", "width", "transposed", "most"),
    [(768, 3072, False, 570), (512, 3072, False, 383), (256, 3072, False, 210), (256, 3072, True, 201)],
)
def test_modelled_time(qkv, tokens, width, transposed, most):
    cost = profile(qkv, tokens, width, transposed)
    assert cost.latency_us < most
    # The Tensor engine limits, or the weights' transfer, where tokens are few.
    assert cost.engine("tensor").utilisation > 0.97 or cost.engine("dma").utilisation > 0.93


def test_two_cores_share_the_columns(qkv):
    assert profile(qkv, 768, 3072, lnc=2).latency_us < 0.52 * profile(qkv, 768, 3072).latency_us
