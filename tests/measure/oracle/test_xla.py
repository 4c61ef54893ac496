"""Asking another interpreter: what goes wrong, and its JSON. What XLA answers is tested in tests/xla."""

import importlib.util
import sys
from pathlib import Path

import fluxrewrite.kernels.attention  # noqa: F401  # registers the op
import pytest
import torch

from fluxrewrite.errors import InputError
from fluxrewrite.fusion import Fusion, Group
from fluxrewrite.measure.oracle.fusion_json import fusion_from_json, fusion_to_json
from fluxrewrite.measure.oracle.xla import xla_fusion
from fluxrewrite.measure.oracle.xla_graph import custom_calls, xla_fusion_of
from fluxrewrite.models import Shapes

without = pytest.mark.skipif(importlib.util.find_spec("torch_xla") is not None, reason="torch-xla is installed here")


def test_json_keeps_a_fusion():
    fusion = Fusion("xla", (Group("a", "fused", frozenset({"x", "y"}), 1, 2), Group("b", "opaque", frozenset(), 3, 4)))
    assert fusion_from_json(fusion_to_json(fusion)) == fusion


def test_no_such_interpreter(tmp_path):
    with pytest.raises(InputError, match="no such Python interpreter; run: make xla"):
        xla_fusion(tmp_path / "python", "flux2-klein-4b", Shapes())


def test_a_file_that_cannot_be_started(tmp_path):
    file = tmp_path / "python"
    file.write_text("not a program")
    with pytest.raises(InputError, match=r"cannot be started .*; run: make xla"):
        xla_fusion(file, "flux2-klein-4b", Shapes())


def test_an_interpreter_without_our_packages(tmp_path):
    file = tmp_path / "python"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    file.chmod(0o755)
    with pytest.raises(InputError, match=r"No module named .*; run: make xla"):
        xla_fusion(file, "flux2-klein-4b", Shapes())


@without
def test_an_interpreter_without_torch_xla():
    with pytest.raises(InputError, match=r"torch-xla cannot be imported .*run: make xla"):
        xla_fusion(Path(sys.executable), "flux2-klein-4b", Shapes())


def test_no_answer_in_time():
    with pytest.raises(InputError, match=r"XLA did not finish within 0\.01 s"):
        xla_fusion(Path(sys.executable), "flux2-klein-4b", Shapes(), timeout_s=0.01)


@without
def test_in_process_without_torch_xla(trace):
    gm = trace(lambda x: x + 1, x=torch.ones(2))
    with pytest.raises(InputError, match=r"torch-xla cannot be imported .*run: make xla"):
        xla_fusion_of(gm)


def test_kernel_calls_become_custom_calls(trace):
    """However the graph spells the op: the packet here, an overload in what a rewrite inserts."""
    q = torch.ones(1, 2, 8, 16)
    gm = trace(lambda q: torch.ops.fluxrewrite.attention(q.relu(), q, q, scale=0.25) + 1, q=q)
    calls = {n.target: n for n in gm.graph.nodes if n.op == "call_function"}
    assert custom_calls(gm) == {calls[torch.ops.fluxrewrite.attention]}
    others = [t for t in calls if t is not torch.ops.fluxrewrite.attention]
    assert custom_calls(gm, others) == {calls[t] for t in others}
