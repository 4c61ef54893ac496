"""Tensor parallelism: groups, shards, the same plan on all ranks, and outputs of real gloo ranks."""

import time
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from ranked import flux2, run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from fluxrewrite import parallel
from fluxrewrite.errors import InputError, RankError
from fluxrewrite.parallel import Ranks, fake_group, process_group, ranks, shard

pytestmark = pytest.mark.skipif(
    not hasattr(torch.distributed.distributed_c10d, "GroupName"), reason="DTensor's graphs are those of torch 2.13"
)

pytest.importorskip("diffusers")


# *** ranks and groups


def test_ranks_of_torchrun():
    assert ranks({"RANK": "2", "WORLD_SIZE": "4"}) == Ranks(2, 4)
    assert ranks({}) is None
    assert ranks({"RANK": "", "WORLD_SIZE": ""}) is None
    assert Ranks(0, 4).leads
    assert not Ranks(1, 4).leads


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "1"}, "WORLD_SIZE is None"),
        ({"WORLD_SIZE": "2"}, "RANK is None"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "rank 4 of 4: ranks count from 0 to 3"),
    ],
)
def test_an_environment_that_is_not_torchruns(environment, told):
    with pytest.raises(InputError, match=told):
        ranks(environment)


def test_a_group_needs_ranks(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="torchrun"), process_group():
        pass


def test_a_group_from_torchruns_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group(store=tmp_path / "store") as here:
        assert here == Ranks(0, 1)
        assert dist.get_backend() == "gloo"
    assert not dist.is_initialized()


def test_one_group_at_a_time(tmp_path):
    with fake_group(4) as here:
        assert (here, dist.get_world_size()) == (Ranks(0, 4), 4)
        with pytest.raises(InputError, match="one of 4 ranks is initialised already"), fake_group(2):
            pass
        with pytest.raises(InputError, match="one of 4 ranks is initialised already"):
            process_group(0, 1, tmp_path / "store").__enter__()
    assert not dist.is_initialized()


def test_a_rank_that_does_not_come(tmp_path):
    start = time.monotonic()
    with (
        pytest.raises(RankError, match=r"rank 0 of 2: another rank ended, or did not answer within 1 s"),
        process_group(0, 2, tmp_path / "store", timeout_s=1),
    ):
        pass
    assert time.monotonic() - start < 15
    assert not dist.is_initialized()


@pytest.mark.parametrize("place", ["tcp://nowhere", "none/store"])
def test_no_place_to_meet(tmp_path, place):
    with pytest.raises(InputError, match=r"nowhere: ranks cannot meet|the folder .*none does not exist"):
        process_group(0, 2, place if "://" in place else tmp_path / place, timeout_s=1).__enter__()
    assert not dist.is_initialized()


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match=r"^planted$"), process_group(0, 1, tmp_path / "store"):
        raise RuntimeError("planted")
    assert not dist.is_initialized()


# *** shards


class Planned(nn.Module):
    """Two layers with a plan of their own, and no heads."""

    _tp_plan: ClassVar = {"up": "colwise", "down": "rowwise"}

    def __init__(self, inner=8, bias=True):
        super().__init__()
        self.up, self.down = nn.Linear(4, inner, bias=bias), nn.Linear(inner, 4, bias=bias)

    def forward(self, x):
        return self.down(self.up(x).relu())


