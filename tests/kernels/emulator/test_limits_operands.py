"""Operand limits shared by the instructions: each wrong kernel is refused with its limit and numbers."""

from __future__ import annotations

import numpy as np
import pytest
from fluxrewrite.kernels.emulator import HardwareLimit
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl


def test_a_tile_has_at_most_128_partitions(bench):
    bench.refused(lambda: nl.ndarray((129, 4), nl.float32), HardwareLimit.PARTITION_COUNT, "129", "128")


def test_an_on_chip_tensor_needs_a_free_dimension(bench):
    bench.refused(lambda: nl.ndarray((128,), nl.float32), HardwareLimit.ON_CHIP_RANK, "[128]")


@pytest.mark.parametrize(("start", "count"), [(32, 65), (32, 33), (16, 32), (1, 1), (100, 8)], ids=lambda n: str(n))
def test_partition_start_rule_refuses(bench, start, count):
    def kernel():
        src = bench.tile((128, 4))
        dst = nl.ndarray((count, 4), nl.float32)
        nisa.tensor_copy(dst, src[start : start + count])

    bench.refused(kernel, HardwareLimit.PARTITION_START, str(count), f"partition {start}", "src")


@pytest.mark.parametrize(("start", "count"), [(0, 128), (0, 65), (64, 64), (64, 33), (32, 32), (96, 32), (96, 1)])
def test_partition_start_rule_allows(bench, rng, start, count):
    x = rng.standard_normal((128, 4)).astype(np.float32)
    out = bench.compute(lambda dst, src: nisa.tensor_copy(dst, src[start : start + count]), x, shape=(count, 4))
    np.testing.assert_array_equal(out, x[start : start + count])


def test_partitions_cannot_be_stepped_over(bench):
    def kernel():
        nisa.tensor_copy(nl.ndarray((64, 4), nl.float32), bench.tile((128, 4))[0:128:2])

    bench.refused(kernel, HardwareLimit.PARTITION_STEP, "by 2")


def test_two_sbuf_inputs_start_at_the_same_partition(bench):
    def kernel():
        a = bench.tile((128, 4))
        nisa.tensor_tensor(nl.ndarray((64, 4), nl.float32), a[0:64], a[64:128], nl.add)

    bench.refused(kernel, HardwareLimit.OPERAND_PARTITION, "partition 0", "64")


def test_at_most_four_free_dimensions(bench):
    def kernel():
        src = bench.tile((128, 2, 2, 2, 2, 2)).permute((0, 5, 4, 3, 2, 1))
        nisa.tensor_copy(nl.ndarray((128, 32), nl.float32), src)

    bench.refused(kernel, HardwareLimit.FREE_DIMS, "5 free dimensions", "4")


@pytest.mark.parametrize(
    ("shape", "limit"),
    [((64, 8), HardwareLimit.PARTITION_COUNT), ((128, 1), HardwareLimit.SHAPE), ((128, 4), HardwareLimit.SHAPE)],
)
def test_tensor_tensor_does_not_broadcast(bench, shape, limit):
    def kernel():
        nisa.tensor_tensor(nl.ndarray((128, 8), nl.float32), bench.tile((128, 8)), bench.tile(shape), nl.add)

    bench.refused(kernel, limit, str(shape[0] if limit is HardwareLimit.PARTITION_COUNT else shape[1]))


@pytest.mark.parametrize("which", ["tensor_tensor", "scalar_tensor_tensor", "tensor_tensor_scan"])
def test_both_inputs_in_psum(bench, which):
    def kernel():
        a, b = bench.tile((128, 8), buffer=nl.psum), bench.tile((128, 8), buffer=nl.psum)
        dst = nl.ndarray((128, 8), nl.float32)
        if which == "tensor_tensor":
            nisa.tensor_tensor(dst, a, b, nl.add)
        elif which == "scalar_tensor_tensor":
            nisa.scalar_tensor_tensor(dst, a, nl.multiply, 2.0, nl.add, b)
        else:
            nisa.tensor_tensor_scan(dst, a, b, 0.0, nl.multiply, nl.add)

    bench.refused(kernel, HardwareLimit.BOTH_PSUM, which)


