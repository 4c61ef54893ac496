from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config
from torch._inductor.graph import GraphLowering
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.torch_version import TorchVersion

from fluxrewrite.analysis import analyse
from fluxrewrite.errors import InputError
from fluxrewrite.fusion import Fusion, Group
from fluxrewrite.graph.modules import as_module
from fluxrewrite.kernel import load_kernels
from fluxrewrite.measure.oracle.compare import lost_fusions
from fluxrewrite.measure.oracle.inductor import inductor_fusion
from fluxrewrite.measure.oracle.node_names import Names
from fluxrewrite.rewrite.selection import Selection

pytestmark = pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.13", reason="Inductor's internals are those of torch 2.13"
)


def fakes(gm: GraphModule) -> list[Any]:
    return [n.meta["example_value"] for n in gm.graph.find_nodes(op="placeholder")]


@pytest.fixture
def ask(trace: Any) -> Callable[..., tuple[Group, ...]]:
    def run(fn: Any, dynamic: bool = False, **inputs: Any) -> tuple[Group, ...]:
        gm = trace(fn, dynamic=dynamic, **inputs)
        return inductor_fusion(gm, fakes(gm)).groups

    return run


def summary(groups: Sequence[Group]) -> list[tuple[str, str]]:
    return [(g.kind, " ".join(sorted(g.nodes))) for g in groups]


X = torch.zeros(128, 256)
ONE = 128 * 256 * 4


def test_a_chain_is_one_kernel_that_reads_its_inputs_and_writes_its_result(ask: Any) -> None:
    (group,) = ask(lambda a, b, c: (a + b) * c, a=X, b=X.clone(), c=X.clone())
    assert (group.kind, group.nodes, group.reads, group.writes) == ("fused", {"add", "mul"}, 3 * ONE, ONE)
    (group,) = ask(lambda a: a.relu() + a, a=X)
    assert (group.nodes, group.reads, group.writes) == ({"relu", "add"}, ONE, ONE)


