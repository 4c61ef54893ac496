"""simulate, jit, two cores, argument kinds and the nki stand-ins."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from fluxrewrite.kernels.emulator import EmulationError, HardwareLimit, installed, jit, simulate
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl

BF16 = ml_dtypes.bfloat16


@jit
def halves(x, scale=1.0):
    """Scales x; with two cores each does half of the rows."""
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    rows = x.shape[0] // nl.num_programs(0)
    first = rows * nl.program_id(0)
    tile = nl.ndarray((rows, x.shape[1]), x.dtype)
    nisa.dma_copy(tile, x[first : first + rows])
    nisa.tensor_scalar(tile, tile, nl.multiply, scale)
    nisa.dma_copy(out[first : first + rows], tile)
    return out


X = np.arange(64 * 8, dtype=np.float32).reshape(64, 8)


def test_one_and_two_cores_agree():
    one, two = simulate(halves)(X, scale=2.0), simulate(halves[2])(X, scale=2.0)
    np.testing.assert_array_equal(one.outputs, 2 * X)
    np.testing.assert_array_equal(two.outputs, 2 * X)
    assert (one.profile.lnc, two.profile.lnc) == (1, 2)
    assert [two.profile.engine("dma", c).bytes for c in (0, 1)] == [X.nbytes, X.nbytes]
    assert two.profile.dma_bytes == one.profile.dma_bytes


def test_lnc_argument_overrides_the_grid():
    assert simulate(halves, lnc=2)(X).profile.lnc == 2
    assert simulate(halves[2], lnc=1)(X).profile.lnc == 1


def test_kernels_can_be_called_plainly_and_inside_kernels():
    np.testing.assert_array_equal(halves(X), X)

    @jit
    def outer(x):
        return halves(x, 3.0)

    np.testing.assert_array_equal(outer[2](X), 3 * X)


@pytest.mark.parametrize("grid", [3, (2, 2), 0])
def test_grids(grid):
    with pytest.raises(EmulationError) as caught:
        halves[grid]
    assert caught.value.limit is HardwareLimit.LNC


def test_barrier_orders_the_cores_on_shared_memory(bench):
    @jit
    def swap(x):
        out = nl.ndarray((2, 128, 64), nl.float32, nl.shared_hbm)
        middle = nl.ndarray((2, 128, 64), nl.float32, nl.shared_hbm)
        me = nl.program_id(0)
        tile = bench.load(x)
        for _ in range(1 + 9 * me):
            nisa.tensor_scalar(tile, tile, nl.add, 1.0)
        nisa.dma_copy(middle[me], tile)
        nisa.core_barrier(middle, (0, 1))
        other = bench.load(middle[1 - me])
        nisa.dma_copy(out[me], other)
        return out

    run = simulate(swap[2])(np.zeros((128, 64), np.float32))
    assert (run.outputs[0] == 10).all()
    assert (run.outputs[1] == 1).all()
    slow = max(e.end for e in run.profile.events[1] if e.name == "tensor_scalar")
    after = [e for e in run.profile.events[0] if e.name == "dma_copy"][2]
    assert after.start > slow


def test_without_a_barrier_the_other_cores_data_are_missing(bench):
    @jit
    def swap(x):
        middle = nl.ndarray((2, 128, 64), nl.float32, nl.shared_hbm)
        nisa.dma_copy(middle[nl.program_id(0)], bench.load(x))
        bench.load(middle[1 - nl.program_id(0)])

    with pytest.raises(EmulationError) as caught:
        simulate(swap[2])(np.zeros((128, 64), np.float32))
    assert caught.value.limit is HardwareLimit.UNINITIALISED


def test_sendrecv_exchanges_tiles(bench):
    @jit
    def exchange(x, pipe):
        out = nl.ndarray((2, 64, 8), nl.float32, nl.shared_hbm)
        me = nl.program_id(0)
        mine, theirs = bench.load(x[me]), nl.ndarray((64, 8), nl.float32)
        nisa.sendrecv(mine, theirs, 1 - me, 1 - me, pipe[me])
        nisa.dma_copy(out[me], theirs)
        return out

    data = np.stack([X, -X])
    np.testing.assert_array_equal(simulate(exchange[2])(data, (0, 0)).outputs, data[::-1])
    with pytest.raises(EmulationError, match="pipe 1") as caught:
        simulate(exchange[2])(data, (0, 1))
    assert caught.value.limit is HardwareLimit.LNC


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16", "int32", "uint8", "float8_e5m2", "float8_e4m3fn"])
def test_torch_tensors_come_back_as_torch_tensors(bench, dtype):
    torch = pytest.importorskip("torch")
    x = torch.arange(32).reshape(4, 8).to(getattr(torch, dtype))
    out = simulate(lambda a: bench.save(bench.load(a)))(x).outputs
    assert out.dtype == x.dtype
    assert torch.equal(out.float(), x.float())


def test_non_contiguous_torch_arguments(bench):
    torch = pytest.importorskip("torch")
    x = torch.arange(32, dtype=torch.float32).reshape(8, 4).T
    assert torch.equal(simulate(lambda a: bench.save(bench.load(a)))(x).outputs, x)


def test_arguments_without_an_nki_type():
    with pytest.raises(EmulationError, match="float64") as caught:
        simulate(halves)(X.astype(np.float64))
    assert caught.value.limit is HardwareLimit.DTYPE


@pytest.mark.parametrize("precise", [True, False])
def test_precise_rounds_low_precision(bench, precise):
    x = np.full((4, 4), 1.0, BF16)

    def kernel(a):
        tile = bench.load(a)
        nisa.tensor_scalar(tile, tile, nl.add, 2.0**-12)
        wide = nl.ndarray((4, 4), nl.float32)
        nisa.tensor_copy(wide, tile)
        return bench.save(wide)

    out = simulate(kernel, precise=precise)(x).outputs
    assert (out == (1.0 if precise else 1 + 2.0**-12)).all()


def test_results_have_their_type_when_not_precise(bench):
    out = simulate(lambda a: bench.save(bench.load(a)), precise=False)(X.astype(BF16)).outputs
    assert out.dtype == BF16


def test_without_numerics_costs_are_the_same_and_nothing_is_computed(bench):
    full = simulate(halves[2])(X.astype(BF16), scale=2.0)
    shapes = simulate(halves[2], numerics=False)(np.broadcast_to(np.zeros((), BF16), X.shape), scale=2.0)
    assert shapes.profile == full.profile
    assert (shapes.outputs.shape, shapes.outputs.dtype) == (X.shape, BF16)


def test_meta_tensors_profile():
    torch = pytest.importorskip("torch")
    x = torch.empty(64, 8, dtype=torch.bfloat16, device="meta")
    run = simulate(halves, numerics=False)(x)
    assert (run.outputs.device.type, run.outputs.shape, run.outputs.dtype) == ("meta", x.shape, x.dtype)
    assert run.profile.latency_us > 0


def test_arguments_that_a_kernel_writes_change_for_the_caller():
    def kernel(x):
        tile = nl.ones((4, 4), nl.float32)
        nisa.dma_copy(x, tile)
        return x

    x = np.zeros((4, 4), np.float32)
    out = simulate(kernel)(x).outputs
    assert (x == 1).all()
    assert (out == 1).all()


def test_arguments_that_a_kernel_only_reads_stay():
    x = X.copy()
    simulate(halves)(x, scale=5.0)
    np.testing.assert_array_equal(x, X)


def test_kernels_run_only_in_a_simulation():
    with pytest.raises(EmulationError, match="inside simulate"):
        nl.ndarray((4, 4), nl.float32)


def test_simulations_do_not_nest():
    with pytest.raises(EmulationError, match="inside another one"):
        simulate(lambda: simulate(halves)(X))()


def test_a_failed_run_leaves_no_machine_behind():
    with pytest.raises(EmulationError):
        simulate(lambda: nl.ndarray((129, 1), nl.float32))()
    with pytest.raises(EmulationError, match="inside simulate"):
        nl.ndarray((4, 4), nl.float32)


def test_unknown_devices():
    with pytest.raises(ValueError, match="trn9"):
        simulate(halves, device="trn9")


@pytest.mark.parametrize(("device", "generation"), [("trn1", 2), ("trn2", 3), ("trn3", 4)])
def test_kernels_can_ask_for_the_device(device, generation):
    def kernel():
        return nisa.get_nc_version(), nl.tile_size.sbuf_fmax_bytes, nl.tile_size.gemm_moving_fmax

    version, sbuf, moving = simulate(kernel, device=device)().outputs
    assert version == generation
    assert sbuf == {2: 192, 3: 224, 4: 256}[generation] * 1024
    assert moving == 512


def test_language_helpers():
    def kernel(x):
        assert nl.program_ndim() == 0
        assert [*nl.affine_range(3)] == [0, 1, 2]
        assert [*nl.static_range(1, 6, 2)] == [1, 3, 5]
        tile = nl.load(x)
        like = nl.zeros_like(tile)
        empty = nl.empty_like(like, dtype=nl.bfloat16)
        assert nl.is_sbuf(tile.buffer)
        assert nl.is_on_chip(tile.buffer)
        assert nl.is_hbm(x.buffer)
        assert not nl.is_psum(tile.buffer)
        nisa.tensor_tensor(like, tile, nl.full(x.shape, 3.0, nl.float32), nl.add)
        nisa.tensor_copy(empty, like)
        out = nl.ndarray(x.shape, nl.bfloat16, nl.shared_hbm)
        nl.store(out, empty)
        return out

    np.testing.assert_array_equal(simulate(kernel)(X).outputs, (X + 3).astype(BF16))


FOREIGN = """
import nki
import nki.isa as nisa
import nki.language as nl
from nki.isa.constants import dge_mode
from dataclasses import dataclass

