"""Cycles of single instructions, read back from the profile, against the documented formulas."""

from __future__ import annotations

import numpy as np
import pytest
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl
from fluxrewrite.kernels.emulator import simulate

FP, BF, SB, PS = nl.float32, nl.bfloat16, nl.sbuf, nl.psum


def cycles(engine, prepare, call, device="trn2"):
    """Cycles that ``call`` adds on ``engine`` to a kernel that only prepares."""

    def alone():
        prepare()

    def full():
        call(*prepare())

    with_call = simulate(full, device=device)().profile.engine(engine)
    without = simulate(alone, device=device)().profile.engine(engine)
    assert with_call.instructions == without.instructions + 1
    return with_call.cycles - without.cycles


def tiles(bench, *specs):
    return lambda: [bench.tile(shape, dtype, buffer) for shape, dtype, buffer in specs]


@pytest.mark.parametrize(
    ("m", "n", "dtype", "expected"),
    [(128, 512, BF, 512), (128, 16, BF, 64), (16, 32, BF, 32), (8, 4, BF, 8), (128, 512, FP, 2048)],
)
def test_matmul(bench, m, n, dtype, expected):
    prepare = tiles(bench, ((128, m), dtype, SB), ((128, n), dtype, SB), ((m, n), FP, PS))
    assert cycles("tensor", prepare, lambda a, b, d: nisa.nc_matmul(d, a, b, accumulate=False)) == expected


def test_a_ones_and_zeros_hint_halves_fp32_matmuls(bench):
    prepare = tiles(bench, ((128, 128), FP, SB), ((128, 512), FP, SB), ((128, 512), FP, PS))
    hinted = cycles(
        "tensor", prepare, lambda a, b, d: nisa.nc_matmul(d, a, b, accumulate=False, is_moving_onezero=True)
    )
    assert hinted == 1024


@pytest.mark.parametrize(("p", "f", "dtype", "expected"), [(128, 128, BF, 128), (16, 128, BF, 64), (16, 8, FP, 64)])
def test_tensor_transpose(bench, p, f, dtype, expected):
    prepare = tiles(bench, ((p, f), dtype, SB), ((f, p), dtype, PS))
    assert cycles("tensor", prepare, lambda a, d: nisa.nc_transpose(d, a)) == expected


@pytest.mark.parametrize(
    ("dtypes", "places", "device", "expected"),
    [
        ((FP, FP), (SB, SB), "trn2", 512),
        ((BF, BF), (SB, SB), "trn2", 128),
        ((BF, BF), (PS, SB), "trn2", 256),
        ((BF, FP), (SB, SB), "trn2", 512),
        ((BF, BF), (SB, SB), "trn1", 512),
    ],
)
def test_copies_and_vector_performance_modes(bench, dtypes, places, device, expected):
    prepare = tiles(bench, ((128, 512), dtypes[0], places[0]), ((128, 512), dtypes[1], places[1]))
    assert cycles("vector", prepare, lambda a, d: nisa.tensor_copy(d, a), device) == expected
    assert cycles("vector", prepare, lambda a, d: nisa.tensor_scalar(d, a, nl.add, 1.0), device) == expected


def test_strided_bf16_copies_lose_half_the_performance_mode(bench):
    prepare = tiles(bench, ((128, 1024), BF, SB), ((128, 512), BF, SB))
    assert cycles("vector", prepare, lambda a, d: nisa.tensor_copy(d, a[:, 0:1024:2])) == 256


@pytest.mark.parametrize(
    ("dtype", "places", "op", "device", "expected"),
    [
        (FP, (SB, SB), nl.add, "trn2", 1024),
        (FP, (PS, SB), nl.add, "trn2", 512),
        (BF, (SB, SB), nl.add, "trn1", 512),
        (BF, (SB, SB), nl.maximum, "trn1", 1024),
        (BF, (SB, SB), nl.maximum, "trn2", 512),
    ],
)
def test_tensor_tensor(bench, dtype, places, op, device, expected):
    prepare = tiles(bench, ((128, 512), dtype, places[0]), ((128, 512), dtype, places[1]), ((128, 512), dtype, SB))
    assert cycles("vector", prepare, lambda a, b, d: nisa.tensor_tensor(d, a, b, op), device) == expected