def test_bytes_follow_the_dtype_and_the_part_that_is_read(ask: Any) -> None:
    (group,) = ask(lambda a: a[:, :64].relu().bfloat16(), a=X)
    assert (group.reads, group.writes) == (128 * 64 * 4, 128 * 64 * 2)
    (group,) = ask(lambda a: a[:, ::2] * a[:, 1::2], a=X)
    assert (group.reads, group.writes) == (ONE, ONE // 2)
    (group,) = ask(lambda a, b: a * b, a=X, b=torch.zeros(256))
    assert (group.reads, group.writes) == (ONE + 256 * 4, ONE)
    (group,) = ask(lambda a, i: a[i] + 1, a=X, i=torch.zeros(7, dtype=torch.int64))
    assert (group.reads, group.writes) == (ONE + 7 * 8, 7 * 256 * 4)  # gathered: any row may be read


def test_a_matrix_product_is_a_call_that_nothing_fuses_into(ask: Any) -> None:
    groups = ask(lambda a, w, b: F.linear(a.relu(), w, b).relu(), a=X, w=torch.zeros(64, 256), b=torch.zeros(64))
    assert summary(groups) == [("fused", "relu"), ("library", "linear"), ("fused", "relu_1")]
    assert (groups[1].reads, groups[1].writes) == (ONE + 64 * 256 * 4 + 64 * 4, 128 * 64 * 4)


def test_a_product_of_a_part_of_a_buffer_reads_that_part(ask: Any) -> None:
    (group,) = ask(lambda a, b: a[:, :64] @ b, a=X, b=torch.zeros(64, 8))
    assert (group.reads, group.writes) == (128 * 64 * 4 + 64 * 8 * 4, 128 * 8 * 4)


def test_operations_before_and_after_a_reduction_fuse_with_it(ask: Any) -> None:
    (group,) = ask(lambda a: (a + 1).softmax(-1) * 2, a=X)
    assert (group.kind, group.nodes, group.reads, group.writes) == ("fused", {"add", "softmax", "mul"}, ONE, ONE)
    (group,) = ask(lambda a, w: F.layer_norm(a.sin(), (256,), w).relu(), a=X, w=torch.zeros(256))
    assert (group.nodes, group.reads, group.writes) == ({"sin", "layer_norm", "relu"}, ONE + 256 * 4, ONE)


def test_attention_is_a_call_and_its_first_result_counts(ask: Any) -> None:
    q = torch.zeros(1, 4, 32, 16)
    groups = ask(lambda q, k, v: F.scaled_dot_product_attention(q, k, v) + 1, q=q, k=q.clone(), v=q.clone())
    assert summary(groups) == [("library", "scaled_dot_product_attention"), ("fused", "add")]
    size = q.numel() * 4
    assert groups[0].reads == 3 * size
    assert size <= groups[0].writes <= size + 4 * 32 * 4  # and the log-sum-exp if it is kept


def test_a_producer_inlined_in_two_kernels_is_in_both(ask: Any) -> None:
    def two(a: Tensor) -> tuple[Tensor, Tensor]:
        once = a.relu()
        return once.sum(0), once.sum(1)

    groups = ask(two, a=X)
    assert summary(groups) == [("fused", "once sum_1"), ("fused", "once sum_2")]
    assert [(g.reads, g.writes) for g in groups] == [(ONE, 256 * 4), (ONE, 128 * 4)]


def test_a_value_read_from_memory_is_not_computed_again(ask: Any) -> None:
    def two(a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        once = a.relu()
        return once.sum(0), once @ w

    groups = ask(two, a=X, w=torch.zeros(256, 8))
    assert summary(groups) == [("fused", "once"), ("fused", "sum_1"), ("library", "matmul")]


def test_a_call_that_takes_the_place_of_several_nodes_holds_them_all(ask: Any) -> None:
    (group,) = ask(lambda a, w, b: a.view(128, 256) @ w + b, a=X, w=torch.zeros(256, 64), b=torch.zeros(128, 64))
    assert (group.kind, group.nodes) == ("library", {"matmul", "add"})

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q.relu() @ k.transpose(-1, -2)) * 0.1
        weights = scores.softmax(-1)
        return weights @ v

    q = torch.zeros(1, 4, 32, 16)
    before, call = ask(attention, q=q, k=q.clone(), v=q.clone())
    assert (before.kind, before.nodes) == ("fused", {"relu"})
    assert (call.kind, call.nodes) == ("library", {"matmul", "scores", "weights", "matmul_1"})


def test_a_pass_of_the_users_own_still_runs(ask: Any) -> None:
    seen: list[Any] = []
    with config.patch(joint_custom_pre_pass=seen.append):
        (group,) = ask(lambda a: a.relu() + 1, a=X)
    assert len(seen) == 1
    assert group.nodes == {"relu", "add"}


def test_views_are_in_no_group_and_copies_are_groups_of_their_own(ask: Any) -> None:
    (group,) = ask(lambda a: a.t().reshape(-1), a=X)
    assert (group.kind, group.nodes, group.reads, group.writes) == ("copy", {"reshape"}, ONE, ONE)
    (group,) = ask(lambda a: a.view(64, 512).unsqueeze(0).transpose(1, 2).relu(), a=X)
    assert group.nodes == {"relu"}


def test_a_copy_for_the_sake_of_a_call_computes_no_node(ask: Any) -> None:
    copy, call = ask(lambda a, w: a[:, ::2] @ w, a=X, w=torch.zeros(128, 64))
    assert (copy.kind, copy.nodes, copy.reads, copy.writes) == ("copy", frozenset(), ONE // 2, ONE // 2)
    assert (call.kind, call.nodes, call.reads) == ("library", {"matmul"}, ONE // 2 + 128 * 64 * 4)


def test_a_kernel_that_writes_into_a_concatenation_contains_it(ask: Any) -> None:
    def joined(a: Tensor, w: Tensor) -> Tensor:
        return torch.cat([a.relu(), a @ w], 1) @ torch.cat([w, w], 0)

    groups = ask(joined, a=X, w=torch.zeros(256, 256))
    cat = next(g for g in groups if "relu" in g.nodes)
    assert (cat.nodes, cat.reads, cat.writes) == ({"relu", "cat"}, ONE, ONE)
    product = next(g for g in groups if g.kind == "library" and "cat" in g.nodes)
    assert (product.nodes, product.writes) == ({"matmul", "cat"}, ONE)


def rope_between(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.ops.fluxrewrite.rope(x + 1, cos, sin, True, 2).relu()


def test_nothing_fuses_across_a_kernel_of_ours(ask: Any) -> None:
    load_kernels()
    x, table = torch.zeros(1, 4, 32, 16), torch.zeros(32, 16)
    groups = ask(rope_between, x=x, cos=table, sin=table.clone())
    kinds = [g.kind for g in groups]
    assert kinds == ["fused", "opaque", "fused"]
    assert groups[0].nodes == {"add"}
    assert groups[2].nodes == {"relu"}
    assert (groups[1].reads, groups[1].writes) == (x.numel() * 4 + 2 * table.numel() * 4, x.numel() * 4)


def test_symbolic_sizes_count_by_their_hints(ask: Any) -> None:
    (group,) = ask(lambda a: (a + 1).softmax(-1) * 2, dynamic=True, a=X)
    assert (group.nodes, group.reads, group.writes) == ({"add", "softmax", "mul"}, ONE, ONE)
    (group,) = ask(lambda a: a[:, 1:] * 2, dynamic=True, a=X)
    assert (group.reads, group.writes) == (ONE - 128 * 4, ONE - 128 * 4)
    (group,) = ask(lambda a, b: a @ b, dynamic=True, a=X, b=torch.zeros(256, 32))
    assert (group.reads, group.writes) == (ONE + 256 * 32 * 4, 128 * 32 * 4)


def test_real_inputs_work_too(trace: Any) -> None:
    gm = trace(lambda a: a.relu() + 1, a=X)
    assert inductor_fusion(gm, [X]).groups == inductor_fusion(gm, fakes(gm)).groups


def _rewritten(gm: GraphModule, kernels: str) -> GraphModule:
    return as_module(gm, analyse(gm, Selection.of(kernels), "all")[1])


@pytest.fixture
def flux(flux2: Any, trace: Any) -> GraphModule:
    model, inputs = flux2(num_layers=1, num_single_layers=1)
    gm: GraphModule = trace(model, **inputs)
    return gm


def _consistent(gm: GraphModule) -> Fusion:
    fusion = inductor_fusion(gm, fakes(gm))
    names = {n.name for n in gm.graph.nodes if n.op == "call_function" or n.op == "call_method"}
    assert all(g.nodes and g.nodes <= names for g in fusion.groups)
    assert len({g.name for g in fusion.groups}) == len(fusion.groups)
    return fusion


def test_flux_vanilla_and_rewritten(flux: GraphModule) -> None:
    before = _consistent(flux)
    linears = {n.name for n in flux.graph.nodes if n.target is torch._C._nn.linear}
    assert linears == {name for g in before.groups if g.kind == "library" for name in g.nodes & linears}
    weights = sum(t.nbytes for t in fakes(flux))
    assert before.bytes > weights  # each is read once
    for kernels in ("qkv,rope,attention", "norm_rope_attention"):
        gm = _rewritten(flux, kernels)
        after = _consistent(gm)
        calls = {n.name for n in gm.graph.nodes if str(n.target).startswith("fluxrewrite")}
        assert calls == frozenset().union(*(g.nodes for g in after.groups if g.kind == "opaque"))
        assert len(calls) == sum(g.kind == "opaque" for g in after.groups)
        edges = [(p.name, c.name) for c in flux.graph.nodes for p in c.all_input_nodes]
        assert bool(lost_fusions(before, after, edges))
        assert after.bytes != before.bytes


@pytest.mark.slow
def test_one_call_from_projections_to_output_moves_fewer_bytes_than_the_pieces(flux: GraphModule) -> None:
    pieces, whole = (_rewritten(flux, k) for k in ("rope,attention", "norm_rope_attention"))
    assert inductor_fusion(whole, fakes(whole)).bytes < inductor_fusion(pieces, fakes(pieces)).bytes


@pytest.mark.slow
def test_the_schedule_is_that_of_a_real_compile(flux: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor's own road, stopped where it would make code, comes to the same kernels."""
    found: list[str] = []

    class StopError(Exception):
        pass

    def stop(self: GraphLowering) -> None:
        self.init_wrapper_code()
        self._update_scheduler()
        found.extend(n.get_first_name() for n in self.scheduler.nodes)
        raise StopError

    expected = [g.name for g in inductor_fusion(flux, fakes(flux)).groups]
    monkeypatch.setattr(GraphLowering, "compile_to_module", stop)
    with torch.no_grad(), config.patch(force_disable_caches=True), pytest.raises(Exception, match="StopError"):
        torch._inductor.compile_fx.compile_fx(Names(flux).named, fakes(flux))
    assert set(expected) <= set(found)
    assert expected == [name for name in found if name in set(expected)]


def test_it_leaves_the_graph_and_the_settings_alone(trace: Any) -> None:
    gm = trace(lambda a: a.relu() + 1, a=X)
    before = (str(gm.graph), [dict(n.meta) for n in gm.graph.nodes], config.get_config_copy(), torch.is_grad_enabled())
    first = inductor_fusion(gm, fakes(gm))
    after = (str(gm.graph), [dict(n.meta) for n in gm.graph.nodes], config.get_config_copy(), torch.is_grad_enabled())
    assert after == before
    assert inductor_fusion(gm, fakes(gm)) == first


def test_bad_inputs_are_named(trace: Any) -> None:
    gm = trace(lambda a: a.relu(), a=X)
    with pytest.raises(InputError, match="2 given, the graph has 1 placeholders"):
        inductor_fusion(gm, [X, X])
    with pytest.raises(InputError, match=r"example_inputs\[0\] is on meta"):
        inductor_fusion(gm, [X.to("meta")])


def test_a_graph_that_inductor_refuses_is_an_input_error(trace: Any) -> None:
    gm = trace(lambda a, b: a @ b, a=X, b=torch.zeros(256, 8))
    with pytest.raises(InputError, match="Inductor cannot compile this graph"):
        inductor_fusion(gm, [X, X])  # shapes that do not fit


def test_a_graph_that_must_be_traced_again_is_an_input_error(trace: Any) -> None:
    gm = trace(lambda a, s: a * torch.full((4,), s), dynamic=True, a=torch.zeros(4, 4), s=0.5)
    with pytest.raises(InputError, match="trace it with static sizes"):
        inductor_fusion(gm, fakes(gm))
