"""`fluxrewrite bench` as it is called."""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_groups import at_once, rank_groups

from fluxrewrite.cli import main
from fluxrewrite.cli.bench import _dtype
from fluxrewrite.cost import runs
from fluxrewrite.cost.runs import load_runs
from fluxrewrite.measure.bench import DEFAULT_VARIANTS, worker_process
from fluxrewrite.measure.bench.run import bench

SMALL = ("bench", "bench_models:attend", "--inner", "eager", "--steps", "2", "--runs", "3")
GOOD = "ready()\nrun(3.0, 1.0)\nrun(1.0, 1.0)\nrun(1.0, 1.0)\n"


@pytest.fixture
def run(capsys, fake, monkeypatch):
    """`run(body, ...)`: the command with a made-up worker."""

    def call(body, *args, dtype=("--dtype", "fp32")):
        monkeypatch.setitem(bench.__kwdefaults__, "worker", fake(body))
        code = main([*SMALL, *dtype, *map(str, args)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_help_names_the_default_variants(capsys):
    assert main(["bench", "--help"]) == 0
    assert f"[default: {DEFAULT_VARIANTS}]" in "".join(capsys.readouterr().out.split()).replace(
        "[default:", "[default: "
    )


def test_all_variants_finish(run, tmp_path):
    code, out, err = run(GOOD, "--variants", "vanilla,qkv", "--save", "runs.json")
    assert (code, err) == (0, "")
    assert "bench_models:attend" in out
    kept = load_runs(tmp_path / "runs.json")
    assert [(v.name, len(v.runs)) for v in kept.variants] == [("vanilla", 3), ("qkv", 3)]
    assert (kept.setup.provider, kept.setup.execution, kept.setup.steps) == ("reference", "reference", 2)


def test_formats(run, tmp_path):
    csv_text = run(GOOD, "--variants", "vanilla,qkv", "--format", "csv")[1]
    assert [r["variant"] for r in csv.DictReader(io.StringIO(csv_text))] == ["vanilla", "qkv"]
    assert run(GOOD, "--variants", "vanilla", "--format", "markdown")[1].startswith("| variant | calls | s a step |")
    assert run(GOOD, "--variants", "vanilla", "--format", "json", "-o", "out.json")[1] == ""
    assert load_runs(tmp_path / "out.json").variants[0].name == "vanilla"
    assert run(GOOD, "--variants", "vanilla", "-o", "out.txt")[1] == ""
    assert "vanilla" in (tmp_path / "out.txt").read_text()


def test_a_variant_that_failed_is_exit_code_1_and_the_table_is_there(run, tmp_path):
    body = "if name == 'qkv': os._exit(9)\n" + GOOD
    code, out, err = run(body, "--variants", "vanilla,qkv,attention", "--save", "runs.json")
    assert code == 1
    assert err == "fluxrewrite: qkv failed: the worker exited with code 9 and without an error event\n"
    assert "attention" in out
    assert [v.error is None for v in load_runs(tmp_path / "runs.json").variants] == [True, False, True]


def test_a_bar_for_each_variant_on_a_terminal(run, monkeypatch):
    body = "ready()\nfor i in (0, 1): tell('step', run=0, step=i, s=1.5)\nrun(1.5, 1.5)\n"
    assert run(body, "--variants", "vanilla")[2] == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    err = run(body, "--variants", "vanilla,qkv")[2]
    for name in ("vanilla", "qkv"):
        assert f"{name}: run 1 of 3, 1.5 s" in err
    assert "2/6" in err
    again = "ready()\nrun(1.0, 1.0)\nsys.stdin.readline()\ntell('step', run=7, step=0, s=1.5)\nrun(1.0, 1.0)\nrun(1.0, 1.0)\n"
    err = run(again, "--variants", "vanilla")[2]
    assert "vanilla: baseline of others, 1.5 s" in err
    assert "0/6" in err


def test_timeout(run):
    body = "if name == 'qkv': time.sleep(60)\n" + GOOD
    code, _, err = run(body, "--variants", "qkv,vanilla", "--timeout", "1.5")
    assert code == 1
    assert "qkv failed: not finished after 1.5 s" in err


def test_a_full_disk(run, monkeypatch, tmp_path):
    """Full from the second run on: the first is kept, the table is printed, exit code 2."""
    times = iter(range(100))

    def full(descriptor):
        if next(times):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs.os, "fsync", full)
    code, out, err = run(GOOD, "--variants", "vanilla,qkv", "--save", "runs.json")
    assert code == 2
    assert "attention" not in out
    assert "qkv" in out
    first, last = err.splitlines()
    assert "runs.json: the runs cannot be kept (No space left on device)" in first
    assert first.endswith("; the bench goes on")
    assert "No space left on device" in last
    assert [(v.name, len(v.runs)) for v in load_runs(tmp_path / "runs.json").variants] == [("vanilla", 1)]


def test_a_disk_that_has_room_again(run, monkeypatch, tmp_path):
    times = iter(range(100))

    def full_once(descriptor):
        if next(times) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs.os, "fsync", full_once)
    code, _, err = run(GOOD, "--variants", "vanilla", "--save", "runs.json")
    assert code == 0
    assert "the bench goes on" in err
    assert len(load_runs(tmp_path / "runs.json").variants[0].runs) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has /dev/full")
