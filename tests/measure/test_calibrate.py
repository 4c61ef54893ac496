import pytest
import torch

from fluxrewrite.cost import Work, estimate, load_device
from fluxrewrite.errors import InputError
from fluxrewrite.measure import calibrate
from fluxrewrite.measure.calibrate import FULL, QUICK, Effort, steps

TINY = Effort(rounds=3, stream_mb=1, matmul_s=1e-4, matmul_max=256, loops=10)


def test_a_measured_profile_is_a_profile(tmp_path):
    done = []
    device = calibrate.calibrate(TINY, backend="eager", step=done.append)
    assert tuple(done) == steps() == tuple(device.figures)
    for figure in device.figures.values():
        assert figure.basis == "measured"
        assert figure.low <= figure.value <= figure.high
        assert figure.spread == pytest.approx((figure.high - figure.low) / figure.value, rel=0.01)
        assert figure.source.startswith("fluxrewrite calibrate, median of 3: ")
    path = tmp_path / "here.json"
    path.write_text(device.model_dump_json(by_alias=True))
    again = load_device(path)
    assert again == device
    assert estimate(again, Work(bytes=1e6, calls=1)).basis == "modelled"


def test_figures_are_of_this_machine():
    """Bounds that every processor of the last decade keeps, and that a wrong unit or a lost factor of 1000 breaks."""
    device = calibrate.calibrate(TINY, threads=1, backend="eager")  # two threads wait for a busy machine
    assert 0.3 < device.memory.value < 3000
    assert 0.004 < device.vector.value < 3000
    assert 1e-5 < device.matmul["float32"].value < 100
    assert device.call.value < 10_000
    assert device.launch.value < 100_000


def test_time_is_measured_as_the_best_of_three(monkeypatch):
    clock = iter([0.0, 8.0, 10.0, 12.0, 20.0, 26.0])  # tries of 8, 2 and 6 s
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: next(clock))
    calls = []
    assert calibrate.seconds(lambda: calls.append(1), loops=4) == 0.5
    assert len(calls) == 12


def test_median_range_and_spread_of_known_rounds():
    figure = calibrate.figure([4.0, 1.0, 2.0], "us", "test")
    assert (figure.value, figure.low, figure.high, figure.spread) == (2.0, 1.0, 4.0, 1.5)


def test_rates_of_known_times(monkeypatch):
    monkeypatch.setattr(calibrate, "seconds", lambda run, loops=1: 1e-3)
    assert calibrate._memory(TINY) == pytest.approx([12 * 250_000 / 1e-3 / 1e9] * 3)  # three arrays of 1 MB
    assert calibrate._vector(TINY) == pytest.approx([65_536 / 1e-3 / 1e9] * 3)
    rates, rows = calibrate._matmul(TINY, torch.float32)
    assert (rows, rates) == (128, pytest.approx([2 * 128**3 / 1e-3 / 1e12] * 3))
    monkeypatch.setattr(calibrate, "seconds", lambda run, loops=1: 1e-9)
    assert calibrate._matmul(TINY, torch.float32)[1] == 256


def test_fixed_costs_of_known_times(monkeypatch):
    """Graphs of 4 and 20 loops, of 4 and 20 calls, of one loop; and the work of a call."""
    times = iter([10.0, 42.0, 100.0, 420.0, 52.0, 3.0] * 3)
    monkeypatch.setattr(calibrate, "_compiled", lambda function, x, backend: function)
    monkeypatch.setattr(calibrate, "seconds", lambda run, loops=1: next(times) / 1e6)
    kernels, calls, launches = calibrate._fixed_costs(TINY, "eager")
    assert kernels == pytest.approx([2.0] * 3)  # (42 - 10) / 16
    assert calls == pytest.approx([17.0] * 3)  # (420 - 100) / 16 - 3
    assert launches == pytest.approx([50.0] * 3)  # 52 - 2


def test_a_difference_below_the_clock_stays_a_time(monkeypatch):
    monkeypatch.setattr(calibrate, "_compiled", lambda function, x, backend: function)
    monkeypatch.setattr(calibrate, "seconds", lambda run, loops=1: 1e-6)
    kernels, calls, _ = calibrate._fixed_costs(TINY, "eager")
    assert kernels == calls == [0.01] * 3


@pytest.mark.slow
def test_the_small_loops_are_kernels_of_their_own_in_inductor():
    from torch._inductor import metrics

    metrics.reset()
    with torch._inductor.config.patch(force_disable_caches=True), torch.no_grad():
        calibrate._compiled(calibrate._loops(4), torch.ones(64 * 20), "inductor")()
    assert metrics.generated_kernel_count == 4


def test_a_backend_that_cannot_compile():
    def broken(gm, inputs):
        raise RuntimeError("no compiler found\nand much more")

    with pytest.raises(InputError, match=r"broken cannot compile here .*needs a C\+\+ compiler") as found:
        calibrate.calibrate(TINY, backend=broken)
    assert "\n" not in str(found.value)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    device = calibrate.calibrate(TINY, backend="eager", threads=1)
    assert device.core.startswith("1 threads")
    assert torch.get_num_threads() == before
    with pytest.raises(InputError, match="threads 0: must be 1 or more"):
        calibrate.calibrate(TINY, threads=0)


def test_quick_does_less():
    assert QUICK.rounds < FULL.rounds
    assert QUICK.stream_mb < FULL.stream_mb
    assert QUICK.matmul_s < FULL.matmul_s
