"""From sites of real graphs to calls of samples: the same tensors, so that what is modelled is what would be called."""

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.kernels.harness import sample_inputs
from fluxrewrite.kernels.harness.hooks import profile, sizes_of

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.errors import InputError
from fluxrewrite.provider.profile import ProfileRequest


def asked_of(report):
    """What is asked of each call of a report."""
    sites = {s.id: s for s in report.sites}
    for call in report.calls:
        s = sites[call.site]
        operands = tuple((t.shape, t.dtype) for t in call.operands)
        dtype = getattr(torch, call.operands[0].dtype)
        yield ProfileRequest(s.kind, s.shapes, dtype, "trn2", 1, s.form, s.details, operands)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


def sampled(asked):
    return [tuple(t.shape) for t in tensors(sample_inputs.arguments(asked.kernel, sizes_of(asked), asked.dtype))]


SMALL, LARGE = "rope,attention", "qkv,norm_rope_attention"


@pytest.mark.parametrize(
    ("model", "kernels"),
    [
        ("flux2", LARGE),
        ("flux1", SMALL),
        pytest.param("flux1", LARGE, marks=pytest.mark.slow),
        pytest.param("flux2", SMALL, marks=pytest.mark.slow),
    ],
)
def test_samples_are_the_tensors_of_the_call(request, model, kernels):
    module, inputs = request.getfixturevalue(model)()
    found = list(asked_of(fluxrewrite.inspect(module, inputs, options=Options(kernels=kernels))))
    assert {a.kernel for a in found} == set(kernels.split(","))
    for asked in found:
        assert sampled(asked) == [shape for shape, _ in asked.operands], (asked.kernel, asked.form)


def attend(q, k, v, mask=None, causal=False):
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


@pytest.mark.parametrize(
    ("more", "sizes"),
    [
        ({}, {"mask": 0, "causal": 0, "kv_heads": 2, "kv_sequence": 9, "bshd": 0}),
        ({"mask": torch.ones(5, 9)}, {"mask": 1, "causal": 0}),
        ({"mask": torch.ones(5, 9, dtype=torch.bool)}, {"mask": 2}),
        ({"causal": True, "keys": 5}, {"causal": 1, "kv_sequence": 5}),
    ],
)
def test_what_sizes_do_not_say_of_attention(more, sizes):
    keys = more.pop("keys", 9)
    q, k = torch.randn(1, 4, 5, 32), torch.randn(1, 2, keys, 32)
    report = fluxrewrite.inspect(attend, q=q, k=k, v=k.clone(), **more, options=Options(kernels="attention"))
    (asked,) = asked_of(report)
    found = sizes_of(asked)
    assert {name: found[name] for name in sizes} == sizes


def test_forms_of_rope_and_qkv():
    tables = (((7, 4), "float32"),) * 2
    rope = {"batch": 1, "sequence": 7, "head_size": 8}
    operands = (((1, 7, 8), "float32"), *tables)
    half = sizes_of(
        ProfileRequest("rope", rope, torch.float32, form="rotate_half", details={"axis": 1}, operands=operands)
    )
    assert (half["heads"], half["interleaved"], half["rotary"], half["sequence_dim"]) == (1, 0, 4, 1)
    turned = ProfileRequest(
        "rope", {**rope, "heads": 2}, torch.float32, form="complex", details={"axis": 2, "turned": True},
        operands=operands,
    )  # fmt: skip
    assert (sizes_of(turned)["interleaved"], sizes_of(turned)["sequence_dim"]) == (1, 1)
    qkv = {"batch": 1, "sequence": 7, "hidden": 8, "query": 4, "key": 2, "value": 2, "columns": 8, "rest": 6}
    weights = (((1, 7, 8), "float32"), ((14, 8), "float32"), ((14,), "float32"))
    packed = sizes_of(ProfileRequest("qkv", qkv, torch.float32, form="packed", operands=weights))
    assert (packed["packed"], packed["bias"], packed["rest"], packed["key"]) == (1, 1, 6, 2)


def test_without_a_site_sizes_are_the_samples_own():
    found = profile("builtin", ProfileRequest("rope", {"sequence": 130, "heads": 2}, torch.bfloat16))
    assert (found.sizes["sequence"], found.sizes["head_size"]) == (130, 128)
    assert found.latency_us >= found.roofline_us > 0


def test_symbolic_sizes_are_refused():
    with pytest.raises(InputError, match="rope: sequence s0: the emulator needs sizes that are numbers"):
        sizes_of(ProfileRequest("rope", {"sequence": "s0"}, torch.bfloat16))
