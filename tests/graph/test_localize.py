"""Graphs over DTensors as graphs of one rank: which chains are taken, what they compute, and what is left as it was."""

import pytest
import torch
import torch.nn.functional as F
from ranked import flux2
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fluxrewrite
from fluxrewrite import parallel
from fluxrewrite.graph import GraphView
from fluxrewrite.graph.localize import localise, mesh_of
from fluxrewrite.models.capture import capture
from fluxrewrite.parallel import process_group

pytestmark = pytest.mark.skipif(
    not hasattr(torch.distributed.distributed_c10d, "GroupName"), reason="DTensor's graphs are those of torch 2.13"
)

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    """Projections of columns, and an output of rows with its bias."""

    def __init__(self, bias=True):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8, bias=bias) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


PLAN = {"q": ColwiseParallel, "k": ColwiseParallel, "v": ColwiseParallel, "out": RowwiseParallel}


def divided(model, world, **styles):
    mesh = init_device_mesh("cpu", (world,))
    plan = {name: styles.get(name, style()) for name, style in PLAN.items()}
    return parallelize_module(model, mesh, plan, src_data_rank=None)


def traced(model, *inputs, grad=False):
    """Dynamo's graph with the tensors at hand."""
    graphs = []

    def keep(gm, example_inputs):
        graphs.append((gm, example_inputs))
        return gm.forward

    with torch.set_grad_enabled(grad):
        torch.compile(model, backend=keep, fullgraph=True)(*inputs)
    (found,) = graphs
    return found


def names(gm):
    return [GraphView(gm.graph).op(n) for n in gm.graph.nodes if n.op.startswith("call")]


@pytest.fixture
def alone(tmp_path):
    """A group of one rank: every operation runs, and nothing needs another process."""
    with process_group(0, 1, tmp_path / "store"):
        yield


@pytest.mark.parametrize("bias", [True, False])
def test_the_local_graph_computes_the_same(alone, bias):
    model = divided(Attention(bias), 1)
    gm, inputs = traced(model, X)
    before = [n.format_node() for n in gm.graph.nodes]
    local = localise(gm)
    assert [n.format_node() for n in gm.graph.nodes] == before
    given = local.inputs(inputs)
    assert len(local.unwrapped) == (8 if bias else 4)
    assert not any(isinstance(t, DTensor) for t in given)
    with torch.no_grad():
        torch.testing.assert_close(local.gm(*given)[0], model(X))
        torch.testing.assert_close(local.taking_dtensors(local.gm)(*inputs)[0], model(X))
    ops = names(local.gm)
    assert not {"from_local", "to_local", "redistribute"} & set(ops)
    assert ops.count("_c10d_functional.all_reduce") == ops.count("wait") == 1
    assert ops.count("linear") == 4
    values = [n.meta["example_value"] for n in local.gm.graph.nodes if n.op.startswith("call")]
    assert not any(isinstance(v, DTensor) for v in values)


def test_shapes_are_those_of_one_rank():
    model, inputs = flux2()
    captured = capture(model, inputs, tp=2)
    assert captured.tp == 2
    view = GraphView(captured.graphs[0].graph)
    assert {view.shape(n)[1] for n in view.with_op("sdpa")} == {2}
    sums = [n for n in view.nodes if view.op(n) == "_c10d_functional.all_reduce"]
    assert len(sums) == 5
    assert {n.meta["ranks"] for n in sums} == {2}
    paths = {view.path(n) for n in sums}
    assert "single_transformer_blocks.0.attn.to_out" in paths


def test_a_graph_without_dtensors_is_itself():
    gm, inputs = traced(Attention(), X)
    local = localise(gm)
    assert local.gm is gm
    assert local.inputs(inputs) == inputs
    assert local.taking_dtensors(gm.forward) == gm.forward
    assert mesh_of(gm) is None


def test_results_that_stay_dtensors_are_left_alone(alone):
    model = divided(Attention(), 1, q=ColwiseParallel(use_local_output=False))
    model.forward = lambda x: model.q(x).sum()
    gm, _ = traced(model, X)
    assert localise(gm).gm is gm
    view = GraphView(gm.graph)
    (layer,) = view.with_op("linear")
    assert view.shape(layer) is None


