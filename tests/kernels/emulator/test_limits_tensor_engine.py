"""Limits of nc_matmul and nc_transpose."""

from __future__ import annotations

import numpy as np
import pytest
from fluxrewrite.kernels.emulator import HardwareLimit, simulate
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl

ONES = np.ones((128, 512), np.float32)


def matmul(bench, k=128, m=64, n=96, dst=None, types=(nl.float32, nl.float32), places=(nl.sbuf, nl.sbuf), **options):
    a = bench.tile((k, m), types[0], places[0])
    b = bench.tile((k, n), types[1], places[1])
    out = nl.ndarray((m, n), nl.float32, nl.psum) if dst is None else dst()
    nisa.nc_matmul(out, a, b, **options)


@pytest.mark.parametrize(("m", "n", "numbers"), [(129, 8, "M=129"), (8, 513, "N=513")])
def test_sizes(bench, m, n, numbers):
    # A tile of more rows or columns than a matmul gives exists only as a view of something larger.
    def dst():
        return nl.ndarray((min(m, 128), min(n, 512)), nl.float32, nl.psum)

    bench.refused(lambda: matmul(bench, m=m, n=n, dst=dst), HardwareLimit.MATMUL_SIZE, numbers)


def test_contraction_lengths_agree(bench):
    def kernel():
        dst = nl.ndarray((8, 8), nl.float32, nl.psum)
        nisa.nc_matmul(dst, bench.tile((128, 8)), bench.tile((64, 8)))

    bench.refused(kernel, HardwareLimit.MATMUL_SIZE, "128", "64")


def test_result_shape(bench):
    def dst():
        return nl.ndarray((64, 95), nl.float32, nl.psum)

    bench.refused(lambda: matmul(bench, dst=dst), HardwareLimit.MATMUL_SIZE, "[64, 96]", "[64, 95]")


def test_result_goes_to_psum_and_operands_come_from_sbuf(bench):
    def in_sbuf():
        return nl.ndarray((64, 96), nl.float32)

    bench.refused(lambda: matmul(bench, dst=in_sbuf), HardwareLimit.BUFFER, "dst", "PSUM")
    bench.refused(lambda: matmul(bench, places=(nl.psum, nl.sbuf)), HardwareLimit.BUFFER, "stationary", "SBUF")
    bench.refused(lambda: matmul(bench, places=(nl.sbuf, nl.psum)), HardwareLimit.BUFFER, "moving", "SBUF")


@pytest.mark.parametrize(
    "types", [(nl.float32, nl.bfloat16), (nl.bfloat16, nl.tfloat32), (nl.int32, nl.int32), (nl.float8_e4m3, nl.float32)]
)
def test_operand_types(bench, types):
    bench.refused(lambda: matmul(bench, types=types), HardwareLimit.DTYPE, types[0])


@pytest.mark.parametrize("types", [(nl.bfloat16, nl.float16), (nl.float8_e5m2, nl.bfloat16), (nl.tfloat32, nl.float32)])
def test_operand_types_that_mix(bench, types):
    simulate(lambda: matmul(bench, types=types))()


def test_ocp_fp8_needs_trn3_and_does_not_mix(bench):
    pair = (nl.float8_e4m3fn, nl.bfloat16)
    bench.refused(lambda: matmul(bench, types=pair), HardwareLimit.ARCH, "v4")
    mixed = (nl.float8_e4m3fn, nl.float8_e4m3)
    bench.refused(lambda: matmul(bench, types=mixed), HardwareLimit.DTYPE, "mixed", device="trn3")


def test_result_type(bench):
    def dst():
        return nl.ndarray((64, 96), nl.bfloat16, nl.psum)

    bench.refused(lambda: matmul(bench, dst=dst), HardwareLimit.DTYPE, "bfloat16", "float32")
    simulate(lambda: matmul(bench, dst=dst), device="trn3")()


def test_result_lies_in_one_bank(bench):
    def dst():
        return nl.ndarray((64, 4, 300), nl.float32, nl.psum)[:, 1:2, 0:300]

    error = bench.refused(lambda: matmul(bench, n=300, dst=dst), HardwareLimit.PSUM_BANK, "bytes 1200 to 2400", "2048")
    assert error.instruction == "nc_matmul"
    simulate(lambda: matmul(bench, n=300, dst=dst), device="trn3")()


def test_result_at_the_end_of_a_bank(bench):
    def dst():
        return nl.ndarray((64, 1024), nl.float32, nl.psum)[:, 416:512]

    simulate(lambda: matmul(bench, dst=dst))()


