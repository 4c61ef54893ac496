import sys

import pytest
import torch
from fluxrewrite.kernels.harness import sample_inputs
from fluxrewrite.kernels.harness.call_cost import model_call

from fluxrewrite.errors import InputError
from fluxrewrite.kernel import Limit
from fluxrewrite.provider import Implementation
from fluxrewrite.provider.registry import implementations

SMALL = {
    "rope": {"sequence": 130, "heads": 2},
    "qkv": {"sequence": 130, "hidden": 256, "query": 128, "bias": 1},
    "attention": {"sequence": 130, "heads": 2, "kv_heads": 1, "mask": 2},
    "norm_rope_attention": {"sequence": 130, "text": 30, "heads": 2},
}


def model(name, sizes=None, **options):
    return model_call(name, sample_inputs.complete(name, SMALL[name] | (sizes or {})), torch.bfloat16, **options)


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize(("device", "cores"), [("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 1)])
def test_every_kernel_runs_without_data(name, device, cores):
    call = model(name, device=device, cores=cores)
    assert (call.device, call.cores) == (device, cores)
    assert call.latency_us >= call.roofline_us > 0
    assert sum(p.dma_bytes for p in call.profiles) >= call.traffic * (name != "attention")  # a bool mask is made wider


def test_roofline_of_compute_and_of_traffic():
    call = model("attention", {"sequence": 768, "mask": 0})
    assert call.peak_tflops == pytest.approx(2 * 128 * 128 * 2.4 / 1e3)
    assert call.roofline_us == pytest.approx(4 * 2 * 768**2 * 128 / (2 * 128 * 128 * 2.4e3))
    call = model("rope", cores=2)
    assert call.roofline_us == pytest.approx((2 * 130 * 2 * 128 * 2 + 2 * 130 * 128 * 4) / 724e3)


def test_float32_takes_four_passes():
    sizes = sample_inputs.complete("qkv", SMALL["qkv"])
    assert model_call("qkv", sizes, torch.float32).peak_tflops == pytest.approx(2 * 128 * 128 * 2.4 / 1e3 / 4)


def test_bounded_mode_is_another_kernel():
    sizes = {"sequence": 768, "text": 512, "heads": 24}
    exact, bounded = (model("norm_rope_attention", sizes | {"bounded": b}).latency_us for b in (0, 1))
    assert bounded < 0.6 * exact


def test_what_bounds_a_call():
    assert model("rope").bound.startswith("dependences between engines; ")
    assert model("rope", {"sequence": 4096, "heads": 24}).bound.startswith("gpsimd, busy 9")
    assert "vector close to it" in model("rope", {"sequence": 4096, "heads": 24}).bound


def test_two_launches_add_up(provide):
    rope = implementations("builtin")["rope"].launch
    provide({"rope": lambda execution, *a: [rope(execution, *a), rope(execution, *a)]})
    twice, once = model("rope", provider="mine"), model("rope")
    assert len(twice.profiles) == 2
    assert twice.latency_us == pytest.approx(2 * once.latency_us)
    assert twice.bound == once.bound


def test_what_kernels_print_stays_out(provide, capsys):
    rope = implementations("builtin")["rope"].launch
    provide({"rope": lambda execution, *a: (sys.stdout.write("noise"), rope(execution, *a))[1]})
    model("rope", provider="mine")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "sizes", "options", "wrong", "remedy"),
    [
        ("rope", {}, {"device": "trn4"}, "'trn4'", "trn1, trn2, trn3"),
        ("rope", {}, {"provider": "reference"}, "'reference'", "builtin"),
        ("rope", {}, {"provider": "nobody"}, "'nobody'", "builtin"),
        ("rope", {}, {"device": "trn1", "cores": 2}, "2 cores on trn1", "LNC1"),
        ("attention", {"head_size": 256}, {}, "head_size 256", "<= 128"),
        ("attention", {"kv_sequence": 20001, "mask": 0}, {}, "20001", "<= 20000"),
        ("norm_rope_attention", {"head_size": 96}, {}, "head_size 96", "{64, 128}"),
    ],
)
def test_refusals(name, sizes, options, wrong, remedy):
    with pytest.raises(InputError) as error:
        model(name, sizes, **options)
    assert wrong in str(error.value)
    assert remedy in str(error.value)


def test_provider_without_the_kernel_or_the_mode_and_its_limits(provide):
    limit = Limit("sequence", maximum=100, source="page 7")
    launch = implementations("builtin")["rope"].launch
    provide({"rope": Implementation(launch, (limit,), ""), "norm_rope_attention": lambda execution, *a: None})
    with pytest.raises(InputError, match="'mine' has no kernel 'qkv'; it has norm_rope_attention, rope"):
        model("qkv", provider="mine")
    with pytest.raises(InputError, match="no bounded mode"):
        model("norm_rope_attention", {"bounded": 1}, provider="mine")
    with pytest.raises(InputError, match=r"sequence 130: the kernel takes sequence <= 100 \(page 7\)"):
        model("rope", provider="mine")
    with pytest.raises(InputError, match="unknown kernel 'flash'; known: attention"):
        model_call("flash", {}, torch.bfloat16)


def test_a_provider_that_launches_no_kernel_has_nothing_to_model(provide):
    provide({"rope": lambda execution, *a: None})
    with pytest.raises(InputError, match="rope of mine: the call launched no NKI kernel in the emulator"):
        model_call("rope", sample_inputs.complete("rope", {}), torch.bfloat16, provider="mine")