def test_where_gradients_are_needed_nothing_is_taken(alone):
    gm, _ = traced(divided(Attention(), 1), X, grad=True)
    assert localise(gm).gm is gm
    assert mesh_of(gm) is not None


def test_from_local_that_sends_is_left_alone(alone):
    """`run_check` broadcasts; Dynamo does not trace it today, so the graph is changed by hand."""
    gm, _ = traced(divided(Attention(), 1), X)
    assert localise(gm).gm is not gm
    for node in gm.graph.nodes:
        if node.target is DTensor.from_local:
            node.kwargs = {"run_check": True}
    assert localise(gm).gm is gm


def test_two_axes_of_ranks_are_left_alone(alone):
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))

    def both(x, w):
        return F.linear(DTensor.from_local(x, mesh, [Replicate(), Replicate()], run_check=False), w).to_local()

    w = DTensor.from_local(torch.randn(8, 8), mesh, [Replicate(), Shard(0)])
    gm, _ = traced(both, X, w)
    assert localise(gm).gm is gm


def test_a_weight_with_another_use_is_left_alone_and_the_rest_is_taken(alone):
    model = divided(Attention(bias=False), 1)
    forward = model.forward
    model.forward = lambda x: (forward(x), model.q.weight.sum().full_tensor())
    gm, inputs = traced(model, X)
    local = localise(gm)
    assert len(local.unwrapped) == 3
    assert names(local.gm).count("to_local") >= 1
    with torch.no_grad():
        expected = model(X)
        found = local.gm(*local.inputs(inputs))
    torch.testing.assert_close(tuple(found), expected)


@pytest.mark.parametrize("kernels", ["qkv", "attention", None])
def test_the_backend_on_one_rank(alone, kernels):
    whole = Attention()
    with torch.no_grad():
        expected = whole(X)
        model = divided(whole, 1)
        backend = fluxrewrite.backend("eager", kernels, strict=True, provider="reference")
        torch.testing.assert_close(torch.compile(model, backend=backend, fullgraph=True)(X), expected)
    (report,) = backend.reports
    assert report.summary.kinds["qkv" if kernels is None else kernels].rewritten == 1
    assert report.model.parameters == sum(p.numel() for p in model.parameters())


def test_nothing_to_rewrite_leaves_the_traced_graph(alone):
    seen = []

    def inner(gm, example_inputs):
        seen.append((gm, example_inputs))
        return gm.forward

    backend = fluxrewrite.backend(inner, policy="none", strict=True)
    with torch.no_grad():
        torch.compile(divided(Attention(), 1), backend=backend)(X)
    ((gm, inputs),) = seen
    assert names(gm).count("redistribute") == 4
    assert sum(isinstance(t, DTensor) for t in inputs) == 8


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_parts_of_weights_are_never_joined(alone, inner):
    """Joining moves a parameter's memory; that of a DTensor's part is not the model's to move."""
    model = divided(Attention(), 1)
    before = {name: p.to_local().data_ptr() for name, p in model.named_parameters()}
    backend = fluxrewrite.backend(inner, "qkv", policy=lambda site: "inline", strict=True, provider="reference")
    with torch.no_grad():
        expected = model(X)
        torch.testing.assert_close(torch.compile(model, backend=backend)(X), expected)
    (site,) = backend.reports[0].sites
    assert site.choice == "keep"
    assert "no inline form" in site.reasons[0].message
    assert {name: p.to_local().data_ptr() for name, p in model.named_parameters()} == before


def test_what_is_a_part_is_no_parameter_to_join(alone):
    from fluxrewrite.rewrite.joined_weights import owned, parameters

    gm, inputs = traced(divided(Attention(), 1), X)
    weights = [n for n in gm.graph.find_nodes(op="placeholder") if n.name.endswith("weight_") and "out" not in n.name]
    assert len(weights) == 3
    assert not parameters(weights)
    assert not owned(gm, inputs)(weights)
    local = localise(gm)
    twins = [n for n in local.gm.graph.find_nodes(op="placeholder") if n.name in {w.name for w in weights}]
    assert not parameters(twins)
    assert not owned(local.gm, local.inputs(inputs))(twins)


def test_degree_of_a_model_without_dtensors():
    assert parallel.degree(Attention()) == 1
