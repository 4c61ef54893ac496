"""`inspect` of a divided model: the graph of one rank, without weights and without other processes."""

import json
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from ranked import flux2
from torch import nn
from torch.distributed.tensor import DTensor

import fluxrewrite
from fluxrewrite.analysis import Options, inspect_spec
from fluxrewrite.cli import main
from fluxrewrite.errors import InputError
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.capture import capture
from fluxrewrite.parallel import fake_group, shard
from fluxrewrite.report.text.report import rendered

pytestmark = pytest.mark.skipif(
    not hasattr(torch.distributed.distributed_c10d, "GroupName"), reason="DTensor's graphs are those of torch 2.13"
)

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def klein():
    """`klein(tp)`: the report on one of `tp` ranks of klein's widths in 1 + 2 blocks."""
    made = {}

    def report(tp):
        if tp not in made:
            torch._dynamo.reset()
            made[tp] = inspect_spec(find_model("flux2-klein-mini"), Shapes(), torch.bfloat16, Options(tp=tp))
        return made[tp]

    return report


def counts(report):
    return Counter((s.kind, s.form, s.status) for s in report.sites)


@pytest.mark.slow
def test_klein_on_four_ranks():
    report = inspect_spec(find_model("flux2-klein-4b"), Shapes(), torch.bfloat16, Options(tp=4))
    found = Counter((s.kind, s.form) for s in report.sites)
    assert (found["attention", "sdpa"], found["rope", "interleaved"]) == (25, 50)
    assert (found["qkv", "triple"], found["qkv", "packed"]) == (10, 20)
    assert found["norm_rope_attention", "joint"] + found["norm_rope_attention", "single"] == 25
    assert {s.status for s in report.sites} == {"eligible"}
    assert {s.shapes["heads"] for s in report.sites if s.kind == "attention"} == {6}
    assert {s.shapes["columns"] for s in report.sites if s.kind == "qkv"} == {2304}
    assert len(report.collectives) == 5 * 4 + 20


@pytest.mark.slow
def test_four_ranks_have_the_sites_of_one(klein):
    one, four = klein(1), klein(4)
    assert counts(four) == counts(one)
    assert (one.model.tp, four.model.tp) == (1, 4)
    assert four.model.parameters == one.model.parameters
    assert not dist.is_initialized()


def test_sizes_are_those_of_one_rank(klein):
    sites = klein(4).sites
    for kind in ("attention", "rope", "norm_rope_attention"):
        assert {s.shapes["heads"] for s in sites if s.kind == kind} == {6}
    for site in (s for s in sites if s.kind == "qkv"):
        assert [site.shapes[n] for n in ("hidden", "query", "key", "value", "columns")] == [3072, 768, 768, 768, 2304]
        assert site.shapes.get("rest") == (18432 // 4 if site.form == "packed" else None)


def test_collectives_are_in_the_report_and_no_kernel_changes_them(klein):
    one, four = klein(1), klein(4)
    assert one.collectives == ()
    assert (one.effect.collectives_before, one.effect.collectives_after) == (0, 0)
    assert four.effect.collectives_before == four.effect.collectives_after == len(four.collectives) == 4 + 2
    assert {(c.op, c.ranks) for c in four.collectives} == {("all_reduce", 4)}
    by_path = {c.path: c for c in four.collectives}
    assert by_path["single_transformer_blocks.1.attn.to_out"].shape == (1, 768, 3072)
    assert by_path["transformer_blocks.0.ff.linear_out"].bytes == 256 * 3072 * 2


def test_traffic_is_that_of_one_rank(klein):
    one, four = klein(1).effect, klein(4).effect
    assert one.bytes_before / 4 < four.bytes_before < one.bytes_before / 2


def text_of(report):
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rendered(report))
    return " ".join(console.export_text().split())


def test_the_text_names_collectives_by_module(klein):
    text = text_of(klein(4))
    assert "Collectives: 6 a step (with kernels and without), 18.87 MB a rank; nothing fuses across" in text
    assert "2 x all_reduce of 4 ranks at single_transformer_blocks.*.attn.to_out, 4.72 MB each" in text
    assert "Collectives" not in text_of(klein(1))


