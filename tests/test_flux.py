"""FLUX.2 and FLUX.1 of real structure and small size: found, rewritten, and the same numbers."""

import contextlib
import itertools

import pytest
import torch

import fluxrewrite

INNERS = ["eager", "aot_eager", "inductor"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SMALL = "qkv,rope,attention"
KERNELS = [None, "qkv", "rope", "attention", "norm_rope_attention", SMALL]
SLOW = pytest.mark.slow
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def compare(model, inputs, kernels, inner, mode=torch.no_grad):
    """(largest difference, cosine, report) of the rewritten model against the original; bf16 against the same inner backend."""
    backend = fluxrewrite.backend(inner=inner, kernels=kernels, strict=True)
    with mode():
        if inputs["hidden_states"].dtype == torch.float32:
            expected = model(**inputs)[0]
        else:
            expected = torch.compile(model, backend=inner)(**inputs)[0].clone()
            torch._dynamo.reset()
        found = torch.compile(model, backend=backend)(**inputs)[0]
    a, b = expected.float().flatten(), found.float().flatten()
    assert len(backend.reports) == 1
    return (a - b).abs().max().item(), torch.cosine_similarity(a, b, dim=0).item(), backend.reports[0]


def assert_close(model, inputs, kernels, inner, mode=torch.no_grad):
    error, cosine, report = compare(model, inputs, kernels, inner, mode)
    if inputs["hidden_states"].dtype == torch.float32:
        assert error <= 1e-5
    assert cosine >= 0.9999
    assert_all_taken(report)
    return report


def assert_all_taken(report):
    """Every site is taken by a kernel, or part of a larger one that is."""
    for kind, summary in report.summary.kinds.items():
        assert summary.found > 0, kind
        assert summary.missed == 0, kind
    for site in report.sites:
        assert site.choice == "kernel" or [r.code for r in site.reasons] == ["covered"]


def matrix():
    """Every combination; those that take seconds and differ little from others are slow."""
    for inner, kernels, dtype, mode in itertools.product(INNERS, KERNELS, DTYPES, MODES):
        quick = inner == "eager" and mode == "no_grad" and kernels in (None, SMALL)
        quick = quick or (inner, kernels, dtype, mode) == ("aot_eager", None, "fp32", "inference_mode")
        marks = () if quick else (pytest.mark.slow,)
        yield pytest.param(inner, kernels, dtype, mode, marks=marks, id=f"{inner}-{kernels or 'all'}-{dtype}-{mode}")


@pytest.mark.parametrize(("inner", "kernels", "dtype", "mode"), matrix())
def test_flux2_equals_the_original(flux2, inner, kernels, dtype, mode):
    model, inputs = flux2(DTYPES[dtype])
    assert_close(model, inputs, kernels, inner, MODES[mode])


@pytest.mark.slow
def test_flux2_on_inductor_with_everything(flux2):
    model, inputs = flux2()
    report = assert_close(model, inputs, None, "inductor")
    found = {k: (s.found, s.rewritten) for k, s in report.summary.kinds.items()}
    assert found == {"attention": (4, 0), "norm_rope_attention": (4, 4), "qkv": (6, 6), "rope": (8, 0)}


def test_flux2_has_every_site_of_its_structure(flux2):
    model, inputs = flux2()
    report = fluxrewrite.inspect(model, **inputs)
    sites = {(s.kind, s.form, s.path) for s in report.sites}
    for n in range(2):
        assert ("qkv", "triple", f"transformer_blocks.{n}.attn") in sites
        assert ("qkv", "packed", f"single_transformer_blocks.{n}.attn") in sites
        assert ("norm_rope_attention", "joint", f"transformer_blocks.{n}.attn") in sites
        assert ("norm_rope_attention", "single", f"single_transformer_blocks.{n}.attn") in sites
    assert len({s.id for s in report.sites}) == len(report.sites) == 22


@pytest.mark.parametrize(
    ("inner", "kernels"),
    [("eager", None), pytest.param("eager", SMALL, marks=SLOW), pytest.param("aot_eager", None, marks=SLOW)],
)
def test_fused_projections(flux2, inner, kernels):
    model, inputs = flux2()
    _fuse(model)
    report = assert_close(model, inputs, kernels, inner)
    if kernels in (None, SMALL):
        assert report.summary.kinds["qkv"].forms == {"packed": 6}


def _fuse(model):
    for module in model.modules():
        with contextlib.suppress(AttributeError):
            module.fuse_projections()


@pytest.mark.slow
def test_fused_projections_on_inductor(flux2):
    model, inputs = flux2()
    _fuse(model)
    assert_close(model, inputs, None, "inductor")


@pytest.mark.parametrize(
    ("inner", "kernels", "dtype"),
    [
        ("eager", None, torch.float32),
        ("eager", SMALL, torch.float32),
        pytest.param("eager", None, torch.bfloat16, marks=SLOW),
        pytest.param("eager", SMALL, torch.bfloat16, marks=SLOW),
        pytest.param("aot_eager", None, torch.float32, marks=SLOW),
        pytest.param("aot_eager", None, torch.bfloat16, marks=SLOW),
    ],
)
def test_flux1_with_biases(flux1, inner, kernels, dtype):
    model, inputs = flux1(dtype)
    report = assert_close(model, inputs, kernels, inner)
    if kernels in (None, SMALL):
        assert report.summary.kinds["qkv"].forms == {"triple": 6}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flux1_on_inductor(flux1, dtype):
    model, inputs = flux1(dtype)
    assert_close(model, inputs, None, "inductor")


@pytest.mark.parametrize("build", ["flux1", "flux2"])
def test_fused_flux1_too(request, build):
    model, inputs = request.getfixturevalue(build)()
    _fuse(model)
    assert_close(model, inputs, "qkv", "eager")


def test_batch_of_two(flux2):
    model, inputs = flux2(batch=2)
    assert_close(model, inputs, None, "eager")


def test_dynamic_sizes_are_rewritten_and_recompiled_right(flux2):
    model, inputs = flux2()
    backend = fluxrewrite.backend(inner="eager", strict=True, provider="reference")
    compiled = torch.compile(model, backend=backend, dynamic=True)
    for tokens in (24, 40, 12):
        inputs["hidden_states"] = torch.randn(1, tokens, 16)
        inputs["img_ids"] = torch.randint(0, 9, (1, tokens, 4)).float()
        with torch.no_grad():
            expected, found = model(**inputs)[0], compiled(**inputs)[0]
        assert (expected - found).abs().max().item() <= 1e-5
    for report in backend.reports:
        assert_all_taken(report)
    assert any("s" in str(s.shapes.get("sequence")) for s in backend.reports[-1].sites)


def test_training_step_is_left_alone_with_a_reason_and_differentiates(flux2):
    model, inputs = flux2()
    model.train()
    backend = fluxrewrite.backend(inner="aot_eager", strict=True)
    torch.compile(model, backend=backend)(**inputs)[0].square().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(**inputs)[0].square().sum().backward()
    assert found.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-4)
    sites = backend.reports[0].sites
    assert sites
    assert all(s.choice == "keep" for s in sites)
    assert {r.code for s in sites for r in s.reasons} == {"requires_grad"}


