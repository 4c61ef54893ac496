"""What XLA answers. Runs where torch-xla is: `make test-xla`."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.errors import InputError
from fluxrewrite.measure.oracle.xla import xla_fusion
from fluxrewrite.measure.oracle.xla_graph import xla_fusion_of
from fluxrewrite.measure.oracle.xla_worker import traced
from fluxrewrite.models import Shapes

pytest.importorskip("torch_xla", reason="torch-xla is not installed here: make test-xla")

SHAPES = Shapes(24, 12)
KIB = 1024


@torch.library.custom_op("xlatest::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@opaque.register_fake
def _(x):
    return torch.empty_like(x)


def calls(fusion):
    return Counter(g.kind for g in fusion.groups)


def test_an_elementwise_chain_is_one_kernel(trace):
    gm = trace(lambda x: (x.exp() * 2 + 1).sin(), x=torch.ones(64, 64))
    (group,) = xla_fusion_of(gm).groups
    names = {n.name for n in gm.graph.nodes if n.op.startswith("call")}
    assert len(names) == 4
    assert (group.kind, group.nodes, group.reads, group.writes) == ("fused", names, 16 * KIB, 16 * KIB)


def test_a_custom_call_between_makes_two(trace):
    gm = trace(lambda x: torch.ops.xlatest.opaque((x.exp() * 2).sqrt()).sin() + 1, x=torch.ones(64, 64))
    groups = xla_fusion_of(gm, [torch.ops.xlatest.opaque, torch.ops.xlatest.opaque.default]).groups
    assert [(g.kind, g.reads, g.writes) for g in groups] == [
        ("fused", 16 * KIB, 16 * KIB), ("opaque", 16 * KIB, 16 * KIB), ("fused", 16 * KIB, 16 * KIB)
    ]  # fmt: skip


def test_a_matrix_product_is_a_library_call_between_fusions(trace):
    x, w = torch.ones(64, 128), torch.ones(256, 128)
    gm = trace(lambda x, w: F.linear(x.exp() * 2, w).sin() + 1, x=x, w=w)
    groups = xla_fusion_of(gm).groups
    assert [(g.kind, g.reads, g.writes) for g in groups] == [
        ("fused", 32 * KIB, 32 * KIB), ("library", 32 * KIB + 128 * KIB, 64 * KIB), ("fused", 64 * KIB, 64 * KIB)
    ]  # fmt: skip


def test_a_transpose_before_a_custom_call_is_a_copy(trace):
    gm = trace(lambda x: torch.ops.xlatest.opaque(x.transpose(0, 1)) + 1, x=torch.ones(64, 32))
    groups = xla_fusion_of(gm, [torch.ops.xlatest.opaque, torch.ops.xlatest.opaque.default]).groups
    assert [g.kind for g in groups] == ["copy", "opaque", "fused"]


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        (None, 0),
        ("qkv", 4),
        ("rope", 6),
        ("attention", 3),
        ("norm_rope_attention", 3),
        ("qkv,attention", 7),
        ("attention,norm_rope_attention,qkv,rope", 7),
    ],
)
def test_one_custom_call_a_rewritten_site(small, kernels, expected):
    gm = traced(small, SHAPES, kernels, torch.float32)
    fusion = xla_fusion_of(gm)
    inside = {n.name for n in gm.graph.nodes if str(n.target).startswith("fluxrewrite.")}
    assert calls(fusion)["opaque"] == len(inside) == expected
    assert {frozenset(g.nodes) for g in fusion.groups if g.kind == "opaque"} == {frozenset({n}) for n in inside}
    assert {n for g in fusion.groups for n in g.nodes} <= {n.name for n in gm.graph.nodes}


@pytest.mark.parametrize("kernels", [None, "qkv"])
def test_the_same_graph_gives_the_same_answer(small, kernels):
    gm = traced(small, SHAPES, kernels, torch.float32)
    assert xla_fusion_of(gm) == xla_fusion_of(gm)


def test_queries_from_outside(small):
    outside = xla_fusion(Path(sys.executable), small, SHAPES, "qkv,attention")
    assert outside == xla_fusion_of(traced(small, SHAPES, "qkv,attention", torch.float32))


def test_bad_input_from_outside():
    with pytest.raises(InputError, match="unknown model 'nothing'"):
        xla_fusion(Path(sys.executable), "nothing", SHAPES)


def test_symbolic_sizes_are_refused(trace):
    gm = trace(lambda x: x.exp() + 1, dynamic=True, x=torch.ones(5, 6))
    with pytest.raises(InputError, match="symbolic sizes"):
        xla_fusion_of(gm)


def test_a_graph_of_several_parts_is_refused(monkeypatch, tmp_path):
    (tmp_path / "halves.py").write_text(
        "import torch\n"
        "class Halves(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        y = x.relu()\n"
        "        torch._dynamo.graph_break()\n"
        "        return y.exp()\n"
        "def halves(): return Halves(), {'x': torch.randn(3)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="2 graphs, but the oracle needs a single one; graph break at"):
        traced("halves:halves", SHAPES, None, torch.float32)


def test_a_process_without_the_variables(trace, monkeypatch):
    gm = trace(lambda x: x.exp() + 1, x=torch.ones(2))
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(InputError, match="not started with"):
        xla_fusion_of(gm)