def test_other_vector_instructions(bench):
    n = 512
    three = tiles(bench, ((128, n), FP, SB), ((128, n), FP, SB), ((128, 1), FP, SB))

    def stt(a, b, s):
        nisa.scalar_tensor_tensor(b, a, nl.multiply, s, nl.add, b)

    assert cycles("vector", three, stt) == 2 * n
    assert cycles("vector", three, lambda a, b, s: nisa.tensor_reduce(s, nl.maximum, a, 1)) == n
    assert cycles("vector", three, lambda a, b, s: nisa.reciprocal(b, a)) == 8 * n
    assert cycles("vector", three, lambda a, b, s: nisa.memset(b, 1.0)) == n
    assert cycles("vector", three, lambda a, b, s: nisa.tensor_scalar_reduce(b, a, nl.add, 1.0, nl.add, s)) == n + 64
    assert cycles("vector", three, lambda a, b, s: nisa.memset(s, 0.0)) == 64


def test_bf16_shortcuts(bench):
    n = 512
    three = tiles(bench, ((128, n), BF, SB), ((128, n), BF, SB), ((128, 1), BF, SB))

    def stt(a, b, s):
        nisa.scalar_tensor_tensor(b, a, nl.subtract, 1.0, nl.multiply, b)

    assert cycles("vector", three, stt) == n
    assert cycles("vector", three, lambda a, b, s: nisa.tensor_reduce(s, nl.maximum, a, 1)) == n / 2
    assert cycles("vector", three, lambda a, b, s: nisa.memset(b, 0.0)) == n / 2


def test_scalar_and_gpsimd_instructions(bench):
    n = 512
    three = tiles(bench, ((128, n), FP, SB), ((128, n), FP, SB), ((128, 1), FP, SB))
    assert cycles("scalar", three, lambda a, b, s: nisa.activation(b, nl.exp, a)) == n
    assert cycles("scalar", three, lambda a, b, s: nisa.activation_reduce(b, nl.exp, a, nl.add, s)) == n + 64
    assert cycles("gpsimd", three, lambda a, b, s: nisa.iota(b, [[1, n]])) == 150 + n
    assert cycles("gpsimd", three, lambda a, b, s: nisa.affine_select(b, [[1, n]], 0, a, 0.0)) == 150 + n


def test_exponential_is_four_times_faster_than_activation(bench):
    prepare = tiles(bench, ((128, 512), FP, SB), ((128, 512), FP, SB))
    assert cycles("vector", prepare, lambda a, d: nisa.exponential(d, a), "trn3") == 128


@pytest.mark.parametrize(
    ("device", "engine", "ghz"),
    [("trn1", "vector", 1.12), ("trn2", "vector", 0.96), ("trn3", "vector", 1.2), ("trn1", "scalar", 1.4)],
)
def test_cycles_become_time_by_the_engines_clock(bench, device, engine, ghz):
    def kernel():
        a = bench.tile((128, 512))
        nisa.activation(a, nl.exp, a)

    row = simulate(kernel, device=device)().profile.engine(engine)
    assert row.busy_us == pytest.approx(row.cycles / ghz / 1000)


def test_counts_of_work(bench):
    def kernel(x):
        a = bench.load(x)
        dst = nl.ndarray((64, 64), nl.float32, nl.psum)
        nisa.nc_matmul(dst, a, a)
        return bench.save(dst)

    profile = simulate(kernel)(np.ones((128, 64), np.float32)).profile
    assert profile.macs == 128 * 64 * 64
    assert profile.dma_bytes == 128 * 64 * 4 + 64 * 64 * 4
    assert profile.engine("dma").instructions == 2
    with pytest.raises(KeyError):
        profile.engine("sync")
    with pytest.raises(KeyError):
        profile.peak("hbm")
