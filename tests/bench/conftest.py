import json
import sys

import pytest

from fluxrewrite.bench import Runs, Setup

MODULE = """
import os
import time
from pathlib import Path
import torch
import torch.nn.functional as F


class Attend(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        q, k, v = (f(x).view(1, 16, 2, 32).transpose(1, 2) for f in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v)


def attend():
    return Attend(), {"x": torch.randn(1, 16, 64)}


class Hang(torch.nn.Module):
    def forward(self, x):
        Path("pid").write_text(str(os.getpid()))
        time.sleep(600)


def hangs_the_second_time():
    mark = Path("once")
    if mark.exists():
        return Hang(), {"x": torch.ones(1)}
    mark.touch()
    return attend()


class Loud(torch.nn.Module):
    def forward(self, x):
        print("a word on stdout", flush=True)
        os.write(1, b"another one" + bytes([10]))
        return x


def loud():
    return Loud(), {"x": torch.ones(2)}


class Starved(torch.nn.Module):
    def forward(self, x):
        raise MemoryError


def starved():
    return Starved(), {"x": torch.ones(2)}


class Bad(torch.nn.Module):
    def forward(self, x):
        raise ValueError("these shapes do not fit")


def bad():
    return Bad(), {"x": torch.ones(2)}


def huge():
    return torch.nn.Identity(), {"input": torch.empty(1 << 50)}
"""

FAKE = """
import json, os, signal, sys, time
spec = json.loads(sys.stdin.readline())
name = spec["chosen"]["name"]
def tell(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)
def ready():
    tell("ready", threads=2, device="a processor", dtype="float32")
def run(*steps_s, **fields):
    output = {"digest": "d", "finite": True}
    tell("run", **{"steps_s": steps_s, "peak_rss_mb": 300.0, "peak_device_mb": None, "output": output, **fields})
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder of its own, with a module of small models, and a terminal of 80 columns."""
    (tmp_path / "bench_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    yield tmp_path
    sys.modules.pop("bench_models", None)


@pytest.fixture
def fake(tmp_path):
    """`fake(body)`: the command of a worker that starts at once; `body` uses name, spec, tell, ready and run."""

    def make(body):
        path = tmp_path / "fake_worker.py"
        path.write_text(FAKE + body)
        return [sys.executable, "-S", "-E", str(path)]

    return make


@pytest.fixture
def setup():
    """`setup(...)`: two steps of the small model, without a compiler."""

    def make(**fields):
        given = {"model": "bench_models:attend", "dtype": "float32", "inner": "eager", "steps": 2, "runs": 3}
        return Setup(**{**given, **fields})

    return make


FLUX2 = {
    "_class_name": "Flux2Transformer2DModel",
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "joint_attention_dim": 96,
    "in_channels": 16,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 16, 16, 16],
}


@pytest.fixture
def flux2_folder(tmp_path):
    """A folder with the configuration of a FLUX.2 transformer of 1 + 1 small blocks."""
    pytest.importorskip("diffusers")
    (tmp_path / "flux2").mkdir()
    (tmp_path / "flux2" / "config.json").write_text(json.dumps(FLUX2))
    return "flux2"


MINI = {"model": "flux2-klein-mini", "dtype": "bfloat16", "batch": 1, "image_tokens": 256, "text_tokens": 512}
TIMES = {"vanilla": 1.0, "qkv": 0.9, "attention": 1.25, "norm_rope_attention": 0.96}
CALLS = {
    "vanilla": {},
    "qkv": {"qkv:packed": 2, "qkv:triple": 2},
    "attention": {"attention:sdpa": 3},
    "norm_rope_attention": {"norm_rope_attention:joint": 1, "norm_rope_attention:single": 2},
}


def record(name, s, calls, **fields):
    """A variant of which every warm step takes `s` seconds, but for 0.2 % more in the last run."""
    steps = [[30.0, s, s, s], [s] * 4, [s] * 4, [s * 1.002] * 4]
    return {
        "name": name,
        "kernels": [] if name in ("vanilla", "auto", "eager") else name.split("+"),
        "calls": dict(calls),
        "specialisations": dict.fromkeys(calls, 1),
        "runs": [{"steps_s": row} for row in steps],
        "peak_rss_mb": 1000.0,
        "output": {"digest": "d", "finite": True, "cosine": None if name == "vanilla" else 0.99999},
        **fields,
    }


@pytest.fixture
def content():
    """`content(*variants)`: a made-up file of runs of flux2-klein-mini, as JSON would be read; by default four variants."""

    def make(*variants, **fields):
        return {
            "schema": "fluxrewrite.runs/1",
            "date": "2026-01-01T00:00:00+00:00",
            "versions": {"fluxrewrite": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "diffusers": None},
            "machine": {"processor": "a processor", "cores": 2, "threads": 2, "device": "a processor"},
            "case": {"device": "cpu", "regime": "compile", "tp": 1, **MINI},
            "setup": {**MINI, "steps": 4, "runs": 4},
            "variants": list(variants or (record(n, s, CALLS[n]) for n, s in TIMES.items())),
            **fields,
        }

    return make


@pytest.fixture
def made(content):
    """`made(*variants)`: the same as `Runs`."""
    return lambda *variants, **fields: Runs.model_validate_json(json.dumps(content(*variants, **fields)))


@pytest.fixture
def row():
    """`row(name, s, calls)`: a variant for `content` and `made`."""
    return record