def test_json_of_the_command(capsys):
    assert main(["inspect", "flux2-klein-mini", "--tp", "4", "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["tp"] == 4
    assert {s["shapes"]["columns"] for s in report["sites"] if s["kind"] == "qkv"} == {2304}
    assert len(report["collectives"]) == 4 + 2


BAD = {
    "heads that the ranks do not divide": (
        ["flux2-klein-mini", "--tp", "16"],
        ["24 heads cannot be divided among 16 ranks", "2, 3, 4, 6, 8, 12, 24"],
    ),
    "no plan": (["planless:make", "--tp", "2"], ["Linear has no _tp_plan", "2 ranks"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_model_that_cannot_be_divided_is_reported_in_one_line(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planless.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(4, 4), {'input': torch.ones(1, 4)}\n"
    )
    given, told = BAD[name]
    assert main(["inspect", *given]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    for words in told:
        assert words in err
    assert not dist.is_initialized()


def test_a_function_cannot_be_divided():
    with pytest.raises(InputError, match="tp 2: a function cannot be divided"):
        fluxrewrite.inspect(lambda x: x, x=torch.ones(2), options=Options(tp=2))


def test_a_model_is_given_back_as_it_was():
    net, inputs = flux2()
    before = dict(net.named_parameters())
    with torch.no_grad():
        expected = net(**inputs)[0]
    report = fluxrewrite.inspect(net, inputs, options=Options(tp=2))
    assert {s.shapes["heads"] for s in report.sites if s.kind == "attention"} == {2}
    assert dict(net.named_parameters()).keys() == before.keys()
    assert all(p is before[name] for name, p in net.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with torch.no_grad():
        assert torch.equal(net(**inputs)[0], expected)


def test_a_model_of_dtensors_is_traced_as_it_is():
    net, inputs = flux2()
    with fake_group(2):
        shard(net, 2)
        for tp in (1, 2):
            report = fluxrewrite.inspect(net, inputs, options=Options(tp=tp))
            assert report.model.tp == 2
            assert {s.shapes["heads"] for s in report.sites if s.kind == "attention"} == {2}
            assert len(report.collectives) == 5
        with pytest.raises(InputError, match="tp 4: Flux2Transformer2DModel is divided among 2 ranks already"):
            fluxrewrite.inspect(net, inputs, options=Options(tp=4))
        assert sum(isinstance(p, DTensor) for p in net.parameters()) == 14


@pytest.mark.slow
def test_symbolic_sizes():
    net, inputs = flux2()
    report = fluxrewrite.inspect(net, inputs, options=Options(tp=2, dynamic=True, provider="reference"))
    assert {s.shapes["heads"] for s in report.sites if s.kind == "attention"} == {2}
    assert len(report.collectives) == 5
    assert any(isinstance(n, str) for c in report.collectives for n in c.shape)


def test_an_existing_group_of_the_user_is_reported():
    net, inputs = flux2()
    with fake_group(2), pytest.raises(InputError, match="run it in a separate process"):
        fluxrewrite.inspect(net, inputs, options=Options(tp=2))


class Sends(nn.Module):
    """A DTensor laid out anew in the middle, which has no local form here."""

    def __init__(self, mesh):
        super().__init__()
        self.mesh = mesh

    def forward(self, x):
        from torch.distributed.tensor import Replicate, Shard

        y = DTensor.from_local(x, self.mesh, [Shard(0)], run_check=False)
        return y.redistribute(placements=[Shard(0)]).redistribute(placements=[Replicate()]).to_local() + 1


def test_what_dtensors_send_by_themselves_is_a_collective_too():
    from torch.distributed.device_mesh import init_device_mesh

    with fake_group(4):
        net = Sends(init_device_mesh("cpu", (4,)))
        report = fluxrewrite.inspect(net, x=torch.ones(2, 8))
    (sent,) = report.collectives
    assert (sent.op, sent.ranks, sent.shape, sent.bytes) == ("redistribute", 4, (2, 8), 64)


def test_capture_reports_whole_parameters():
    net, inputs = flux2()
    assert capture(net, inputs, tp=4).parameters == sum(p.numel() for p in net.parameters())
