"""Capacity, lifetimes and unwritten memory."""

from __future__ import annotations

import numpy as np
import pytest
from fluxrewrite.kernels.emulator import HardwareLimit, simulate
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl
from fluxrewrite.kernels.emulator.memory import psum_bytes

KIB = 1024
X = np.arange(128 * 64, dtype=np.float32).reshape(128, 64)


@pytest.mark.parametrize(("device", "kib"), [("trn1", 192), ("trn2", 224), ("trn3", 256)])
def test_sbuf_holds_what_the_device_has(bench, device, kib):
    def kernel(size):
        return nl.ndarray((128, size), nl.uint8) and None

    simulate(kernel, device=device)(kib * KIB)
    bench.refused(kernel, HardwareLimit.SBUF_CAPACITY, str(kib * KIB), device=device, args=(kib * KIB + 1,))


def test_live_tensors_add_up(bench):
    def kernel(count):
        return [nl.ndarray((128, 32 * KIB), nl.uint8) for _ in range(count)] and None

    assert simulate(kernel)(7).profile.peak("sbuf") == 7 * 32 * KIB

    def kept(count):
        tiles = [bench.tile((128, 32 * KIB), nl.uint8) for _ in range(count)]
        for tile in tiles:
            nisa.memset(tile, 1)

    bench.refused(kept, HardwareLimit.SBUF_CAPACITY, "229376", args=(8,))


def test_psum_holds_eight_banks(bench):
    def kernel(count):
        banks = [nl.ndarray((128, 512), nl.float32, nl.psum) for _ in range(8)]
        if count > 8:
            extra = nl.ndarray((128, 1), nl.float32, nl.psum)
            nisa.memset(extra, 0.0)
        nisa.memset(banks[0], 0.0)

    assert simulate(kernel)(8).profile.peak("psum") == 16 * KIB
    bench.refused(kernel, HardwareLimit.PSUM_CAPACITY, "16384", args=(9,))


@pytest.mark.parametrize(
    ("size", "taken"), [(1, 4), (4, 4), (5, 8), (512, 512), (1000, 1024), (1025, 2048), (2048, 2048), (2049, 4096)]
)
def test_psum_tensors_take_parts_of_banks_that_never_straddle(size, taken):
    assert psum_bytes(size) == taken


def test_dropped_tensors_free_their_space():
    def kernel():
        for _ in range(20):
            tile = nl.ndarray((128, 100 * KIB), nl.uint8)
            del tile

    assert simulate(kernel)().profile.peak("sbuf") == 100 * KIB


def test_views_keep_their_tensor_alive(bench):
    def kernel():
        view = nl.ndarray((128, 200 * KIB), nl.uint8)[0:1, 0:1]
        nisa.memset(view, 0)
        other = nl.ndarray((128, 100 * KIB), nl.uint8)
        nisa.memset(other, 0)

    bench.refused(kernel, HardwareLimit.SBUF_CAPACITY, "102400")


def test_a_loop_may_rebind_a_tensor_of_more_than_half_the_space():
    def kernel():
        for _ in range(3):
            tile = nl.ndarray((128, 150 * KIB), nl.uint8)
            nisa.memset(tile, 0)

    assert simulate(kernel)().profile.peak("sbuf") == 150 * KIB


def test_reclaimed_tensors_cannot_be_used(bench):
    def kernel():
        tiles = []
        for _ in range(2):
            tile = nl.ndarray((128, 150 * KIB), nl.uint8)
            nisa.memset(tile, 0)
            tiles.append(tile)
        nisa.memset(tiles[0], 1)

    bench.refused(kernel, HardwareLimit.SBUF_CAPACITY, "given to later tensors")


def test_reading_fresh_memory_is_refused(bench):
    def kernel():
        nisa.tensor_copy(nl.ndarray((128, 8), nl.float32), nl.ndarray((128, 8), nl.float32, name="fresh"))

    bench.refused(kernel, HardwareLimit.UNINITIALISED, "1024 of 1024", "fresh")


