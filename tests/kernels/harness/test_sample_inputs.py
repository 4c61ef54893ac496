import pytest
import torch
from fluxrewrite.kernels.harness import sample_inputs
from fluxrewrite.kernels.harness.float64_reference import REFERENCES

from fluxrewrite.errors import InputError
from fluxrewrite.kernel import load_kernels
from fluxrewrite.provider.profile import parse_sizes
from fluxrewrite.provider.registry import implementations

NAMES = sorted(sample_inputs.SAMPLES)
FORMS = [
    ("rope", "sequence=5,heads=3,head_size=8"),
    ("rope", "batch=2,sequence=5,heads=3,head_size=8,sequence_dim=2,interleaved=0"),
    ("rope", "sequence=5,heads=3,head_size=8,rotary=4"),
    ("qkv", "sequence=5,hidden=16,query=8"),
    ("qkv", "batch=2,sequence=5,hidden=16,query=8,key=4,bias=1"),
    ("qkv", "sequence=5,hidden=16,query=8,key=4,bias=1,packed=1,rest=6"),
    ("qkv", "sequence=5,hidden=16,query=8,rest=6"),
    ("attention", "sequence=5,heads=4,head_size=8"),
    ("attention", "sequence=5,heads=4,head_size=8,kv_heads=2,kv_sequence=7,bshd=1"),
    ("attention", "batch=2,sequence=5,heads=4,head_size=8,mask=1"),
    ("attention", "sequence=9,kv_sequence=1,heads=1,head_size=8,mask=2"),
    ("attention", "sequence=9,kv_sequence=5,heads=1,head_size=8,causal=1"),
    ("norm_rope_attention", "sequence=6,heads=2,head_size=8"),
    ("norm_rope_attention", "batch=2,sequence=6,text=2,heads=2,head_size=8,interleaved=0"),
]


def sizes_of(name, text):
    return sample_inputs.complete(name, parse_sizes(text))


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize(("name", "text"), FORMS)
def test_ops_take_the_arguments_and_return_what_is_counted(name, text):
    sizes = sizes_of(name, text)
    meta = sample_inputs.arguments(name, sizes, torch.bfloat16)
    assert all(t.is_meta for t in tensors(meta))
    op = load_kernels()[name].op
    returned = tensors(op(*meta))
    assert sum(t.numel() for t in returned) == sample_inputs.sample(name).outputs(sizes)
    moved = sum(t.numel() * t.element_size() for t in (*tensors(meta), *returned))
    assert sample_inputs.traffic(name, sizes, torch.bfloat16) == moved
    random = sample_inputs.arguments(name, sizes, torch.bfloat16, "cpu")
    assert [(t.shape, t.dtype) for t in tensors(random)] == [(t.shape, t.dtype) for t in tensors(meta)]


@pytest.mark.parametrize(("name", "text"), FORMS)
def test_float64_references_agree_with_the_ops(name, text):
    arguments = sample_inputs.arguments(name, sizes_of(name, text), torch.float64, "cpu")
    got, wanted = (tensors(f(*arguments)) for f in (REFERENCES[name], load_kernels()[name].op))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_boolean_mask_that_takes_every_key_gives_zero():
    q = torch.randn(1, 1, 3, 4)
    mask = torch.tensor([[True], [False], [True]])
    out = REFERENCES["attention"](q, q[:, :, :1], q[:, :, :1], mask)
    assert not out[0, 0, 1].any()
    assert out[0, 0, 0].any()


@pytest.mark.parametrize("name", NAMES)
def test_facts_have_all_that_limits_speak_of(name):
    """A limit on something unknown would never refuse anything."""
    known = {*sample_inputs.facts(name, sample_inputs.complete(name, {})), "dtype"}
    limits = load_kernels()[name].limits + implementations("builtin")[name].limits
    assert {part for limit in limits for part in limit.dim.split("*")} <= known


