"""`torchrun -m fluxrewrite bench|verify` on small FLUX.2 transformers: real processes, gloo on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fluxrewrite.cli import main
from fluxrewrite.cost.runs import load_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(torch.distributed.distributed_c10d, "GroupName"), reason="DTensor's graphs are those of torch 2.13"
    ),
]
pytest.importorskip("diffusers")

MODULE = """
import os, signal, time
from collections import Counter
from pathlib import Path
import torch
from ranked import SENT, flux2

def rank(): return os.environ.get("RANK", "none")

def hooked(before, after=lambda: None):
    model, inputs = flux2()
    off = torch.compiler.disable
    model.register_forward_pre_hook(off(lambda module, args, kwargs: before()), with_kwargs=True)
    model.register_forward_hook(off(lambda module, args, result: after()))
    return model, inputs

def counted():
    # what gloo sends in each call of the model, a line a call
    profiles = []
    def before():
        profiles.append(torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]))
        profiles[-1].start()
    def after():
        profiles[-1].stop()
        found = {e.key: e.count for e in profiles[-1].key_averages() if e.key.startswith(SENT)}
        with open(f"sent.{rank()}", "a") as file:
            file.write(f"{found}{chr(10)}")
    return hooked(before, after)

def hurt():
    # in the third call the second rank fails, once; then it stands still
    calls = []
    def before():
        calls.append(1)
        if len(calls) != 3:
            return
        if rank() == "1" and not Path("failed").exists():
            Path("failed").touch()
            raise ValueError("planted")
        if Path("failed").exists():
            Path(f"stuck.{rank()}").write_text(str(os.getpid()))
            if rank() == "1":
                time.sleep(600)
    return hooked(before)
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "ranked_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    lib = str(Path(__file__).parents[1] / "lib")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in (lib, os.environ.get("PYTHONPATH")) if p))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "100")
    yield
    sys.modules.pop("ranked_models", None)


def begun(world, *args):
    """torchrun with the command on so many ranks; its output goes to files."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "-m", "fluxrewrite"]
    with open("out", "w") as out, open("err", "w") as err:
        return subprocess.Popen([*command, *map(str, args)], stdout=out, stderr=err)


def ended(process, limit_s=120):
    """The exit code, stdout, and lines on stderr that are ours. Fails when it is not over in time."""
    try:
        code = process.wait(limit_s)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    lines = Path("err").read_text().splitlines()
    return code, Path("out").read_text(), [line for line in lines if line.startswith("fluxrewrite: ")]


def wait_for(path, process, seconds=100):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if Path(path).exists() and Path(path).read_text():
            return Path(path).read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written: {ended(process, 60)}")


def stopped(pid, seconds=30):
    """Whether a process ends in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def children(pid):
    """Processes that a process started, the youngest last."""
    return [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]


def rank_of(pid):
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return int(next(e for e in entries if e.startswith(b"RANK=")).partition(b"=")[2])


def parents(process):
    """The ranks' own processes, by rank."""
    return {rank_of(pid): pid for pid in children(process.pid)}


def test_verify_on_four_ranks_has_the_latents_of_one_process(tmp_path):
    """Moments of the loop to 1e-5, sites of one head a rank, and no collective more or less than eager DTensors send."""
    process = begun(4, "verify", "ranked_models:counted", "--steps", "1", "--format", "json", "-o", "four.json")
    assert ended(process, 300) == (0, "", [])
    assert main(["verify", "ranked_models:counted", "--steps", "1", "--format", "json", "-o", "one.json"]) == 0
    found, expected = (json.loads(Path(name).read_text()) for name in ("four.json", "one.json"))
    assert (found["setting"]["tp"], expected["setting"]["tp"]) == (4, 1)
    names = [[(s["kind"], s["form"], s["path"]) for s in r["sites"]] for r in (found, expected)]
    assert names[0] == names[1]
    assert {s["shapes"]["heads"] for s in found["sites"] if "heads" in s["shapes"]} == {1}
    assert all(s["rank"] in range(4) and s["passed"] for s in found["sites"])
    for mine, whole in zip(found["loop"]["steps"], expected["loop"]["steps"], strict=True):
        for side in ("original", "rewritten"):
            assert mine[side] == pytest.approx(whole[side], abs=1e-5)
    for rank in range(4):
        checked, eager, rewritten = (tmp_path / f"sent.{rank}").read_text().splitlines()
        assert checked == eager == rewritten == "{'gloo:all_reduce': 5}"


def test_verify_ends_with_ctrl_c_while_a_rank_hangs():
    Path("failed").touch()
    process = begun(2, "verify", "ranked_models:hurt", "--steps", "1", "--kernels", "attention")
    wait_for("stuck.0", process)
    wait_for("stuck.1", process)
    ranks = parents(process)
    time.sleep(1)  # the first rank is in a wait for the second one by now, or will be
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out, lines = ended(process, 60)
    assert time.monotonic() - start < 30
    assert (code != 0, out, lines) == (True, "", ["fluxrewrite: interrupted"])
    assert all(stopped(pid) for pid in ranks.values())


def test_bench_goes_on_after_a_variant_that_fails_on_one_rank_and_ends_with_a_rank_that_is_killed():
    """Vanilla fails on the second rank in its second run; in the next variant that rank stands still until it is killed."""
    args = ("--variants", "vanilla,eager,qkv", "--inner", "eager", "--steps", "2", "--runs", "2", "--save", "runs.json")
    process = begun(2, "bench", "ranked_models:hurt", *args)
    wait_for("stuck.1", process)
    ranks = parents(process)
    workers = [pid for parent in ranks.values() for pid in children(parent)]
    assert len(workers) == 2
    start = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    code, out, lines = ended(process, 60)
    assert time.monotonic() - start < 30
    assert code != 0
    assert len(lines) == 1, lines
    assert "interrupted: torchrun ends all ranks when one of them ends" in lines[0]
    assert all(stopped(pid) for pid in (*ranks.values(), *workers))
    runs = load_runs(Path("runs.json"))
    assert runs.case.tp == 2
    vanilla, eager = runs.variants
    assert "rank 1: " in vanilla.error
    assert "planted" in vanilla.error
    assert (len(vanilla.runs), len(eager.runs)) == (1, 1)
    assert vanilla.peak_rss_mb < vanilla.peak_rss_sum_mb < 2.1 * vanilla.peak_rss_mb
    assert out.count(", tp 2, ") == 1, "one rank prints"