def test_a_device_that_is_full(run):
    code, out, err = run(GOOD, "--variants", "vanilla", "--save", "/dev/full")
    assert code == 2
    assert "vanilla" in out
    assert "/dev/full: the runs cannot be kept (No space left on device)" in err


BAD = [
    (("--variants", "flash"), "--variants: unknown variant 'flash'", "known: vanilla, eager, auto"),
    (("--variants", ""), "names no variant", "vanilla"),
    (("--inner", "xcompiler"), "unknown inner backend 'xcompiler'", "inductor"),
    (("--steps", "0"), "--steps 0", "1 or more"),
    (("--runs", "0"), "--runs 0", "1 or more"),
    (("--seed", "-1"), "--seed -1", "0 or more"),
    (("--threads", "0"), "--threads 0", "1 or more"),
    (("--timeout", "0"), "--timeout 0", "more than 0 seconds"),
    (("--timeout", "nan"), "--timeout nan", "more than 0 seconds"),
    (("--batch", "0"), "--batch 0", "1 or more"),
    (("--device", "xpu"), "--device 'xpu'", "give cpu"),
    (("--profile", "trn9"), "unknown device 'trn9'", "trn2"),
    (("--execution", "emulate", "--provider", "reference"), "nothing to emulate", "builtin"),
    (("--save", "no/such/runs.json"), "no/such", "does not exist"),
    (("-o", "."), "is a folder", "file name"),
    (("--format", "xml"), "'xml'", "markdown"),
]


@pytest.mark.parametrize(("args", "wrong", "remedy"), BAD, ids=[" ".join(a) for a, *_ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(run, args, wrong, remedy):
    code, out, err = run("raise AssertionError\n", *args)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert wrong in err
    assert remedy in err


def begun(*args):
    """The real command as a process of its own, its temporary folders in this one."""
    command = [sys.executable, "-m", "fluxrewrite", *args]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(Path.cwd())},
    )