def test_each_rank_keeps_its_part():
    whole = flux2()[0].state_dict()
    inner = 4 * 16
    for rank in range(2):
        net, _ = flux2()
        with fake_group(2, rank):
            assert shard(net, 2) is net
            assert parallel.degree(net) == 2
            to_q = net.transformer_blocks[0].attn.to_q.weight
            assert (to_q.placements, tuple(to_q.shape)) == ((Shard(0),), (inner, inner))
            half = slice(rank * inner // 2, (rank + 1) * inner // 2)
            assert torch.equal(to_q.to_local(), whole["transformer_blocks.0.attn.to_q.weight"][half])
            out = net.transformer_blocks[0].attn.to_out[0].weight.to_local()
            assert torch.equal(out, whole["transformer_blocks.0.attn.to_out.0.weight"][:, half])
            packed = whole["single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"]
            blocks = [p[p.shape[0] // 2 * rank :][: p.shape[0] // 2] for p in packed.split([64, 64, 64, 192, 192])]
            local = net.single_transformer_blocks[0].attn.to_qkv_mlp_proj.weight.to_local()
            assert torch.equal(local, torch.cat(blocks))


def test_parts_do_not_keep_the_whole_weights_in_memory():
    net, _ = flux2()
    with fake_group(4):
        shard(net, 4)
        parts = [p.to_local() for p in net.parameters() if isinstance(p, DTensor)]
        assert len(parts) == 14
        assert all(p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in parts)


def test_what_cannot_be_divided(monkeypatch):
    net, _ = flux2()
    with fake_group(3):
        with pytest.raises(InputError, match=r"4 heads cannot be divided among 3 ranks; 2, 4 ranks divide them"):
            shard(net, 3)
        with pytest.raises(InputError, match=r"Planned: Cannot shard 'up.weight' across 3 .* size 8 .* divisible by 3"):
            shard(Planned(8), 3)
        with pytest.raises(InputError, match=r"Linear has no _tp_plan, so it is not known how to divide it among 3"):
            shard(nn.Linear(6, 6), 3)
        done = shard(Planned(6), 3)
        with pytest.raises(InputError, match="Planned is divided among 3 ranks already"):
            shard(done, 3)
        monkeypatch.setitem(__import__("sys").modules, "diffusers.hooks.tensor_parallel", None)
        with pytest.raises(InputError, match="needs diffusers with tensor parallelism"):
            shard(Planned(6), 3)


def test_a_model_that_was_refused_is_as_it_was():
    net, _ = flux2()
    with fake_group(3), pytest.raises(InputError):
        shard(net, 3)
    assert parallel.degree(net) == 1


# *** peers and plans


def graph_of(*values, op=None):
    graph = torch.fx.Graph()
    for i, value in enumerate(values):
        graph.placeholder(f"x{i}").meta["example_value"] = value
    if op is not None:
        graph.call_function(op, (graph.placeholder("y"), "sum", dist.group.WORLD.group_name))
    graph.output(())
    return torch.fx.GraphModule(nn.Module(), graph)


def test_one_process_has_no_peers(tmp_path):
    assert parallel.peers(graph_of(torch.ones(2))) == ()
    with process_group(0, 1, tmp_path / "store"):
        mesh = init_device_mesh("cpu", (1,))
        assert parallel.peers(graph_of(distribute_tensor(torch.ones(2), mesh, [Replicate()]))) == ()
    with fake_group(4):  # the others do not exist
        mesh = init_device_mesh("cpu", (4,))
        assert parallel.peers(graph_of(DTensor.from_local(torch.ones(2), mesh, [Shard(0)]))) == ()


def test_peers_are_the_ranks_of_the_mesh_or_of_the_collectives(monkeypatch):
    with fake_group(4):
        monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        assert parallel.peers(graph_of(DTensor.from_local(torch.ones(2), mesh["tp"], [Shard(0)]))) == (0, 1)
        assert parallel.peers(graph_of(torch.ones(2), op=torch.ops._c10d_functional.all_reduce.default)) == (0, 1, 2, 3)
        assert parallel.peers(graph_of(torch.ones(2))) == ()


def test_alone_agrees_with_itself():
    parallel.agree(["a"], ())
    parallel.agree(["a"], (0,))


def test_equal_plans_agree_and_a_different_one_is_named(tmp_path):
    same, other = ["a", "b", "c"], ["a", "x", "c"]
    found = run_ranks("tells", 3, tmp_path, plans=[[same, same], [same, other], [same, same]])
    for answer in found:
        assert answer["error"][0].startswith("RewriteError: the ranks plan differently; the first difference: ")
        assert "ranks 0, 2: b | rank 1: x" in answer["error"][0]


def test_plans_of_other_length_and_more_than_two(tmp_path):
    found = run_ranks("tells", 3, tmp_path, plans=[[["a"]], [["a", "b"]], [["c"]]])
    for answer in found:
        assert "differently in 3 ways; the first difference: rank 0: nothing | rank 1: b" in answer["error"][0]


@pytest.mark.slow
def test_a_rank_that_publishes_no_plan(tmp_path):
    found = run_ranks("tells", 2, tmp_path, timeout_s=2, plans=[[["a"]], None])
    assert "RankError: rank 1 did not publish its plan of graph 1 within 2 s" in found[0]["error"][0]
    assert found[1]["result"] == "silent"


def test_equal_plans_one_after_the_other(tmp_path):
    plans = [[["a"], ["b"], []]] * 2
    assert [a["result"] for a in run_ranks("tells", 2, tmp_path, plans=plans)] == [3, 3]


# *** real ranks


SETS = ["qkv", "attention", "norm_rope_attention", None]


def check(found, world, sets, sends):
    """Each rank's answers of `compare`: close to one process, as many operations sent as by eager DTensors."""
    for answer in found:
        eager, *compiled = answer["result"]
        assert len(compiled) == len(sets)
        assert eager["sent"] == {"gloo:all_reduce": sends}
        assert eager["scale"] > 0.1  # or differences would say little
        for kernels, one in zip(sets, compiled, strict=True):
            assert one["off"] < 1e-5, kernels
            assert one["sent"] == eager["sent"], kernels
            assert one["rewritten"], kernels
            assert one["tp"] == world
            for name in (kernels or "qkv,norm_rope_attention").split(","):
                assert one["rewritten"].get(name), kernels


@pytest.mark.slow
def test_two_ranks_compute_what_one_process_does(tmp_path):
    found = run_ranks("compare", 2, tmp_path, model="flux2", sets=["qkv", None], inner="eager")
    check(found, 2, ["qkv", None], sends=5)
    shapes = [(one["columns"], one["rest"]) for answer in found for one in answer["result"][1:]]
    assert set(map(str, shapes)) == {str(([3 * 32], [2 * 96]))}


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["eager", "inductor"])
@pytest.mark.parametrize(("model", "sends"), [("flux2", 5), ("flux1", 5)])
def test_four_ranks_compute_what_one_process_does(tmp_path, model, sends, inner):
    sets = SETS if inner == "eager" else [None]
    found = run_ranks("compare", 4, tmp_path, timeout_s=120, limit_s=400, model=model, sets=sets, inner=inner)
    check(found, 4, sets, sends)


@pytest.mark.slow
def test_another_policy_on_one_rank_is_an_error_on_all(tmp_path):
    options = [{"kernels": "attention"}, {"kernels": "attention", "policy": "none"}]
    start = time.monotonic()
    found = run_ranks("differ", 2, tmp_path, options=options, strict=False)
    assert time.monotonic() - start < 60
    for answer in found:
        assert "the ranks plan differently" in answer["error"][-1]
        assert "rank 0: attention:sdpa at transformer_blocks.0.attn: kernel" in answer["error"][-1]
        assert "rank 1: attention:sdpa at transformer_blocks.0.attn: keep" in answer["error"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_a_rank_that_fails_to_plan_is_an_error_on_all(tmp_path, strict):
    found = run_ranks("broken", 2, tmp_path, strict=strict)
    for answer in found:
        assert "the ranks plan differently" in answer["error"][-1]
        assert "rank 1: no plan (ValueError: planted)" in answer["error"][-1]


@pytest.mark.slow
def test_a_rank_that_fails_to_compile_is_an_error_on_all(tmp_path):
    for answer in run_ranks("fails_inside", 2, tmp_path, moment="compile"):
        assert "rank 0: compiled | rank 1: ValueError in the inner backend" in answer["error"][-1]


@pytest.mark.slow
def test_a_first_run_that_fails_is_not_run_again_by_one_rank_alone(tmp_path):
    first, second = run_ranks("fails_inside", 2, tmp_path, moment="first run")
    assert second["error"] == ["ValueError: planted in the first run"]
    assert first["error"][0].startswith("RankError: rank 0 of 2: another rank ended")


@pytest.mark.slow
def test_a_policy_that_measures_is_refused(tmp_path):
    found = run_ranks("differ", 2, tmp_path, options=[{"policy": "measure", "device": "cpu"}] * 2, strict=False)
    for answer in found:
        assert "InputError: policy 'measure' would let each of 2 ranks choose" in answer["error"][-1]


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_rank_killed_between_steps_ends_the_others(tmp_path, world):
    found = run_ranks("dies", world, tmp_path, timeout_s=20, note=str(tmp_path / "killed"))
    assert found[-1] is None
    killed = float((tmp_path / "killed").read_text())
    for rank in range(world - 1):
        assert found[rank]["error"][0].startswith(
            f"RankError: rank {rank} of {world}: another rank ended, or did not answer"
        )
        assert found[rank]["at"] - killed < 30


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_in_time(tmp_path):
    found = run_ranks("stops", 2, tmp_path, timeout_s=3)
    assert found[0]["error"][0].startswith("RankError: rank 0 of 2: another rank ended, or did not answer within 3 s")