@pytest.mark.slow
@pytest.mark.parametrize("image_tokens", [256, 1024])
def test_klein_4b_is_found_whole(image_tokens):
    import json
    import subprocess
    import sys

    command = [
        sys.executable,
        "-c",
        "import sys; from fluxrewrite.cli import main; sys.exit(main())",
        "inspect",
        "flux2-klein-4b",
    ]
    command += ["--format", "json", "--image-tokens", str(image_tokens)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert report["model"]["parameters"] == 3875544576
    assert report["model"]["graphs"] == 1
    assert report["inventory"]["attention"] == 25
    assert report["timing"]["peak_rss_mb"] < 1500
    assert all(s["status"] == "eligible" for s in report["sites"])
    found = {(s["kind"], s["form"]) for s in report["sites"]}
    assert found == {
        ("qkv", "triple"), ("qkv", "packed"), ("rope", "interleaved"), ("attention", "sdpa"),
        ("norm_rope_attention", "joint"), ("norm_rope_attention", "single"),
    }  # fmt: skip
    paths = [(s["kind"], s["form"], s["path"]) for s in report["sites"]]
    double = [f"transformer_blocks.{n}.attn" for n in range(5)]
    single = [f"single_transformer_blocks.{n}.attn" for n in range(20)]
    assert sorted(p for k, f, p in paths if (k, f) == ("qkv", "triple")) == sorted(double * 2)
    assert sorted(p for k, f, p in paths if (k, f) == ("qkv", "packed")) == sorted(single)
    assert sorted(p for k, _, p in paths if k == "rope") == sorted((double + single) * 2)
    assert sorted(p for k, _, p in paths if k == "attention") == sorted(double + single)
    assert sorted(p for k, f, p in paths if (k, f) == ("norm_rope_attention", "joint")) == sorted(double)
    assert sorted(p for k, f, p in paths if (k, f) == ("norm_rope_attention", "single")) == sorted(single)
    tokens = image_tokens + 512
    assert {s["shapes"]["sequence"] for s in report["sites"] if s["kind"] == "rope"} == {tokens}