def wait_for(path, process, seconds=60):
    """The content of a file that a worker writes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written: {process.communicate(timeout=10)}")


def gone(pid, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


HANGING = ("bench", "bench_models:hangs_the_second_time", "--variants", "eager,qkv", "--inner", "eager", "--runs", "2")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_finished_runs_and_leaves_no_process(tmp_path, number):
    parent = begun(*HANGING, "--save", "runs.json")
    worker = int(wait_for(tmp_path / "pid", parent))
    start = time.monotonic()
    parent.send_signal(number)
    out, err = parent.communicate(timeout=120)
    assert time.monotonic() - start < 60, "half of that on a machine of its own"
    assert parent.returncode == 130
    assert err == "fluxrewrite: interrupted\n"
    assert gone(worker)
    assert not list(tmp_path.glob("fluxrewrite-bench-*"))
    assert "eager: interrupted" in out
    assert "qkv: interrupted" in out
    kept = load_runs(tmp_path / "runs.json")
    assert [(v.name, len(v.runs)) for v in kept.variants] == [("eager", 1), ("qkv", 0)]
    assert {v.error for v in kept.variants} == {"interrupted"}


@pytest.mark.slow
def test_a_worker_dies_with_its_parent(tmp_path):
    parent = begun(*HANGING)
    worker = int(wait_for(tmp_path / "pid", parent))
    parent.kill()
    parent.communicate(timeout=120)
    assert gone(worker)


@pytest.mark.slow
def test_inductor_from_end_to_end(tmp_path, flux2_folder):
    """The whole way: bench, calibrate, inspect."""
    parent = begun(
        *("bench", flux2_folder, "--image-tokens", "16", "--text-tokens", "8", "--dtype", "fp32", "--steps", "1"),
        *("--runs", "2", "--variants", "vanilla,qkv", "--inner", "inductor", "--save", "runs.json"),
    )
    out, err = parent.communicate(timeout=300)
    assert (parent.returncode, err) == (0, ""), out
    vanilla, qkv = load_runs(tmp_path / "runs.json").variants
    for variant in (vanilla, qkv):
        assert variant.cold_first_step_s > 10 * variant.warm_s_per_step
    assert qkv.calls == {"qkv:packed": 1, "qkv:triple": 2}
    assert qkv.output.cosine > 0.99999
    assert main(["calibrate", "--from", "runs.json", "-o", "ev.json"]) == 0
    args = ("inspect", flux2_folder, "--image-tokens", "16", "--text-tokens", "8", "--dtype", "fp32", "--device", "cpu")
    args = (
        *args,
        "--provider",
        "reference",
        "--kernels",
        "qkv",
        "--evidence",
        "ev.json",
        "--format",
        "json",
        "-o",
        "report.json",
    )
    assert main(list(args)) == 0
    (verdict,) = json.loads((tmp_path / "report.json").read_text())["verdicts"]
    assert (verdict["kernel"], verdict["basis"]) == ("qkv", "measured")
    assert verdict["predicted_s"] == pytest.approx(qkv.warm_s_per_step, rel=1e-5)


def test_a_worker_that_cannot_be_started(run, monkeypatch):
    monkeypatch.setattr(
        worker_process.subprocess, "Popen", lambda *a, **k: (_ for _ in ()).throw(OSError("no more processes"))
    )
    code, _, err = run(GOOD, "--variants", "vanilla")
    assert code == 1
    assert "vanilla failed: the worker cannot be started (no more processes)" in err


@pytest.mark.parametrize(
    ("slowdown", "given", "dtype"),
    [(4.6, (), "float32"), (0.6, (), "bfloat16"), (4.6, ("--dtype", "bf16"), "bfloat16")],
)
def test_a_processor_that_multiplies_bfloat16_slowly_gets_float32(run, monkeypatch, tmp_path, slowdown, given, dtype):
    monkeypatch.setattr("fluxrewrite.measure.bench.default_dtype.bfloat16_slowdown", lambda: slowdown)
    assert run(GOOD, "--variants", "vanilla", "--save", "runs.json", dtype=given)[0] == 0
    assert load_runs(tmp_path / "runs.json").setup.dtype == dtype


def test_bfloat16_is_timed_on_cpus_only(monkeypatch):
    monkeypatch.setattr("fluxrewrite.measure.bench.default_dtype.bfloat16_slowdown", lambda: pytest.fail("measured"))
    assert _dtype("cuda", None) == "bf16"


def test_the_first_rank_decides_the_dtype(monkeypatch):
    monkeypatch.setattr("fluxrewrite.measure.bench.default_dtype.bfloat16_slowdown", lambda: 0.6)
    first, second = rank_groups(2, 20)
    first.publish("dtype", "fp32")
    assert _dtype("cpu", second) == "fp32"


def test_all_ranks_bench_in_one_dtype(monkeypatch):
    slowdowns = iter((4.6, 0.6))
    monkeypatch.setattr("fluxrewrite.measure.bench.default_dtype.bfloat16_slowdown", lambda: next(slowdowns))
    found = at_once(*(lambda c=c: _dtype("cpu", c) for c in rank_groups(2, 20)))
    assert found in (["fp32", "fp32"], ["bf16", "bf16"])