@pytest.mark.parametrize("prepare", ["nothing", "memset", "half a matmul"])
@pytest.mark.parametrize("accumulate", [True, None])
def test_accumulation_needs_a_matmul_that_overwrote(bench, prepare, accumulate):
    def kernel():
        dst = nl.ndarray((64, 96), nl.float32, nl.psum)
        a, b = bench.tile((128, 64)), bench.tile((128, 96))
        if prepare == "memset":
            nisa.memset(dst, 0.0)
        elif prepare == "half a matmul":
            nisa.nc_matmul(dst[:, 0:48], a, b[:, 0:48], accumulate=False)
        nisa.nc_matmul(dst, a, b, accumulate=accumulate)

    if prepare == "nothing" and accumulate is None:
        simulate(kernel)()  # the first write overwrites
    else:
        bench.refused(kernel, HardwareLimit.ACCUMULATE, f"accumulate={accumulate}")


def test_a_copy_into_psum_ends_the_accumulation(bench):
    def kernel():
        dst = nl.ndarray((64, 96), nl.float32, nl.psum)
        a, b = bench.tile((128, 64)), bench.tile((128, 96))
        nisa.nc_matmul(dst, a, b, accumulate=False)
        nisa.tensor_scalar(dst, dst, nl.multiply, 2.0)
        nisa.nc_matmul(dst, a, b, accumulate=True)

    bench.refused(kernel, HardwareLimit.ACCUMULATE, "other than a matmul")
    simulate(kernel, device="trn3")()


@pytest.mark.parametrize(
    ("position", "size", "device"),
    [
        ((0, 0), (), "trn2"),
        ((), (64, 128), "trn2"),
        ((32, 0), (64, 128), "trn2"),
        ((0, 0), (16, 128), "trn2"),
        ((0, 0), (32, 128), "trn1"),
        ((128, 0), (64, 128), "trn2"),
    ],
)
def test_tile_position_and_size(bench, position, size, device):
    def kernel():
        matmul(bench, k=32, m=32, tile_position=position, tile_size=size)

    bench.refused(kernel, HardwareLimit.MATMUL_TILE, "tile_", device=device)


def test_operands_fit_the_tile(bench):
    def kernel():
        matmul(bench, k=64, tile_position=(0, 0), tile_size=(32, 128))

    bench.refused(kernel, HardwareLimit.MATMUL_SIZE, "K=64", "K<=32")


def test_double_row(bench):
    def kernel(dtype, **options):
        a, b = bench.tile((128, 2, 16), dtype), bench.tile((128, 2, 24), dtype)
        dst = nl.ndarray((16, 24), nl.float32, nl.psum)
        nisa.nc_matmul(dst, a, b, perf_mode=nisa.matmul_perf_mode.double_row, **options)

    bench.refused(lambda: kernel(nl.float8_e4m3), HardwareLimit.ARCH, "v3", device="trn1")
    bench.refused(lambda: kernel(nl.bfloat16), HardwareLimit.DTYPE, "fp8")
    columns = {"tile_position": (0, 0), "tile_size": (128, 64)}
    bench.refused(lambda: kernel(nl.float8_e4m3, **columns), HardwareLimit.MATMUL_TILE, "double_row")


@pytest.mark.parametrize(
    ("shape", "places", "engine"),
    [((128, 129), (nl.sbuf, nl.psum), "tensor"), ((33, 32), (nl.sbuf, nl.sbuf), "vector")],
)
def test_transpose_sizes(bench, shape, places, engine):
    def kernel():
        dst = nl.ndarray((min(128, shape[1]), shape[0]), nl.float32, places[1])
        nisa.nc_transpose(dst, bench.tile(shape), engine=getattr(nisa.engine, engine))

    bench.refused(kernel, HardwareLimit.TRANSPOSE_SIZE, str(list(shape)))


def test_transpose_result_has_the_input_type(bench):
    def kernel():
        nisa.nc_transpose(nl.ndarray((64, 128), nl.float32, nl.psum), bench.tile((128, 64), nl.bfloat16))

    bench.refused(kernel, HardwareLimit.DTYPE, "bfloat16")


def test_tensor_engine_transposes_sbuf_to_psum(bench):
    def kernel(source, target):
        nisa.nc_transpose(
            nl.ndarray((64, 64), nl.float32, target), bench.tile((64, 64), buffer=source), engine=nisa.engine.tensor
        )

    bench.refused(lambda: kernel(nl.sbuf, nl.sbuf), HardwareLimit.BUFFER, "dst", "PSUM")
    bench.refused(lambda: kernel(nl.psum, nl.psum), HardwareLimit.BUFFER, "data", "SBUF")
