"""Order and overlap on the timeline."""

from __future__ import annotations

import json
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl
from fluxrewrite.kernels.emulator import simulate
from fluxrewrite.kernels.emulator.specs import DEVICES
from fluxrewrite.kernels.emulator.timeline import Engine, Timeline, dma_efficiency
from fluxrewrite.kernels.emulator.tracker import Tracker
from hypothesis import given, settings
from hypothesis import strategies as st

FP = nl.float32


def events(kernel, *args, device="trn2"):
    return simulate(kernel, device=device)(*args).profile.events[0]


def ready(shape):
    """A tile written on GpSimd, which leaves the other engines free."""
    tile = nl.ndarray(shape, FP)
    nisa.memset(tile, 0.0, engine=nisa.engine.gpsimd)
    return tile


def only(found, name):
    return [e for e in found if e.name == name]


def test_independent_instructions_on_different_engines_overlap():
    def kernel():
        b, a = ready((128, 512)), ready((128, 512))
        nisa.activation(a, nl.exp, a)
        nisa.tensor_scalar(b, b, nl.add, 1.0)

    found = events(kernel)
    (first,), (second,) = only(found, "activation"), only(found, "tensor_scalar")
    assert second.start < first.end


def test_an_engine_runs_one_instruction_at_a_time_in_order(bench):
    def kernel():
        for _ in range(4):
            bench.tile((128, 64))

    found = events(kernel)
    assert [e.start for e in found[1:]] == [e.end for e in found[:-1]]


@pytest.mark.parametrize("hazard", ["read after write", "write after read", "write after write"])
def test_dependences(hazard):
    def kernel():
        a, b, c = ready((128, 512)), ready((128, 512)), ready((128, 512))
        if hazard == "read after write":
            nisa.activation(a, nl.exp, b)
            nisa.tensor_copy(c, a)
        elif hazard == "write after read":
            nisa.activation(b, nl.exp, a)
            nisa.tensor_copy(a, c)
        else:
            nisa.activation(a, nl.exp, b)
            nisa.tensor_copy(a, c)

    found = events(kernel)
    (first,), (second,) = only(found, "activation"), only(found, "tensor_copy")
    assert second.start == first.end


def test_regions_of_one_tile_are_told_apart(bench):
    def kernel(columns):
        a, b = bench.tile((128, 1024)), bench.tile((128, 512))
        nisa.activation(a[:, 0:512], nl.exp, b)
        nisa.tensor_scalar(a[:, columns], a[:, columns], nl.add, 1.0)

    def gap(columns):
        found = events(kernel, columns)
        return only(found, "tensor_scalar")[0].start - only(found, "activation")[0].end

    assert gap(slice(512, 1024)) < 0
    assert gap(slice(511, 1023)) == 0


def test_space_that_is_used_again_delays_its_next_tensor():
    def kernel(size):
        for _ in range(2):
            tile = nl.ndarray((128, size), FP)
            nisa.memset(tile, 0.0, engine=nisa.engine.gpsimd)
            nisa.activation(tile, nl.exp, tile)
            del tile

    small, large = events(kernel, 256), events(kernel, 50 * 1024)
    assert only(small, "memset")[1].start < only(small, "activation")[0].end
    assert only(large, "memset")[1].start == only(large, "activation")[0].end


def test_placed_tensors_side_by_side_are_independent_and_shared_bytes_are_not(bench):
    def kernel(byte):
        a = nl.ndarray((128, 1), FP, address=(0, 0))
        b = nl.ndarray((128, 1), FP, address=(0, byte))
        source = ready((128, 512))
        nisa.activation_reduce(source, nl.exp, source, nl.add, a)
        nisa.memset(b, 0.0)

    def gap(byte):
        found = events(kernel, byte)
        return only(found, "memset")[1].start - only(found, "activation_reduce")[0].end

    assert gap(4) < 0
    assert gap(0) == 0


def test_tiled_matmuls_share_the_array(bench):
    def kernel(second_row):
        a, b = bench.tile((128, 128), nl.bfloat16), bench.tile((128, 512), nl.bfloat16)
        for row in (0, second_row):
            dst = nl.ndarray((128, 512), FP, nl.psum)
            nisa.nc_matmul(dst, a[row : row + 64], b[row : row + 64], tile_position=(row, 0), tile_size=(64, 128))

    apart, same = only(events(kernel, 64), "nc_matmul"), only(events(kernel, 0), "nc_matmul")
    assert apart[1].start == apart[0].start
    assert same[1].start == same[0].end
    assert simulate(kernel)(64).profile.engine("tensor").busy_us == pytest.approx(512 / 2.4 / 1000)


def test_vector_and_gpsimd_share_sbuf_on_trn1_only(bench):
    def kernel():
        a, b = bench.tile((128, 512)), bench.tile((128, 512))
        nisa.tensor_scalar(a, a, nl.add, 1.0)
        nisa.tensor_scalar(b, b, nl.add, 1.0, engine=nisa.engine.gpsimd)

    old, new = only(events(kernel, device="trn1"), "tensor_scalar"), only(events(kernel), "tensor_scalar")
    assert old[1].start >= old[0].end
    assert new[1].start < new[0].end


