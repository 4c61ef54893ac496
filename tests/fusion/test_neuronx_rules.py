"""What is assumed of neuronx-cc, on small graphs: there is no compiler to compare with."""

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.fusion import fuse, load_rules
from fluxrewrite.graph import GraphView

KIB = 1024


@pytest.fixture
def predict(trace, opaque_kernel):
    return lambda fn, **inputs: fuse(GraphView(trace(fn, **inputs).graph), load_rules("neuronx"))


@pytest.fixture
def kernels(predict):
    def run(fn, **inputs):
        groups = predict(fn, **inputs).fusion.groups
        return [(g.kind, " ".join(sorted(g.nodes)), g.reads // KIB, g.writes // KIB) for g in groups]

    return run


X = torch.ones(64, 64)


def test_a_reduction_and_what_uses_it_are_one_pass(kernels):
    assert kernels(lambda x: F.layer_norm(x * 2, (64,)) + 1, x=X) == [("fused", "add layer_norm mul", 16, 16)]


def test_two_uses_of_one_value_are_one_pass(kernels):
    def fn(x):
        y = x.exp()
        return y * 2, y * 3

    assert kernels(fn, x=X) == [("fused", "mul mul_1 y", 16, 32)]


def test_a_product_ends_with_the_loops_over_its_result(kernels):
    def fn(x, w, y):
        return (F.linear(x * 2, w).relu() + y) * 3

    assert kernels(fn, x=X, w=X.clone(), y=X.clone()) == [
        ("fused", "mul", 16, 16), ("library", "add linear mul_1 relu", 48, 16)
    ]  # fmt: skip


def test_a_loop_over_a_part_of_a_product_is_a_kernel_of_its_own(kernels):
    made = kernels(lambda x, w: F.linear(x, w)[:, :32].exp(), x=X, w=X.clone())
    assert [k[1] for k in made] == ["linear", "exp"]


def test_a_loop_that_waits_for_a_later_call_is_no_epilogue(kernels):
    def fn(x, w):
        y = F.linear(x, w)
        return y * F.linear(y, w)

    made = kernels(fn, x=X, w=X.clone())
    assert [k[:2] for k in made] == [("library", "y"), ("library", "linear_1 mul")]


def test_a_reduction_of_a_product_is_no_epilogue(kernels):
    made = kernels(lambda x, w: F.linear(x, w).sum(-1), x=X, w=X.clone())
    assert [k[1] for k in made] == ["linear", "sum_1"]


def test_nothing_fuses_into_one_of_our_kernels(kernels):
    made = kernels(lambda x: torch.ops.fusiontest.opaque.default(x.exp()).sin() + 1, x=X)
    assert made == [("fused", "exp", 16, 16), ("opaque", "opaque_default", 16, 16), ("fused", "add sin", 16, 16)]


def test_operands_that_are_not_a_whole_buffer_are_copied(predict):
    turned = predict(lambda x: torch.ops.fusiontest.opaque.default(x.t()), x=torch.ones(64, 32))
    assert list(turned.copies.values()) == [(("t", 8 * KIB),)]
    assert [g.kind for g in turned.fusion.groups] == ["copy", "opaque"]
    rows = predict(lambda x: torch.ops.fusiontest.opaque.default(x[16:32]), x=torch.ones(64, 32))
    assert list(rows.copies.values()) == [(("getitem", 2 * KIB),)]
    assert [(g.kind, g.reads) for g in rows.fusion.groups] == [("copy", 2 * KIB), ("opaque", 2 * KIB)]
