"""The rules of XLA on small graphs. tests/xla compares them with XLA itself."""

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.errors import InputError
from fluxrewrite.fusion import fuse, load_rules
from fluxrewrite.fusion.rules import DecomposedStep
from fluxrewrite.graph import GraphView

KIB = 1024
XLA = load_rules("xla")


@pytest.fixture
def predict(trace, opaque_kernel):
    def run(fn, **inputs):
        return fuse(GraphView(trace(fn, **inputs).graph), XLA)

    return run


@pytest.fixture
def kernels(predict):
    def run(fn, **inputs):
        groups = predict(fn, **inputs).fusion.groups
        return [(g.kind, " ".join(sorted(g.nodes)), g.reads // KIB, g.writes // KIB) for g in groups]

    return run


def square(n):
    return torch.ones(n, n)


def test_a_chain_is_one_kernel(kernels):
    assert kernels(lambda x: (x.exp() * 2 + 1).sin(), x=square(64)) == [("fused", "add exp mul sin", 16, 16)]


def test_what_is_cheap_is_computed_in_every_consumer(kernels):
    def fn(x):
        y = x + 1
        return y * 2, y * 3

    assert kernels(fn, x=square(64)) == [("fused", "mul y", 16, 16), ("fused", "mul_1 y", 16, 16)]


def test_an_expensive_value_is_stored_for_several_consumers(kernels):
    def fn(x):
        y = x.exp()
        return y * 2, y * 3

    assert kernels(fn, x=square(64)) == [("fused", "y", 16, 16), ("fused", "mul", 16, 16), ("fused", "mul_1", 16, 16)]


def test_an_expensive_value_is_stored_for_a_broadcast(kernels):
    assert [k[1] for k in kernels(lambda x, s: x * s.exp(), x=square(64), s=torch.ones(64))] == ["exp", "mul"]


def test_what_reads_more_than_it_makes_is_not_doubled_for_one_use_in_memory(kernels):
    def fn(x, y, w):
        z = x + y
        return z * 2, z @ w

    assert kernels(fn, x=square(64), y=square(64), w=square(64)) == [
        ("fused", "z", 32, 16), ("fused", "mul", 16, 16), ("library", "matmul", 32, 16)
    ]  # fmt: skip


def test_a_product_takes_its_operands_from_memory(kernels):
    assert kernels(lambda x, w: F.linear(x * 2, w) + 1, x=square(64), w=square(64)) == [
        ("fused", "mul", 16, 16), ("library", "linear", 32, 16), ("fused", "add", 16, 16)
    ]  # fmt: skip


def test_a_bias_is_added_by_what_follows(kernels):
    inputs = {"x": square(64), "w": square(64), "b": torch.ones(64)}
    assert [k[1] for k in kernels(lambda x, w, b: F.linear(x, w, b).sin(), **inputs)] == ["linear", "linear sin"]


def test_a_product_of_one_row_computes_its_operand(kernels):
    assert [k[1] for k in kernels(lambda x, w: F.linear(x * 2, w), x=torch.ones(1, 64), w=square(64))] == ["linear mul"]


def test_a_value_used_with_and_without_its_shape_is_made_twice(kernels):
    def fn(x, w):
        y = x + 1
        return F.linear(y, w), torch.ops.fusiontest.opaque.default(y)

    assert [k[:2] for k in kernels(fn, x=torch.ones(2, 32, 64), w=square(64))] == [
        ("fused", "y"), ("fused", "y"), ("library", "linear"), ("opaque", "opaque_default")
    ]  # fmt: skip


def test_long_reductions_go_in_stages(kernels):
    assert kernels(lambda x: (x * 2).sum(-1), x=torch.ones(1024, 2048)) == [
        ("fused", "mul", 8192, 8192),
        ("fused", "sum_1", 8192, 256),
        ("fused", "sum_1", 256, 8),
        ("fused", "sum_1", 8, 4),
    ]


def test_short_reductions_are_loops(kernels):
    assert kernels(lambda x: (x * 2).sum(-1), x=torch.ones(1024, 16)) == [("fused", "mul sum_1", 64, 4)]


def test_layer_norm_is_eight_kernels(kernels):
    made = kernels(lambda x: F.layer_norm(x, (2048,)) + 1, x=torch.ones(1024, 2048))
    assert [k[2:] for k in made] == [
        (8192, 8192), (8192, 256), (256, 8), (8, 4), (8192, 256), (256, 8), (12, 4), (8200, 8192)
    ]  # fmt: skip
    assert [len(k[1].split()) for k in made] == [1] * 7 + [2]


def test_a_wide_concatenation_is_a_kernel_of_its_own(kernels):
    wide = kernels(lambda x, y: torch.cat([x * 2, y], -1) + 1, x=square(64), y=square(64))
    assert [k[1] for k in wide] == ["mul", "cat", "add"]
    rows = kernels(lambda x, y: torch.cat([x * 2, y], 0) + 1, x=square(64), y=square(64))
    assert [k[1] for k in rows] == ["add cat mul"]


def test_a_concatenation_read_in_two_ways_is_stored(kernels):
    def fn(x, y):
        both = torch.cat([x, y], 0)
        return both[:32] * 2, both[32:] * 3

    assert [k[1] for k in kernels(fn, x=square(64), y=square(64))] == ["both", "mul", "mul_1"]


def test_a_part_of_a_value_takes_the_value_with_it(kernels):
    def fn(x, y):
        z = (x + y)[:16]
        return z * 2, z.reshape(-1, 16).sum(-1)

    assert kernels(fn, x=square(64), y=square(64)) == [("fused", "add mul", 8, 4), ("fused", "add sum_1", 8, 0)]


def test_attention_is_taken_apart(kernels):
    q = torch.ones(1, 2, 64, 32)
    made = kernels(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), q=q, k=q.clone(), v=q.clone())
    assert [k[0] for k in made].count("library") == 2
    assert [k[2:] for k in made] == [
        (16, 16), (16, 16), (32, 32), (32, 8), (8, 0), (0, 0), (32, 1), (1, 0), (32, 32), (32, 1), (1, 0), (32, 32), (48, 16)
    ]  # fmt: skip


def test_a_mask_is_added_to_the_scores(predict):
    q, mask = torch.ones(1, 2, 64, 32), torch.ones(64, 64)

    def masked(q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, mask)

    plain = predict(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), q=q, k=q.clone(), v=q.clone()).fusion
    after = predict(masked, q=q, k=q.clone(), v=q.clone(), mask=mask).fusion
    assert len(after.groups) == len(plain.groups) + 1


