"""Limits of DMA, activation, selection and two-core instructions, and of kernels as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from fluxrewrite.kernels.emulator import EmulationError, HardwareLimit, simulate
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl

X = np.ones((128, 64), np.float32)
FP32_MIN = float(np.finfo(np.float32).min)


def test_dma_does_not_reach_psum(bench):
    def reads(x):
        nisa.dma_copy(nl.ndarray(x.shape, x.dtype, nl.shared_hbm), bench.tile((128, 64), buffer=nl.psum))

    def writes(x):
        nisa.dma_copy(nl.ndarray(x.shape, x.dtype, nl.psum), x)

    bench.refused(reads, HardwareLimit.DMA_PSUM, "src", args=(X,))
    bench.refused(writes, HardwareLimit.DMA_PSUM, "dst", args=(X,))


def test_dma_element_counts_agree(bench):
    bench.refused(
        lambda x: nisa.dma_copy(nl.ndarray((128, 63), nl.float32), x),
        HardwareLimit.DMA_ELEMENTS,
        "8064",
        "8192",
        args=(X,),
    )


def test_hwdge_does_not_convert_and_needs_trn2(bench):
    def kernel(x):
        nisa.dma_copy(nl.ndarray((128, 64), nl.bfloat16), x, dge_mode=nisa.dge_mode.hwdge)

    bench.refused(kernel, HardwareLimit.DMA_MODE, "float32", "bfloat16", args=(X,))
    bench.refused(kernel, HardwareLimit.ARCH, "v3", device="trn1", args=(X,))


def test_dma_priority(bench):
    def kernel(x, priority):
        nisa.dma_copy(nl.ndarray((128, 64), nl.float32), x, priority=priority)

    bench.refused(kernel, HardwareLimit.ARCH, "v4", args=(X, 1))
    bench.refused(kernel, HardwareLimit.DMA_MODE, "priority=4", device="trn3", args=(X, 4))


@pytest.mark.parametrize(
    ("dst", "axes", "text"),
    [((64, 127), None, "[64, 128]"), ((64, 128), (0, 1), "(0, 1)")],
)
def test_dma_transpose_shapes(bench, dst, axes, text):
    def kernel(x):
        nisa.dma_transpose(nl.ndarray(dst, nl.float32), x, axes=axes)

    bench.refused(kernel, HardwareLimit.DMA_TRANSPOSE, text, args=(X,))


def test_dma_transpose_types_memory_and_modes(bench):
    def kernel(x, dtype, buffer, **options):
        nisa.dma_transpose(nl.ndarray((64, 128), dtype, buffer), x, **options)

    bench.refused(lambda x: kernel(x, nl.bfloat16, nl.sbuf), HardwareLimit.DMA_TRANSPOSE, "bfloat16", args=(X,))
    bench.refused(lambda x: kernel(x, nl.float32, nl.shared_hbm), HardwareLimit.DMA_TRANSPOSE, "SBUF", args=(X,))
    software, hardware = {"dge_mode": nisa.dge_mode.swdge}, {"dge_mode": nisa.dge_mode.hwdge}
    bench.refused(lambda x: kernel(x, nl.float32, nl.sbuf, **software), HardwareLimit.DMA_MODE, "swdge", args=(X,))
    bench.refused(
        lambda x: kernel(x, nl.float32, nl.sbuf, **hardware), HardwareLimit.DMA_TRANSPOSE, "2-byte", args=(X,)
    )


def test_on_chip_side_of_a_dma_has_consecutive_partitions(bench):
    def kernel(x):
        nisa.dma_copy(nl.ndarray((128, 64), nl.float32)[0:128:2], x[0:64])

    bench.refused(kernel, HardwareLimit.PARTITION_STEP, "by 2", args=(X,))


@pytest.mark.parametrize(
    ("op", "value"),
    [("rsqrt", 0.0), ("sqrt", -1.0), ("log", 0.0), ("reciprocal", 0.0), ("sin", 3.2), ("arctan", 2.0)],
)
def test_activation_ranges(bench, op, value):
    def kernel():
        nisa.activation(nl.ndarray((4, 4), nl.float32), getattr(nl, op), bench.tile((4, 4), value=value))

    bench.refused(kernel, HardwareLimit.ACTIVATION_RANGE, f"nl.{op}", "16 inputs")


def test_activation_reduces_with_add_only(bench):
    def kernel(op, command):
        tile = bench.tile((4, 4))
        nisa.activation(tile, nl.exp, tile, reduce_op=op, reduce_cmd=command, reduce_res=nl.ndarray((4, 1), nl.float32))

    bench.refused(lambda: kernel(nl.maximum, nisa.reduce_cmd.reset_reduce), HardwareLimit.REDUCE, "maximum")
    bench.refused(lambda: kernel(nl.add, nisa.reduce_cmd.load_reduce), HardwareLimit.REDUCE, "load_reduce")
    bench.refused(lambda: kernel(nl.add, nisa.reduce_cmd.reduce), HardwareLimit.REDUCE, "never reset")


def test_activation_operands(bench):
    def kernel(**options):
        tile = bench.tile((4, 4))
        nisa.activation(tile, nl.exp, tile, **{k: v() if callable(v) else v for k, v in options.items()})

    bench.refused(
        lambda: kernel(scale=lambda: bench.tile((4, 1), nl.bfloat16)), HardwareLimit.OPERAND, "scale", "float32"
    )
    bench.refused(lambda: kernel(bias=lambda: bench.tile((4, 1), nl.tfloat32)), HardwareLimit.OPERAND, "bias")
    bench.refused(lambda: kernel(bias=1.0), HardwareLimit.ARCH, "bias", device="trn1")
    bench.refused(
        lambda: nisa.activation(bench.tile((4, 4)), nl.add, bench.tile((4, 4))), HardwareLimit.OPERATOR, "nl.add"
    )


def test_tensor_scalar_reduce(bench):
    def kernel(op=nl.add, **options):
        tile = bench.tile((4, 4))
        nisa.tensor_scalar_reduce(tile, tile, nl.add, 1.0, op, nl.ndarray((4, 1), nl.float32), **options)

    bench.refused(lambda: kernel(nl.subtract), HardwareLimit.REDUCE, "subtract")
    bench.refused(lambda: kernel(reverse0=True), HardwareLimit.OPERATOR, "reverse0")
    bench.refused(lambda: kernel(reduce_init=1.0), HardwareLimit.REDUCE, "reduce_init")
    bench.refused(lambda: kernel(reduce_cmd=nisa.reduce_cmd.idle), HardwareLimit.REDUCE, "idle")
    bench.refused(lambda: kernel(reduce_cmd=nisa.reduce_cmd.reduce), HardwareLimit.REDUCE, "accumulator")


def test_exponential_needs_trn3(bench):
    bench.refused(lambda: nisa.exponential(bench.tile((4, 4)), bench.tile((4, 4))), HardwareLimit.ARCH, "v4")


def test_iota_patterns(bench):
    def kernel(pattern, buffer=nl.sbuf):
        nisa.iota(nl.ndarray((4, 8), nl.int32, buffer), pattern)

    bench.refused(lambda: kernel([[1, 7]]), HardwareLimit.PATTERN, "7 elements", "8")
    bench.refused(lambda: kernel([[1, 1]] * 4 + [[1, 8]]), HardwareLimit.PATTERN, "one to four")
    bench.refused(lambda: kernel([[1, 8]], nl.psum), HardwareLimit.BUFFER, "SBUF")


def test_affine_select_reads_sbuf(bench):
    def kernel(buffer, cmp_op=nl.greater_equal):
        tile = bench.tile((4, 8), buffer=buffer)
        nisa.affine_select(nl.ndarray((4, 8), nl.float32), [[1, 8]], 1, tile, 0.0, cmp_op=cmp_op)

    bench.refused(lambda: kernel(nl.psum), HardwareLimit.BUFFER, "on_true_tile", "SBUF")
    bench.refused(lambda: kernel(nl.sbuf, nl.add), HardwareLimit.OPERATOR, "nl.add")


def test_range_select(bench):
    def kernel(bound=lambda: None, ops=(nl.greater_equal, nl.less), dtype=nl.float32, **options):
        b = bound() or bench.tile((4, 1))
        dst = nl.ndarray((4, 8), nl.float32)
        nisa.range_select(dst, bench.tile((4, 8), dtype), *ops, b, b, **options)

    bench.refused(kernel, HardwareLimit.ARCH, "v3", device="trn1")
    bench.refused(lambda: kernel(on_false_value=0.0), HardwareLimit.VALUE, "-3.4")
    bench.refused(lambda: kernel(range_start=2**24), HardwareLimit.VALUE, "2**24")
    bench.refused(lambda: kernel(ops=(nl.not_equal, nl.less)), HardwareLimit.OPERATOR, "comp_op0")
    bench.refused(lambda: kernel(dtype=nl.int32), HardwareLimit.DTYPE, "int32")
    bench.refused(lambda: kernel(reduce_op=nl.add), HardwareLimit.REDUCE, "maximum")
    bench.refused(lambda: kernel(bound=lambda: bench.tile((4, 1), nl.bfloat16)), HardwareLimit.OPERAND, "bound0")


def test_select_reduce(bench):
    def kernel(predicate=nl.uint8, on_true=nl.float32, shape=(4, 8), **options):
        nisa.select_reduce(
            nl.ndarray((4, 8), nl.float32), bench.tile((4, 8), predicate), bench.tile(shape, on_true), 0.0, **options
        )

    bench.refused(lambda: kernel(predicate=nl.float32), HardwareLimit.DTYPE, "predicate")
    bench.refused(lambda: kernel(on_true=nl.int32), HardwareLimit.DTYPE, "int32")
    bench.refused(lambda: kernel(shape=(4, 4, 2)), HardwareLimit.SHAPE, "identical")
    bench.refused(lambda: kernel(reduce_op=nl.add), HardwareLimit.REDUCE, "maximum")


def test_bn_stats_sizes(bench):
    def stats(n, m):
        nisa.bn_stats(nl.ndarray((4, m), nl.float32), bench.tile((4, n)))

    bench.refused(lambda: stats(513, 6), HardwareLimit.BN_STATS, "513", "512")
    bench.refused(lambda: stats(64, 5), HardwareLimit.BN_STATS, "(4, 6)")
    bench.refused(
        lambda: nisa.bn_aggr(nl.ndarray((4, 2), nl.float32), bench.tile((4, 4))), HardwareLimit.BN_STATS, "threes"
    )
    bench.refused(
        lambda: nisa.bn_aggr(nl.ndarray((4, 3), nl.float32), bench.tile((4, 6))), HardwareLimit.BN_STATS, "(4, 2)"
    )


def test_partition_reduce(bench):
    def kernel(op, shape):
        nisa.tensor_partition_reduce(nl.ndarray(shape, nl.float32), op, bench.tile((4, 8)))

    bench.refused(lambda: kernel(nl.minimum, (1, 8)), HardwareLimit.OPERATOR, "minimum")
    bench.refused(lambda: kernel(nl.add, (4, 8)), HardwareLimit.SHAPE, "[1, 8]")


def test_shuffle_mask(bench):
    def kernel(mask):
        nisa.nc_stream_shuffle(bench.tile((32, 4)), bench.tile((32, 4)), mask)

    bench.refused(lambda: kernel([0] * 31), HardwareLimit.PATTERN, "32 entries")
    bench.refused(lambda: kernel([40] * 32), HardwareLimit.PATTERN, "0 to 31")


def test_barriers_need_two_cores_and_shared_memory(bench):
    def kernel(buffer):
        nisa.core_barrier(nl.ndarray((4, 4), nl.float32, buffer), (0, 1))

    bench.refused(lambda: kernel(nl.shared_hbm), HardwareLimit.LNC, "two cores")
    with pytest.raises(EmulationError) as caught:
        simulate(kernel, lnc=2)(nl.private_hbm)
    assert caught.value.limit is HardwareLimit.BUFFER


def test_cores_must_meet():
    def kernel():
        data = nl.ndarray((4, 4), nl.float32, nl.shared_hbm)
        if nl.program_id(0) == 0:
            nisa.core_barrier(data, (0, 1))

    with pytest.raises(EmulationError, match="without taking part") as caught:
        simulate(kernel, lnc=2)()
    assert caught.value.limit is HardwareLimit.LNC


def test_cores_allocate_the_same_shared_tensors():
    def kernel():
        nl.ndarray((4, 4 + nl.program_id(0)), nl.float32, nl.shared_hbm)

    with pytest.raises(EmulationError, match="control flow differs") as caught:
        simulate(kernel, lnc=2)()
    assert caught.value.limit is HardwareLimit.LNC


def test_trn1_has_one_core():
    with pytest.raises(EmulationError, match="trn1") as caught:
        simulate(lambda: None, device="trn1", lnc=2)
    assert caught.value.limit is HardwareLimit.LNC


@pytest.mark.parametrize("buffer", [nl.private_hbm, nl.sbuf])
def test_outputs_are_in_shared_hbm(bench, buffer):
    def kernel(x):
        out = nl.ndarray(x.shape, x.dtype, buffer)
        nisa.dma_copy(out, x)
        return out

    with pytest.raises(EmulationError, match="shared_hbm") as caught:
        simulate(kernel)(X)
    assert caught.value.limit is HardwareLimit.OUTPUT_BUFFER


@pytest.mark.parametrize("numerics", [True, False])
@pytest.mark.parametrize("rows", [0, 127])
def test_outputs_are_written_in_full(rows, numerics):
    def kernel(x):
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        if rows:
            nisa.dma_copy(out[0:rows], x[0:rows])
        return (out,)

    with pytest.raises(EmulationError, match=f"{(128 - rows) * 64} of 8192") as caught:
        simulate(kernel, numerics=numerics)(X)
    assert caught.value.limit is HardwareLimit.OUTPUT_UNWRITTEN