@pytest.mark.parametrize("numerics", [True, False])
def test_reading_a_partly_written_tile_is_refused_exactly(numerics):
    def kernel(columns):
        tile, out = nl.ndarray((128, 8), nl.float32), nl.ndarray((128, 8), nl.float32)
        nisa.memset(tile[:, 0:3], 0.0)
        nisa.memset(tile[:, 4:8], 0.0)
        nisa.tensor_copy(out[:, columns], tile[:, columns])

    simulate(kernel, numerics=numerics)(slice(0, 3))
    simulate(kernel, numerics=numerics)(slice(4, 8))
    with pytest.raises(Exception, match="128 of 512 elements"):
        simulate(kernel, numerics=numerics)(slice(2, 6))


def test_predicated_copies_need_the_rest_to_be_there(bench):
    def kernel():
        nisa.tensor_copy_predicated(nl.ndarray((4, 4), nl.float32), bench.tile((4, 4)), bench.tile((4, 4), nl.uint8))

    bench.refused(kernel, HardwareLimit.UNINITIALISED, "16 of 16")


def test_reinterpreted_views_share_what_was_written(bench):
    def kernel(read_all):
        tile = nl.ndarray((4, 8), nl.float32)
        nisa.memset(tile[:, 0:4].view(nl.int16), 0)
        out = nl.ndarray((4, 8), nl.float32)
        last = 8 if read_all else 4
        nisa.tensor_copy(out[:, 0:last], tile[:, 0:last])

    simulate(kernel)(False)
    bench.refused(kernel, HardwareLimit.UNINITIALISED, "16 of 32", args=(True,))


def test_fresh_memory_holds_nan():
    def kernel(x):
        out = nl.ndarray((128, 64), nl.float32)
        return out.array().copy(), nl.ndarray((2, 2), nl.int32).array().copy()

    floats, integers = simulate(kernel)(X).outputs
    assert np.isnan(floats).all()
    assert (integers == 4).all()


def test_placed_tensors_count_by_address_and_cannot_leave_the_memory(bench):
    def kernel(at):
        nisa.memset(nl.ndarray((32, 64), nl.float32, address=(32, at)), 0.0)

    assert simulate(kernel)(1000).profile.peak("sbuf") == 1256
    bench.refused(kernel, HardwareLimit.SBUF_CAPACITY, "byte", args=(224 * KIB - 255,))


def test_placed_tensors_follow_the_partition_start_rule(bench):
    def kernel():
        nisa.memset(nl.ndarray((64, 4), nl.float32, address=(32, 0)), 0.0)

    bench.refused(kernel, HardwareLimit.PARTITION_START, "partition 32")


def test_writing_over_a_placed_tensor_destroys_it(bench):
    def kernel(byte, use):
        old = nl.ndarray((128, 64), nl.float32, address=(0, 0))
        new = nl.ndarray((128, 64), nl.float32, address=(0, byte))
        nisa.memset(old, 1.0)
        nisa.memset(new, 2.0)
        nisa.tensor_copy(nl.ndarray((128, use), nl.float32), old[:, 0:use])

    simulate(kernel)(256, 64)
    simulate(kernel)(128, 32)
    bench.refused(kernel, HardwareLimit.UNINITIALISED, "128 of 4224", args=(128, 33))


@pytest.mark.parametrize("key", [(slice(0, 129),), (0, 64), (slice(8, 8),), (0, slice(60, 70)), (0, 0, 0), (-129,)])
def test_indices_stay_inside(bench, key):
    bench.refused(lambda: nl.ndarray((128, 64), nl.float32)[key], HardwareLimit.INDEX)


@pytest.mark.parametrize(
    ("pattern", "offset"),
    [([[64, 128], [1, 65]], 0), ([[64, 129], [1, 64]], 0), ([[64, 128], [2, 33]], 0), ([[64, 1]], -1)],
)
def test_patterns_stay_inside(bench, pattern, offset):
    bench.refused(lambda: nl.ndarray((128, 64), nl.float32).ap(pattern, offset), HardwareLimit.INDEX, "ap")
