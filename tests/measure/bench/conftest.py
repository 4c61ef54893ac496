import json
import sys

import pytest
from made_runs import content, made, record

from fluxrewrite.cost.runs import Setup

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


@pytest.fixture(name="content")
def _content():
    """See `made_runs.content`."""
    return content


@pytest.fixture(name="made")
def _made():
    """See `made_runs.made`."""
    return made


@pytest.fixture
def row():
    """`row(name, s, calls)`: a variant for `content` and `made`."""
    return record
