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
from ranked import SMALL

from fluxrewrite.bench import load_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(torch.distributed.distributed_c10d, "GroupName"), reason="DTensor's graphs are those of torch 2.13"
    ),
]
pytest.importorskip("diffusers")

SIZES = ("--image-tokens", "12", "--text-tokens", "6", "--dtype", "fp32")
MODULE = """
import os, signal, time
from pathlib import Path
import torch
from ranked import flux2
from torch.distributed.tensor import DTensor

def rank(): return int(os.environ["RANK"])

def plain(): return flux2()

def hurt(act):
    model, inputs = flux2()
    calls = []
    def before(module, args, kwargs):
        calls.append(1)
        if len(calls) == 3:
            act()
    model.register_forward_pre_hook(torch.compiler.disable(before), with_kwargs=True)
    return model, inputs

def stop():
    Path("stuck").write_text(str(os.getpid()))
    if rank() == 1:
        time.sleep(600)

def stands_still(): return hurt(stop)

def fail():
    if rank() == 1 and not Path("failed").exists():
        Path("failed").touch()
        raise ValueError("planted")

def fails_once(): return hurt(fail)
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "_class_name": "Flux2Transformer2DModel"}))
    (tmp_path / "ranked_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    lib = str(Path(__file__).parent / "lib")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in (lib, os.environ.get("PYTHONPATH")) if p))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "100")


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


# *** verify


def test_verify_on_four_ranks_has_the_latents_of_one_process():
    """The same weights, divided: the loop's moments are those of one process to 1e-5, and sites are of one head a rank."""
    process = begun(4, "verify", "config.json", *SIZES, "--steps", "2", "--format", "json", "-o", "four.json")
    assert ended(process, 200) == (0, "", [])
    one = [sys.executable, "-m", "fluxrewrite", "verify", "config.json", *SIZES, "--steps", "2", "--format", "json"]
    expected = json.loads(subprocess.run(one, capture_output=True, text=True, check=True).stdout)
    found = json.loads(Path("four.json").read_text())
    assert (found["setting"]["tp"], expected["setting"]["tp"]) == (4, 1)
    names = [[(s["kind"], s["form"], s["path"]) for s in r["sites"]] for r in (found, expected)]
    assert names[0] == names[1]
    assert {s["shapes"]["heads"] for s in found["sites"] if "heads" in s["shapes"]} == {1}
    assert all(s["rank"] in range(4) and s["passed"] for s in found["sites"])
    for mine, whole in zip(found["loop"]["steps"], expected["loop"]["steps"], strict=True):
        for side in ("original", "rewritten"):
            assert mine[side] == pytest.approx(whole[side], abs=1e-5)


def test_verify_past_its_limit_is_exit_code_1_told_once():
    process = begun(2, "verify", "config.json", *SIZES, "--steps", "1", "--dtype", "bf16", "--tolerance", "0", "--kernels",
                    "attention", "--execution", "emulate")  # fmt: skip
    code, out, lines = ended(process)
    assert code == 1
    (line, *rest) = lines
    assert "2 of 2 sites fail; worst: attention:sdpa at " in line
    assert "on rank " in line
    assert out.count("0 of 2 sites") == 1
    assert Path("err").read_text().count("exitcode  : 1 ") == 2, "every rank ends with 1"


def test_verify_ends_when_a_rank_is_killed():
    process = begun(2, "verify", "ranked_models:stands_still", "--steps", "1")
    wait_for("stuck", process)
    ranks = parents(process)
    os.kill(ranks[1], signal.SIGKILL)
    start = time.monotonic()
    code, out, lines = ended(process, 60)
    assert time.monotonic() - start < 30
    assert code == 1
    assert out == ""
    assert len(lines) == 1, lines
    assert "another rank ended" in lines[0] or "interrupted" in lines[0]
    assert all(stopped(pid) for pid in ranks.values())


def test_verify_ends_when_a_rank_stands_still():
    process = begun(2, "verify", "ranked_models:stands_still", "--steps", "1", "--rank-timeout", "15")
    wait_for("stuck", process)
    ranks = parents(process)
    code, out, lines = ended(process, 60)
    assert (code, out) == (1, "")
    assert len(lines) == 1, lines
    assert "did not answer within 15 s" in lines[0]
    assert all(stopped(pid) for pid in ranks.values())


# *** bench


def test_bench_on_two_ranks_with_a_variant_that_fails_on_one():
    """Vanilla fails once on the second rank; the next variant runs, and the file says how many ranks there were."""
    args = ("--variants", "vanilla,qkv", "--inner", "eager", "--steps", "2", "--runs", "2", "--save", "runs.json")
    code, out, lines = ended(begun(2, "bench", "ranked_models:fails_once", *args))
    assert code == 1
    (line,) = lines
    assert line.startswith("fluxrewrite: vanilla failed: rank 1: ")
    assert "planted" in line
    runs = load_runs(Path("runs.json"))
    assert runs.case.tp == 2
    vanilla, qkv = runs.variants
    assert (len(vanilla.runs), len(qkv.runs), qkv.error) == (0, 2, None)
    assert qkv.calls == {"qkv:packed": 1, "qkv:triple": 2}
    assert qkv.peak_rss_mb < qkv.peak_rss_sum_mb < 2.1 * qkv.peak_rss_mb
    assert "tp 2" in out
    assert out.count("qkv") == 2, "one rank prints"


@pytest.mark.parametrize("how", ["parent", "SIGINT"])
def test_bench_ends_and_keeps_what_finished(how):
    """A rank killed, or Ctrl-C, while the second variant stands still."""
    args = ("--variants", "eager,none", "--inner", "eager", "--steps", "1", "--runs", "1", "--save", "runs.json")
    process = begun(2, "bench", "ranked_models:stands_still", *args)
    wait_for("stuck", process)
    ranks = parents(process)
    workers = [pid for parent in ranks.values() for pid in children(parent)]
    assert len(workers) == 2
    start = time.monotonic()
    if how == "parent":
        os.kill(ranks[1], signal.SIGKILL)
    else:
        process.send_signal(signal.SIGINT)
    code, out, lines = ended(process, 60)
    assert time.monotonic() - start < 30
    assert code != 0
    assert len(lines) == 1, lines
    assert "interrupted" in lines[0]
    assert load_runs(Path("runs.json")).case.tp == 2
    assert all(stopped(pid) for pid in (*ranks.values(), *workers))


def test_a_model_without_a_plan_is_told_once():
    Path("plain_model.py").write_text("import torch\ndef relu(): return torch.nn.ReLU(), {'input': torch.ones(2)}\n")
    code, out, lines = ended(begun(2, "bench", "plain_model:relu"))
    assert (code != 0, out) == (True, "")
    assert len(lines) == 1
    assert "ReLU has no _tp_plan" in lines[0]
    assert Path("err").read_text().count("exitcode  : 2 ") == 2
