"""Blocks of a model with their kernels: nothing is lost, and each kernel is where it runs."""

import pytest
import torch
import torch.nn.functional as F

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.models.capture import capture
from fluxrewrite.report.merge import merge
from fluxrewrite.report.model import Report


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, x):
        y = self.linear(x)
        return x + F.scaled_dot_product_attention(y, y, y).tanh()


class Stack(torch.nn.Module):
    """Two blocks, an operation between them, and the first block once more."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block(16) for _ in range(2))

    def forward(self, x):
        x = self.blocks[0](x.relu() @ x.mT @ x)
        x = self.blocks[1](x @ x.mT @ x)
        return self.blocks[0](x) @ x.mT


X = torch.randn(1, 2, 8, 16)


@pytest.fixture
def small(flux2):
    def run(**options):
        net, inputs = flux2()
        return fluxrewrite.inspect(net, options=Options(**options), **inputs)

    return run


@pytest.mark.parametrize("policy", ["all", "none", "auto"])
@pytest.mark.parametrize("compiler", ["inductor", "xla", "neuronx"])
def test_kernels_bytes_and_times_of_the_blocks_are_those_of_the_whole(small, policy, compiler):
    report = small(policy=policy, compiler=compiler)
    e = report.effect
    for when, step in (("before", e.step_before), ("after", e.step_after)):
        parts = [p for b in report.blocks for p in getattr(b, when)]
        assert len(parts) == getattr(e, f"kernels_{when}")
        assert sum(p.reads + p.writes for p in parts) == getattr(e, f"bytes_{when}")
        assert sum(p.us for p in parts) == pytest.approx(step.us, rel=1e-4)
    if policy == "none":
        assert all(b.before == b.after for b in report.blocks)
    assert Report.model_validate_json(report.to_json()) == report


def test_blocks_stand_in_the_order_of_the_model(small):
    report = small()
    paths = [b.path for b in report.blocks if b.path]
    assert paths == [
        *(f"transformer_blocks.{i}" for i in range(2)),
        *(f"single_transformer_blocks.{i}" for i in range(2)),
    ]
    assert report.blocks[0].path == ""
    assert report.blocks[-1].path == ""
    for block in report.blocks:
        assert all(not p.site or p.site.startswith(block.path) for p in (*block.before, *block.after))


def test_every_call_is_a_part_of_its_block_and_has_its_tensors(small):
    report = small()
    parts = [(b, p) for b in report.blocks for p in b.after if p.kind == "opaque"]
    assert [p.site for _, p in parts] == [c.site for c in report.calls]
    assert {c.site for c in report.calls} == {s.id for s in report.sites if s.choice == "kernel"}
    for (_, part), call in zip(parts, report.calls, strict=True):
        assert sum(t.bytes for t in call.operands) == part.reads
        assert sum(t.bytes for t in call.results) == part.writes
    taken = {p.site for b in report.blocks for p in b.before if p.site}
    assert taken == {c.site for c in report.calls}
    joint = next(c for c in report.calls if "norm_rope_attention" in c.site)
    assert {t.op for t in joint.operands} == {"fluxrewrite.qkv", "placeholder", "cat"}
    assert {u.op for u in joint.users} == {"linear"}


def test_each_call_of_a_module_is_a_block_of_its_own():
    report = fluxrewrite.inspect(Stack(), x=X, options=Options(kernels="attention", compiler="inductor"))
    assert [b.path for b in report.blocks] == ["", "blocks.0", "", "blocks.1", "blocks.0", ""]
    assert [sum(p.kind == "opaque" for p in b.after) for b in report.blocks] == [0, 1, 0, 1, 1, 0]


def test_an_operation_amid_a_block_belongs_to_it():
    class Amid(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))])

        def forward(self, x):
            return self.blocks[0][1](self.blocks[0][0](x) @ x.mT @ x)

    report = fluxrewrite.inspect(Amid(), x=X)
    assert [b.path for b in report.blocks] == ["blocks.0"]
    assert [p.ops for p in report.blocks[0].before].count(("matmul",)) == 2


def test_copies_of_the_compiler_stand_before_the_kernel_that_wants_them(small):
    report = small(compiler="neuronx")
    after = [(b.path, p, q) for b in report.blocks for p, q in zip(b.before, b.before[1:], strict=False) if not p.nodes]
    assert len(after) == 6  # an operand of each output projection
    assert all(path and p.kind == "copy" and p.ops == () and p.site == "" for path, p, _ in after)
    assert {q.kind for _, _, q in after} == {"library"}


def test_a_model_without_blocks_is_one_strip():
    report = fluxrewrite.inspect(lambda x: F.scaled_dot_product_attention(x, x, x).exp(), x=X)
    assert [b.path for b in report.blocks] == [""]
    assert report.calls[0].users[0].op == "exp"


def test_merged_reports_keep_blocks_and_calls_apart():
    one = fluxrewrite.inspect(Stack(), x=X, options=Options(kernels="attention"))
    both = merge([one, one])
    assert len(both.blocks) == 2 * len(one.blocks)
    assert [b.graph for b in both.blocks] == [0] * len(one.blocks) + [1] * len(one.blocks)
    ids = {s.id for s in both.sites}
    assert {c.site for c in both.calls} <= ids
    assert {p.site for b in both.blocks for p in b.after if p.site} == {c.site for c in both.calls}


def test_the_report_on_a_compile_has_blocks_too(check):
    report = check(Stack().eval(), "attention", x=X)
    assert len(report.calls) == 3
    assert sum(len(b.after) for b in report.blocks) == report.effect.kernels_after


def test_graph_breaks_make_blocks_of_several_graphs():
    def halves(x):
        y = x.relu()
        torch._dynamo.graph_break()
        return F.scaled_dot_product_attention(y, y, y)

    assert len(capture(halves, {"x": X}).graphs) == 2
    report = fluxrewrite.inspect(halves, x=X)
    assert [b.graph for b in report.blocks] == [0, 1]
    assert [c.graph for c in report.calls] == [1]