def test_dma_pays_latency_and_bandwidth():
    spec = DEVICES["trn2"]
    event, _ = Timeline(spec).dma("copy", 2**20, 4096, 0.0, "")
    assert event.start == spec.dma_latency_ns
    assert event.end - event.start == pytest.approx(2**20 / 362)


def test_concurrent_dmas_share_the_bandwidth():
    timeline = Timeline(DEVICES["trn2"])
    ends = [timeline.dma("copy", 2**20, 4096, 0.0, "")[0].end for _ in range(8)]
    assert max(ends) == pytest.approx(1300 + 8 * 2**20 / 362)


def test_a_waiting_dma_does_not_hold_up_the_others():
    timeline = Timeline(DEVICES["trn2"])
    timeline.dma("store", 2**20, 4096, 1e6, "")
    load, _ = timeline.dma("load", 2**20, 4096, 0.0, "")
    assert load.end < 1e5


def test_hwdge_takes_time_to_issue():
    timeline = Timeline(DEVICES["trn2"])
    starts = [timeline.dma("copy", 64, 64, 0.0, "", hwdge=True)[0].start for _ in range(4)]
    assert starts == pytest.approx([1900, 1900, 2500, 2500], abs=50)


def test_short_runs_waste_bandwidth():
    runs = [2, 64, 256, 512, 2048, 4096]
    shares = [dma_efficiency(r) for r in runs]
    assert shares == sorted(shares)
    assert shares[0] < 0.01
    assert 0.4 < shares[2] < 0.6
    assert shares[4] > 0.9
    assert shares[5] == dma_efficiency(10**6) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 2000)), max_size=30))
def test_bandwidth_is_never_given_out_twice(requests):
    timeline = Timeline(DEVICES["trn2"])
    taken = []
    for ready, kib in requests:
        event, busy = timeline.dma("copy", kib * 1024, 4096, ready, "")
        assert event.start >= ready + 1300
        taken.append((event.start, event.start + busy))
    taken.sort()
    assert all(b >= a_end - 1e-3 for (_, a_end), (b, _) in pairwise(taken))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 99), st.integers(1, 20), st.integers(0, 127), st.integers(1, 64)),
        min_size=1,
        max_size=20,
    )
)
def test_tracker_never_misses_a_conflict(accesses):
    tracker = Tracker((128, 120), on_chip=True)
    done = []
    for time, (write, column, width, partition, count) in enumerate(accesses, 1):
        box = ((partition, min(127, partition + count - 1)), (column, column + width - 1))
        overlapping = [
            (end, wrote)
            for end, wrote, other in done
            if all(a[0] <= b[1] and b[0] <= a[1] for a, b in zip(box, other, strict=True))
        ]
        need = max((end for end, wrote in overlapping if wrote or write), default=0)
        assert (tracker.write_after(box) if write else tracker.read_after(box)) >= need
        (tracker.write if write else tracker.read)(box, float(time))
        done.append((float(time), write, box))


def two_step(bench, x):
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    for i in range(x.shape[0] // 128):
        tile = bench.load(x[i * 128 : i * 128 + 128])
        nisa.activation(tile, nl.exp, tile)
        nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)
        nisa.dma_copy(out[i * 128 : i * 128 + 128], tile)
    return out


def test_latency_lies_between_the_busiest_engine_and_the_sum(bench):
    profile = simulate(lambda x: two_step(bench, x))(np.ones((1024, 512), np.float32)).profile
    busy = [row.busy_us for row in profile.table()]
    assert max(busy) <= profile.latency_us < sum(busy) + 9 * 2 * 1.3
    assert profile.latency_us < 0.8 * (sum(busy) + 9 * 2 * 1.3)
    assert all(0 <= row.utilisation <= 1 for row in profile.table())
    assert {row.engine for row in profile.table()} == set(Engine)


def test_chrome_trace(bench):
    run = simulate(lambda x: two_step(bench, x))(np.ones((256, 64), np.float32))
    trace = json.loads(json.dumps(run.profile.chrome_trace()))
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(slices) == sum(row.instructions for row in run.profile.table())
    assert all(
        (e["dur"] > 0 and "test_timeline.py" in e["args"]["line"]) or "conftest.py" in e["args"]["line"] for e in slices
    )
    names = {e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert {"vector", "scalar", "dma ring 0"} <= names
    assert max(e["ts"] + e["dur"] for e in slices) == pytest.approx(run.profile.latency_us)
    totals = {row.name: row.count for row in run.profile.instructions()}
    assert totals == {"dma_copy": 4, "activation": 2, "tensor_scalar": 2}


def test_runs_do_not_influence_each_other_and_repeat_exactly(bench):
    x = np.ones((256, 64), ml_dtypes.bfloat16)
    first, second = (simulate(lambda a: two_step(bench, a))(x).profile for _ in range(2))
    assert first == second


def test_trace_can_be_left_out(bench):
    full = simulate(lambda x: two_step(bench, x))(np.ones((256, 64), np.float32)).profile
    bare = simulate(lambda x: two_step(bench, x), trace=False)(np.ones((256, 64), np.float32)).profile
    assert bare.events == ((),)
    assert (bare.engines, bare.latency_us) == (full.engines, full.latency_us)