@dataclass
class Config(nl.NKIObject):
    scale = 2.0
    rows: int = 4

@nki.jit
def foreign(x):
    c = Config(rows=x.shape[0])
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.ndarray((c.rows, x.shape[1]), dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x, dge_mode=dge_mode.none)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=c.scale, engine=nisa.vector_engine)
    nisa.dma_copy(dst=out, src=tile)
    return out
"""


def test_foreign_sources_import_the_stand_ins(tmp_path: Path, monkeypatch):
    (tmp_path / "foreign_kernel.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    with installed() as nki:
        from foreign_kernel import foreign

        direct = nki.simulate(foreign)(X)
    assert "nki" not in sys.modules
    assert "foreign_kernel" not in sys.modules
    assert not {m for m in set(sys.modules) - before if m.startswith("nki")}
    np.testing.assert_array_equal(simulate(foreign)(X).outputs, 2 * X)
    np.testing.assert_array_equal(direct, 2 * X)


def test_a_package_that_was_there_before_keeps_no_module_of_the_emulator(tmp_path, monkeypatch):
    """`from package import module` looks at the package's attributes before it imports."""
    package = tmp_path / "early"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "foreign_kernel.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(tmp_path))
    early = importlib.import_module("early")
    early.other = "stays"
    with installed():
        from early import foreign_kernel

        assert foreign_kernel is early.foreign_kernel
    assert not hasattr(early, "foreign_kernel")
    assert early.other == "stays"
    assert sys.modules["early"] is early
    with pytest.raises(ModuleNotFoundError, match="nki"):
        exec("from early import foreign_kernel")
    monkeypatch.delitem(sys.modules, "early")


def test_stand_ins_give_way_to_what_was_there(monkeypatch):
    marker = type(sys)("nki")
    monkeypatch.setitem(sys.modules, "nki", marker)

    def fail_inside():
        with installed() as nki:
            assert sys.modules["nki"] is nki
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert sys.modules["nki"] is marker


def test_nki_objects_are_data_classes():
    class Plain(nl.NKIObject):
        a: int
        b = 3

    made = Plain(1)
    assert (made.a, made.b, Plain(b=5).b, Plain().a) == (1, 3, 5, None)
    with pytest.raises(TypeError, match="fields"):
        Plain(c=1)