def test_a_call_takes_whole_row_major_operands(predict):
    made = predict(lambda x: torch.ops.fusiontest.opaque.default((x * 2).t()) + 1, x=square(64))
    assert [(g.kind, len(g.nodes)) for g in made.fusion.groups] == [("fused", 1), ("opaque", 1), ("fused", 1)]
    made = predict(lambda x: torch.ops.fusiontest.opaque.default(x.t()) + 1, x=square(64))
    assert [g.kind for g in made.fusion.groups] == ["copy", "opaque", "fused"]
    assert list(made.copies.values()) == [(("t", 16 * KIB),)]
    made = predict(lambda x: torch.ops.fusiontest.opaque.default(x[:32]) + 1, x=square(64))
    assert [g.kind for g in made.fusion.groups] == ["copy", "opaque", "fused"]


def test_stored_values_are_named(predict):
    made = predict(lambda x, w: F.linear(x * 2, w) + 1, x=square(64), w=square(64))
    assert made.stored == {"mul": 16 * KIB, "linear": 16 * KIB, "add": 16 * KIB}


def test_a_result_that_is_an_input_costs_nothing(kernels):
    assert kernels(lambda x: (x, x + 1), x=square(64)) == [("fused", "add", 16, 16)]


def test_some_nodes_only(trace):
    gm = trace(lambda x: (x.exp() * 2 + 1).sin(), x=square(64))
    view = GraphView(gm.graph)
    middle = [n for n in view.nodes if n.name in ("mul", "add")]
    (group,) = fuse(view, XLA, nodes=middle).fusion.groups
    assert (group.nodes, group.reads, group.writes) == ({"mul", "add"}, 16 * KIB, 16 * KIB)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            DecomposedStep(kind="map", of=("scale",)),
            "steps.silu: part 'map' of silu: no tensor and no earlier part among scale",
        ),
        (DecomposedStep(kind="reduce", of=()), "part 'reduce' of silu: no tensor and no earlier part among (nothing)"),
        (DecomposedStep(kind="map", of=("input",), like="key"), "key is neither a tensor nor an earlier part"),
        (DecomposedStep(kind="dot", of=("input",), last="key.-2"), "key is neither a tensor nor an earlier part"),
    ],
)
def test_steps_that_name_nothing(trace, step, message):
    rules = XLA.model_copy(update={"steps": {"silu": (step,)}})
    with pytest.raises(InputError) as caught:
        fuse(GraphView(trace(lambda x: F.silu(x), x=square(4)).graph), rules)
    assert message in str(caught.value)


def test_only_products_compute_their_operand(kernels):
    assert [k[1] for k in kernels(lambda x: torch.linalg.norm(x * 2), x=torch.ones(1, 64))] == ["mul", "linalg_norm"]