@pytest.mark.parametrize("which", ["copy", "memset", "tensor_tensor", "tensor_scalar", "rsqrt", "partition_reduce"])
def test_gpsimd_never_touches_psum(bench, which):
    def kernel():
        a, dst = bench.tile((128, 8), buffer=nl.psum), nl.ndarray((128, 8), nl.float32)
        if which == "copy":
            nisa.tensor_copy(dst, a, engine=nisa.engine.gpsimd)
        elif which == "memset":
            nisa.memset(a, 0.0, engine=nisa.engine.gpsimd)
        elif which == "tensor_tensor":
            nisa.tensor_tensor(dst, a, bench.tile((128, 8)), nl.add, engine=nisa.engine.gpsimd)
        elif which == "tensor_scalar":
            nisa.tensor_scalar(dst, a, nl.add, 1.0, engine=nisa.engine.gpsimd)
        elif which == "rsqrt":
            nisa.tensor_scalar(dst, a, nl.rsqrt, 0.0)
        else:
            nisa.tensor_partition_reduce(nl.ndarray((1, 8), nl.float32), nl.add, a)

    bench.refused(kernel, HardwareLimit.GPSIMD_PSUM, "PSUM")


@pytest.mark.parametrize(
    "operand", [(128, 2), (64, 1), "bf16", "text"], ids=["two columns", "half the partitions", "bf16", "no number"]
)
def test_scalar_operands_are_constants_or_p1_fp32_tiles(bench, operand):
    def kernel():
        value = "x"
        if operand == "bf16":
            value = bench.tile((128, 1), nl.bfloat16)
        elif operand != "text":
            value = bench.tile(operand)
        nisa.tensor_scalar(nl.ndarray((128, 8), nl.float32), bench.tile((128, 8)), nl.multiply, value)

    bench.refused(kernel, HardwareLimit.OPERAND, "operand0")


def test_operand_without_operator(bench):
    def kernel():
        nisa.tensor_scalar(nl.ndarray((128, 8), nl.float32), bench.tile((128, 8)), nl.add, 1.0, operand1=2.0)

    bench.refused(kernel, HardwareLimit.OPERAND, "operand1")


def test_unary_operator_takes_no_operand(bench):
    def kernel():
        nisa.tensor_scalar(nl.ndarray((128, 8), nl.float32), bench.tile((128, 8)), nl.abs, 1.0)

    bench.refused(kernel, HardwareLimit.OPERAND, "unary")


@pytest.mark.parametrize("op", ["exp", "bitwise_and", "average"])
def test_alu_operators_of_scalar_tensor_tensor_are_arithmetic(bench, op):
    def kernel():
        a = bench.tile((128, 8))
        nisa.scalar_tensor_tensor(nl.ndarray((128, 8), nl.float32), a, getattr(nl, op), 1.0, nl.add, a)

    bench.refused(kernel, HardwareLimit.OPERATOR, op)


def test_tensor_scalar_operators_are_of_one_kind(bench):
    def kernel():
        a = bench.tile((128, 8), nl.int32)
        nisa.tensor_scalar(nl.ndarray((128, 8), nl.int32), a, nl.bitwise_and, 3, op1=nl.add, operand1=1.0)

    bench.refused(kernel, HardwareLimit.OPERATOR, "bitwise_and", "add")


def test_bitwise_operators_need_integers(bench):
    def kernel():
        a = bench.tile((128, 8))
        nisa.tensor_tensor(nl.ndarray((128, 8), nl.int32), a, a, nl.bitwise_or)

    bench.refused(kernel, HardwareLimit.DTYPE, "float32")


def test_abs_max_needs_trn3(bench):
    def kernel():
        a = bench.tile((128, 8))
        nisa.tensor_tensor(nl.ndarray((128, 8), nl.float32), a, a, nl.abs_max)

    bench.refused(kernel, HardwareLimit.ARCH, "v4")


@pytest.mark.parametrize(
    ("call", "engine"),
    [
        ("tensor_tensor", "scalar"),
        ("memset", "scalar"),
        ("tensor_copy", "tensor"),
        ("rsqrt", "vector"),
        ("power", "vector"),
    ],
)
def test_engines_that_cannot_run_it(bench, call, engine):
    def kernel():
        a, dst, on = bench.tile((128, 8)), nl.ndarray((128, 8), nl.float32), getattr(nisa.engine, engine)
        if call == "tensor_tensor":
            nisa.tensor_tensor(dst, a, a, nl.add, engine=on)
        elif call == "memset":
            nisa.memset(dst, 0.0, engine=on)
        elif call == "tensor_copy":
            nisa.tensor_copy(dst, a, engine=on)
        elif call == "rsqrt":
            nisa.tensor_scalar(dst, a, nl.rsqrt, None, engine=on)
        else:
            nisa.tensor_tensor(dst, a, a, nl.power, engine=on)

    bench.refused(kernel, HardwareLimit.ENGINE, engine)


def test_scalar_engine_runs_only_some_tensor_scalar(bench):
    def kernel(op0, op1):
        a = bench.tile((128, 8))
        dst = nl.ndarray((128, 8), nl.float32)
        second = {} if op1 is None else {"op1": op1, "operand1": 1.0}
        nisa.tensor_scalar(dst, a, op0, 2.0, engine=nisa.engine.scalar, **second)
        return bench.save(dst)

    bench.refused(lambda: kernel(nl.subtract, None), HardwareLimit.ENGINE, "subtract")
    bench.refused(lambda: kernel(nl.add, nl.multiply), HardwareLimit.ENGINE, "multiply+add")
    bench.refused(lambda: kernel(nl.multiply, nl.add), HardwareLimit.ARCH, "v3", device="trn1")


