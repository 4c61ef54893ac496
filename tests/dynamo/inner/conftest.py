"""An inner backend of a third party, installed as a package would be: a module and its entry points on `sys.path`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from torch._dynamo.backends import registry

MODULE = '''
"""The inner backend "acme": it takes no call of relu, and keeps compiled code in a folder of its own."""

import json
import os
from pathlib import Path

import torch

from acme_inner.rules import WITHOUT
from fluxrewrite.dynamo.inner import InnerAdapter, InnerBackend
from fluxrewrite.errors import InputError

SETTINGS = {"level": 1}
TILE = {"rows": 128}
graphs = []


def compile_graph(gm, example_inputs):
    graphs.append(gm)
    cache = os.environ.get("ACME_CACHE_DIR")
    if cache is not None:
        log = {"cache": cache, "was empty": not Path(cache).exists(), "ready": hasattr(gm, "acme_ready")}
        Path(cache).mkdir(exist_ok=True)
        with open(os.environ["ACME_LOG"], "a") as file:
            file.write(json.dumps(log) + chr(10))
    return gm.forward


def ready(gm):
    for node in gm.graph.nodes:
        if node.op == "call_method" and node.target == WITHOUT:
            node.op, node.target = "call_function", torch.clamp_min
            node.args = (*node.args, 0.0)
    gm.recompile()
    gm.acme_ready = True
    return gm


def adapter(execution, lnc):
    if execution == "device":
        raise InputError("inner=\'acme\' has no device here; choose execution=\'reference\'")
    lines = ("tile " + str(TILE["rows"]),) if lnc is None else ("tile " + str(TILE["rows"]), "lnc " + str(lnc))
    return InnerAdapter(
        ready=ready, eager_fallback=lambda: True, fallback_warning="acme may run it eagerly", cache_key=lambda: lines
    )


BACKEND = InnerBackend(
    profile="trn3",
    accelerator="mtia",
    default_execution=lambda: "emulate",
    takes_lnc=True,
    adapter=adapter,
    settings=lambda: str(SETTINGS),
    caches={"ACME_CACHE_DIR": "acme"},
)
'''

ENTRY_POINTS = """[fluxrewrite.inner_backends]
acme = acme_inner:BACKEND

[torch_dynamo_backends]
acme = acme_inner:compile_graph
"""


@pytest.fixture
def acme_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the package, found by this process and those that it starts."""
    folder = tmp_path / "site"
    (folder / "acme-1.0.dist-info").mkdir(parents=True)
    (folder / "acme-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (folder / "acme-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "acme_inner").mkdir()
    (folder / "acme_inner" / "__init__.py").write_text(MODULE)
    (folder / "acme_inner" / "rules.py").write_text('WITHOUT = "relu"\n')
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.fixture
def acme(acme_folder: Path) -> Iterator[ModuleType]:
    """Its module. Torch read its own entry points before: the backend is registered by hand."""
    module = importlib.import_module("acme_inner")
    registry.register_backend(module.compile_graph, "acme")
    yield module
    del registry._BACKENDS["acme"], registry._COMPILER_FNS["acme"]
    for name in ("acme_inner", "acme_inner.rules"):
        sys.modules.pop(name, None)
