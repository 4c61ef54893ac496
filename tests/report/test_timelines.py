"""Timelines of the kernel calls of a report, through the hook of their providers."""

import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.cost import load_device
from fluxrewrite.errors import InputError
from fluxrewrite.provider import Implementation
from fluxrewrite.report.text.report import rendered
from fluxrewrite.report.text.timelines import timeline_section
from fluxrewrite.report.timelines import SLICES, distinct, with_timelines

X = torch.randn(1, 2, 40, 32)


class Two(torch.nn.Module):
    """Two equal calls of attention and one of another size."""

    def forward(self, x):
        for _ in range(2):
            x = F.scaled_dot_product_attention(x.exp(), x, x).relu()
        y = x[:, :, :24].contiguous()
        return F.scaled_dot_product_attention(y.exp(), y, y)


def report_of(provider="builtin", **options):
    return fluxrewrite.inspect(Two(), x=X, options=Options(kernels="attention", provider=provider, **options))


@pytest.fixture(scope="module")
def report():
    return report_of()


@pytest.fixture(scope="module")
def timed(report):
    return with_timelines(report)


def test_equal_calls_are_one_and_as_many_as_the_compile_counts(report):
    found = distinct(report)
    assert [len(sites) for _, sites in found] == [2, 1]
    assert len(found) == report.effect.compile.specialisations


def test_engines_agree_with_the_emulator_and_slices_with_the_share(timed):
    from fluxrewrite.kernels.emulator.timeline import Engine
    from fluxrewrite.kernels.harness import sample_inputs
    from fluxrewrite.kernels.harness.call_cost import model_call

    assert [len(t.sites) for t in timed.timelines] == [2, 1]
    assert sorted(s for t in timed.timelines for s in t.sites) == sorted(c.site for c in timed.calls)
    first = timed.timelines[0]
    sizes = sample_inputs.complete("attention", {"heads": 2, "sequence": 40, "head_size": 32})
    call = model_call("attention", sizes, torch.float32, device="trn2", cores=2)
    assert (first.device, first.cores, first.problem) == ("trn2", 2, "")
    assert first.latency_us == pytest.approx(call.latency_us, rel=1e-5)
    assert first.roofline_us == pytest.approx(call.roofline_us, rel=1e-5)
    assert [e.engine for e in first.engines] == ["tensor", "vector", "scalar", "gpsimd", "dma"]
    for engine in first.engines:
        assert engine.busy == pytest.approx(call.busy(Engine(engine.engine)), rel=1e-3)
        assert len(engine.slices) == SLICES
        assert all(0 <= s <= 100 for s in engine.slices)
        assert sum(engine.slices) / SLICES == pytest.approx(100 * engine.busy, abs=3)
    assert first.bound == call.bound


def test_launches_follow_one_another(provide, report):
    from fluxrewrite.provider.registry import implementations

    attention = implementations("builtin")["attention"].launch
    provide({"attention": lambda execution, *a: [attention(execution, *a), attention(execution, *a)]})
    twice = with_timelines(report_of("mine")).timelines[0]
    once = with_timelines(report).timelines[0]
    assert twice.latency_us == pytest.approx(2 * once.latency_us, rel=1e-4)
    dma = twice.engines[-1].slices
    assert dma[: SLICES // 2] == pytest.approx(dma[SLICES // 2 :], abs=2)
    assert any(dma)


def test_each_call_is_told_while_it_is_modelled(report):
    told = []
    with_timelines(report, told.append)
    assert told == ["attention:sdpa"] * 2


def test_a_call_that_cannot_be_modelled_says_why(provide):
    provide({"attention": Implementation(lambda *a: None, (), "m:f")})
    module = sys.modules["provider_of_a_test"]
    module.PROVIDER = dataclasses.replace(module.PROVIDER, profile=None)
    found = with_timelines(report_of("mine"))
    assert {t.problem for t in found.timelines} == {"provider 'mine' has no model of what its kernels cost"}
    assert all(t.latency_us is None and t.engines == () for t in found.timelines)
    words = " ".join(str(part) for part in timeline_section(found).parts)
    assert "attention:sdpa, batch=1" in words
    assert "not modelled: provider 'mine' has no model" in words


def test_symbolic_sizes_are_not_modelled(report):
    sites = tuple(s.model_copy(update={"shapes": {**s.shapes, "batch": "s0"}}) for s in report.sites)
    found = with_timelines(report.model_copy(update={"sites": sites}))
    assert [t.problem.partition(":")[0] for t in found.timelines] == ["batch s0"] * 2
    assert "a kernel is modelled for sizes that are numbers" in found.timelines[0].problem


def test_what_cannot_be_modelled_at_all_is_refused(report):
    with pytest.raises(InputError, match="no model of kernel calls on cpu: the emulator models trn1, trn2, trn3"):
        with_timelines(report_of(device="cpu"))
    with pytest.raises(InputError, match="has no predictions"):
        with_timelines(report.model_copy(update={"effect": None}))


def test_a_profile_of_ones_own_is_modelled_as_the_device_that_it_names(timed):
    acme = load_device("trn2").model_copy(update={"name": "acme1"})
    report = timed.model_copy(update={"timelines": (), "effect": timed.effect.model_copy(update={"device": "acme1"})})
    assert with_timelines(report, device=acme).timelines == timed.timelines
    with pytest.raises(InputError, match=r"no timelines of kernels on acme1: a report keeps the name.*--device FILE"):
        with_timelines(report)
    with pytest.raises(InputError, match="no model of kernel calls on acme1"):
        with_timelines(report, device=acme.model_copy(update={"emulated_as": None}))
    with pytest.raises(InputError, match="as emulated_as, not 'trn9'"):
        with_timelines(report, device=acme.model_copy(update={"emulated_as": "trn9"}))


def test_the_text_ranks_calls_and_says_what_it_is(timed, capsys):
    from rich.console import Console

    Console(width=80).print(rendered(timed))
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("Kernels on their engines (modelled by the emulator, no hardware)")
    assert lines[at + 1].split() == ["calls", "kernel", "a", "call", "tensor", "vector", "scalar", "gpsimd", "dma"]
    assert [line.split()[:2] for line in lines[at + 2 : at + 4]] == [["2", "attention:sdpa"], ["1", "attention:sdpa"]]
    busy = [e.busy for e in timed.timelines[0].engines]
    assert lines[at + 2].split()[-5:] == [f"{b:.0%}" for b in busy]
    assert all(len(line) <= 80 for line in lines)