def test_scalar_engine_has_no_tensor_copy_on_trn1(bench):
    def kernel():
        nisa.tensor_copy(nl.ndarray((128, 8), nl.float32), bench.tile((128, 8)), engine=nisa.engine.scalar)

    bench.refused(kernel, HardwareLimit.ARCH, "activation", device="trn1")


@pytest.mark.parametrize(("shape", "axis"), [((128, 4, 8), 1), ((128, 8), 0), ((128, 4, 8), (0, 1, 2))])
def test_reduce_axes_are_the_trailing_free_ones(bench, shape, axis):
    def kernel():
        nisa.tensor_reduce(nl.ndarray((128, 1), nl.float32), nl.add, bench.tile(shape), axis)

    bench.refused(kernel, HardwareLimit.REDUCE_AXIS, str(axis))


def test_reduce_result_has_the_kept_elements(bench):
    def kernel():
        nisa.tensor_reduce(nl.ndarray((128, 2), nl.float32), nl.add, bench.tile((128, 4, 8)), 2)

    bench.refused(kernel, HardwareLimit.SHAPE, "[128, 4]")


@pytest.mark.parametrize("op", ["power", "greater", "exp"])
def test_reduce_operators(bench, op):
    def kernel():
        nisa.tensor_reduce(nl.ndarray((128, 1), nl.float32), getattr(nl, op), bench.tile((128, 8)), 1)

    bench.refused(kernel, HardwareLimit.OPERATOR, op)


@pytest.mark.parametrize(("value", "dtype"), [(300, nl.uint8), (1.5, nl.int32), (1e6, nl.float16), (-1, nl.uint16)])
def test_memset_value_fits_its_type(bench, value, dtype):
    bench.refused(lambda: bench.tile((128, 4), dtype, value=value), HardwareLimit.VALUE, str(value))


def test_packed_types_are_set_to_zero_only(bench):
    bench.refused(lambda: bench.tile((128, 4), nl.float8_e4m3fn_x4, value=1), HardwareLimit.VALUE, "float8_e4m3fn_x4")


def test_predicate_types(bench):
    def kernel(dtype):
        a = bench.tile((128, 8))
        nisa.tensor_copy_predicated(a, bench.tile((128, 8)), bench.tile((128, 8), dtype))

    bench.refused(lambda: kernel(nl.float32), HardwareLimit.DTYPE, "predicate")
    bench.refused(lambda: kernel(nl.int8), HardwareLimit.DTYPE, "predicate")


def test_predicated_copy_keeps_the_type(bench):
    def kernel():
        src = bench.tile((128, 8), nl.bfloat16)
        nisa.tensor_copy_predicated(bench.tile((128, 8)), src, bench.tile((128, 8), nl.uint8))

    bench.refused(kernel, HardwareLimit.DTYPE, "bfloat16", "float32")


def test_an_operand_must_be_a_tensor_and_an_op_an_operator(bench):
    bench.refused(lambda: nisa.tensor_copy(nl.ndarray((4, 4), nl.float32), 3.0), HardwareLimit.OPERAND, "float")
    bench.refused(
        lambda: nisa.tensor_tensor(bench.tile((4, 4)), bench.tile((4, 4)), bench.tile((4, 4)), np.add),
        HardwareLimit.OPERATOR,
        "ufunc",
    )


def test_compute_engines_cannot_read_hbm(bench):
    def kernel(x):
        nisa.tensor_copy(nl.ndarray((4, 4), nl.float32), x)

    bench.refused(kernel, HardwareLimit.BUFFER, "shared_hbm", args=(np.zeros((4, 4), np.float32),))


def test_unknown_instructions_and_wrappers_say_so(bench):
    bench.refused(lambda: nisa.topk(None, None, None, 8), HardwareLimit.UNSUPPORTED, "topk")
    bench.refused(lambda: nl.add(1, 2), HardwareLimit.UNSUPPORTED, "nl.add")


@pytest.mark.parametrize("buffer", ["sbuf", None, 3])
def test_buffers_are_no_strings(bench, buffer):
    bench.refused(lambda: nl.ndarray((4, 4), nl.float32, buffer=buffer), HardwareLimit.BUFFER, repr(buffer))


def test_unknown_dtype(bench):
    bench.refused(lambda: nl.ndarray((4, 4), "float64"), HardwareLimit.DTYPE, "float64")
