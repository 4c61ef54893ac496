"""Borders of kernel calls in graphs small enough to count bytes by hand: one head tensor is 2 x 8 x 16 float32, 1024 bytes."""

import pytest
import torch
import torch.nn.functional as F

HEADS, TOKENS, SIZE = 2, 8, 16
ONE = HEADS * TOKENS * SIZE * 4
TABLES = {"cos": torch.randn(TOKENS, SIZE), "sin": torch.randn(TOKENS, SIZE)}


def heads(size=SIZE, dtype=torch.float32):
    return torch.randn(1, HEADS, TOKENS, size).to(dtype)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def between(x, cos, sin):
    return rotate(x.relu(), cos, sin) * 2


def test_operand_result_and_lost_pairs_by_name(trace, foresee):
    found = foresee(trace(between, x=heads(), **TABLES))
    (border,) = found.boundaries
    assert border.kind == "barrier"
    assert border.site.kind == "rope"
    assert [(t.name, t.op, t.role, t.shape, t.dtype, t.bytes) for t in border.tensors] == [
        ("relu", "relu", "operand", (1, HEADS, TOKENS, SIZE), torch.float32, ONE),
        ("add", "add", "result", (1, HEADS, TOKENS, SIZE), torch.float32, ONE),
    ]
    assert border.bytes == 2 * ONE
    assert border.lost == (("relu", "mul"), ("relu", "neg"), ("relu", "cat"), ("add", "mul_2"))
    assert found.elsewhere == ()
    assert (found.segments_before, found.segments_after) == (1, 1)


def test_bytes_of_the_graph_are_those_of_its_kernels(trace, foresee):
    found = foresee(trace(between, x=heads(), **TABLES))
    table = TOKENS * SIZE * 4
    relu, call, double = 2 * ONE, 2 * ONE + 2 * table, 2 * ONE
    assert found.bytes_after == relu + call + double
    assert found.kernels_after == 3


@pytest.mark.parametrize(("dtype", "bytes"), [(torch.bfloat16, 2 * ONE // 2), (torch.float16, 2 * ONE // 2)])
def test_bytes_follow_the_dtype(trace, foresee, dtype, bytes):
    tables = {name: t.to(dtype) for name, t in TABLES.items()}
    (border,) = foresee(trace(between, x=heads(dtype=dtype), **tables)).boundaries
    assert border.bytes == bytes


def test_inputs_and_results_of_the_graph_are_in_memory_anyway(trace, foresee):
    found = foresee(trace(rotate, x=heads(), **TABLES))
    (border,) = found.boundaries
    assert (border.tensors, border.lost, border.bytes) == ((), (), 0)


def test_what_a_product_made_is_in_memory_anyway(trace, foresee):
    def fn(x, y, cos, sin):
        return rotate(x @ y, cos, sin) * 2

    found = foresee(trace(fn, x=heads(TOKENS), y=heads(), **TABLES))
    assert [(t.name, t.role) for t in found.boundaries[0].tensors] == [("add", "result")]


def test_a_tensor_between_two_calls_counts_once(trace, foresee):
    def fn(x, cos, sin):
        return rotate(rotate(x, cos, sin), cos, sin)

    first, second = foresee(trace(fn, x=heads(), **TABLES)).boundaries
    assert [t.role for t in first.tensors] == ["result"]
    assert (first.bytes, second.bytes) == (ONE, 0)
    assert first.lost == ()
    assert {p for p, _ in second.lost} == {first.tensors[0].name}


def test_a_view_of_an_operand_is_the_operand(trace, foresee):
    def fn(x, cos, sin):
        return rotate(x.relu().transpose(1, 2), cos, sin) * 2

    x = torch.randn(1, TOKENS, HEADS, SIZE)
    (border,) = foresee(trace(fn, x=x, **TABLES)).boundaries
    assert [(t.name, t.shape) for t in border.tensors if t.role == "operand"] == [("relu", (1, TOKENS, HEADS, SIZE))]


def cut(x, cos, sin):
    return rotate(x[..., :SIZE], cos, sin)


@pytest.mark.parametrize(("compiler", "kinds"), [("inductor", ["barrier"]), ("neuronx", ["barrier", "layout"])])
def test_a_slice_is_copied_for_calls_that_want_contiguous_operands(trace, foresee, compiler, kinds):
    found = foresee(trace(cut, x=heads(2 * SIZE), **TABLES), compiler=compiler)
    assert [b.kind for b in found.boundaries] == kinds
    copies = [b for b in found.boundaries if b.kind == "layout"]
    assert [(t.op, t.role, t.shape, t.bytes) for b in copies for t in b.tensors] == [
        ("getitem", "operand", (1, HEADS, TOKENS, SIZE), ONE) for _ in copies
    ]
    assert all(b.call == found.boundaries[0].call and b.bytes == ONE and not b.lost for b in copies)


def test_a_call_in_the_lazy_regime_splits_the_executable(trace, foresee):
    found = foresee(trace(between, x=heads(), **TABLES), regime="lazy")
    (border,) = found.boundaries
    assert border.kind == "split"
    assert border.bytes == 2 * ONE
    assert (found.segments_before, found.segments_after) == (1, 3)


def test_borders_of_all_kinds_come_in_graph_order(trace, foresee):
    def fn(x, cos, sin):
        y = rotate(x, cos, sin)
        z = F.scaled_dot_product_attention(y, x, x)
        return rotate(z, cos, sin)

    found = foresee(trace(fn, x=heads(), **TABLES), kernels=("attention", "rope"))
    assert [b.site.kind for b in found.boundaries] == ["rope", "attention", "rope"]


def test_fusion_lost_elsewhere_is_counted_apart(trace, foresee):
    """A call on another path between the two: a kernel with both would run before and after the call."""

    def fn(x, cos, sin):
        y = x.relu()
        return y + rotate(y, cos, sin)

    found = foresee(trace(fn, x=heads(), **TABLES))
    (border,) = found.boundaries
    assert found.elsewhere == (("y", "add_1"),)
    assert not set(found.elsewhere) & set(border.lost)


def test_nothing_rewritten_changes_nothing(trace, foresee):
    found = foresee(trace(between, x=heads(), **TABLES), policy="none")
    assert found.boundaries == ()
    assert (found.bytes_before, found.kernels_before, found.before) == (
        found.bytes_after,
        found.kernels_after,
        found.after,
    )


def test_symbolic_sizes_are_counted_as_traced(trace, foresee):
    """Shapes have the symbol, bytes are those of the size that was traced."""

    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.RMSNorm(SIZE)  # its weight fixes the head size

        def forward(self, x, cos, sin):
            return rotate(self.norm(x), cos, sin) * 2

    gm = trace(Normed(), dynamic=True, x=torch.randn(3, HEADS, TOKENS, SIZE), **TABLES)
    (border,) = foresee(gm).boundaries
    assert [t.bytes for t in border.tensors] == [3 * ONE, 3 * ONE]
    for tensor in border.tensors:
        *symbols, size = tensor.shape
        assert size == SIZE
        assert any(isinstance(n, str) for n in symbols)