def test_same_seed_same_numbers():
    sizes = sample_inputs.complete("attention", {"sequence": 4, "heads": 1})
    first, again, other = (sample_inputs.arguments("attention", sizes, torch.float32, "cpu", s) for s in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_logits_reach_what_is_asked():
    sizes = sample_inputs.complete("attention", {"sequence": 77, "heads": 2, "head_size": 64})
    q, k, _, _, scale, *_ = sample_inputs.arguments("attention", sizes, torch.float32, "cpu", logits=1e4)
    assert float((q @ k.transpose(-1, -2)).abs().max() * scale) == pytest.approx(1e4, rel=1e-4)
    sizes = sample_inputs.complete("norm_rope_attention", {"sequence": 77, "heads": 1, "head_size": 64})
    q, k, _, gamma_q, gamma_k, *_ = sample_inputs.arguments(
        "norm_rope_attention", sizes, torch.float32, "cpu", logits=1e4
    )
    normed = [torch.nn.functional.rms_norm(t, [64], g[0]) for t, g in ((q[0], gamma_q), (k[0], gamma_k))]
    scores = normed[0][0, :, 0] @ normed[1][0, :, 0].T / 8
    assert float(scores.max()) == pytest.approx(1e4, rel=1e-3)
    assert float(scores.min()) == pytest.approx(-1e4, rel=1e-3)


def test_flops():
    assert sample_inputs.flops("qkv", sizes_of("qkv", "sequence=3,hidden=5,query=7")) == 2 * 3 * 5 * 21
    assert sample_inputs.flops("qkv", sizes_of("qkv", "sequence=3,hidden=5,query=7,rest=4")) == 2 * 3 * 5 * 25
    one = "heads=2,sequence=4,head_size=8"
    assert sample_inputs.flops("attention", sizes_of("attention", one)) == 4 * 2 * 4 * 4 * 8
    assert sample_inputs.flops("attention", sizes_of("attention", one + ",causal=1")) == 4 * 2 * 10 * 8
    wide = one + ",causal=1,kv_sequence=2"  # rows see 1, 2, 2 and 2 keys
    assert sample_inputs.flops("attention", sizes_of("attention", wide)) == 4 * 2 * 7 * 8


@pytest.mark.parametrize(
    ("name", "text", "wrong", "remedy"),
    [
        ("rope", "head=3", "no size 'head'", "known: batch, sequence, heads"),
        ("rope", "heads=many", "'heads=many'", "whole number"),
        ("rope", "heads", "'heads'", "heads=128"),
        ("rope", "heads=1.5", "1.5", "whole number"),
        ("rope", "heads=0", "heads=0", "1 or more"),
        ("rope", "heads=-2", "heads=-2", "1 or more"),
        ("rope", "interleaved=2", "interleaved=2", "0 or 1"),
        ("rope", "rotary=100", "rotary=100", "half of it"),
        ("rope", "head_size=5", "head_size=5", "even"),
        ("attention", "mask=3", "mask=3", "0 or 1 or 2"),
        ("attention", "heads=5,kv_heads=2", "heads=5", "multiple of kv_heads=2"),
        ("norm_rope_attention", "text=768", "text=768", "no image tokens"),
        ("qkv", "rest=-1", "rest=-1", "1 or more"),
        ("qkv", "packed=2", "packed=2", "0 or 1"),
        ("norm_rope_attention", "text=-1", "text=-1", "1 or more"),
        ("softcap", None, "'softcap'", "attention, norm_rope_attention, qkv, rope"),
    ],
)
def test_bad_sizes(name, text, wrong, remedy):
    with pytest.raises(InputError) as error:
        sizes_of(name, text)
    assert wrong in str(error.value)
    assert remedy in str(error.value)


def test_complete_refuses_unknown_names():
    with pytest.raises(InputError, match="qkv has no size 'heads'"):
        sample_inputs.complete("qkv", {"heads": 3})


def test_a_kernel_without_tokens_and_heads_has_a_sample_too(monkeypatch):
    """Sizes have the names that an op gives them."""
    plain = sample_inputs.Sample({"size": 64, "interleaved": 1}, {}, lambda make, n: (make(n["size"]),), float, int)
    monkeypatch.setattr(sample_inputs, "SAMPLES", {**sample_inputs.SAMPLES, "plain": plain})
    assert sample_inputs.complete("plain", {"size": 8}) == {"size": 8, "interleaved": 1}
