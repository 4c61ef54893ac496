"""The share of the processors that other programs used."""

import os
import time

import pytest

from fluxrewrite.measure.bench import machine_load
from fluxrewrite.measure.bench.machine_load import Load


@pytest.fixture
def others(tmp_path, monkeypatch):
    """`others(fields, own, wall)`: what is told after these ticks of the machine and seconds of this process."""
    clock = {"wall": 0.0, "own": 0.0}
    monkeypatch.setattr(machine_load.time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(machine_load.time, "process_time", lambda: clock["own"])
    monkeypatch.setattr(machine_load.os, "cpu_count", lambda: 2)
    stat = tmp_path / "stat"

    def run(fields, own, wall, ours=0.0):
        stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 1 1\n")
        clock.update(wall=0.0, own=0.0)
        begun = Load(stat)
        stat.write_text(f"cpu  {fields} 0 0\ncpu0 1 1\n")
        clock.update(wall=wall, own=own)
        assert begun.own_s() == own
        return begun.others(ours)

    return run


TICKS = os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("fields", "own", "share"),
    [
        (f"{10 * TICKS} 0 0 0 0 0 0 0", 10.0, 0.0),
        (f"{15 * TICKS} 0 0 0 0 0 0 0", 10.0, 0.25),
        (f"0 {TICKS} {TICKS} 0 0 {TICKS} {TICKS} {TICKS}", 0.0, 0.25),  # nice, system, interrupts, stolen
        (f"0 0 0 {15 * TICKS} {5 * TICKS} 0 0 0", 0.0, 0.0),  # idle, waiting for a disk
        (f"{99 * TICKS} 0 0 0 0 0 0 0", 0.0, 1.0),
        ("0 0 0 0 0 0 0 0", 10.0, 0.0),
    ],
)
def test_share_of_two_processors_in_ten_seconds(others, fields, own, share):
    assert others(fields, own, 10.0) == pytest.approx(share)


def test_processes_of_the_measurement_itself(others):
    assert others(f"{15 * TICKS} 0 0 0 0 0 0 0", 5.0, 10.0, ours=6.0) == pytest.approx(0.2)


def test_too_short_a_time_has_no_share(others):
    assert others("9 0 0 0 0 0 0 0", 0.0, 0.1) is None


@pytest.mark.parametrize("text", ["", "cpu a b c d e f g h", "cpu 1 2"])
def test_a_system_without_counters(tmp_path, text):
    stat = tmp_path / "stat"
    assert Load(stat).others() is None
    stat.write_text(text)
    assert Load(stat).others() is None


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="Linux alone has /proc/stat")
def test_this_machine(monkeypatch):
    begun = Load()
    time.sleep(0.3)
    share = begun.others()
    assert share is not None
    assert 0 <= share <= 1
