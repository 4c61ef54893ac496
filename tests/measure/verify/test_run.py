import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fluxrewrite import backend
from fluxrewrite.errors import CheckFailed, InputError
from fluxrewrite.measure.verify import Progress, VerifyOptions, judge, verify
from fluxrewrite.measure.verify.records import Verification
from fluxrewrite.models.workload import Workload

from .conftest import SHAPES

SITES = {
    "qkv": 3,
    "rope": 4,
    "attention": 2,
    "norm_rope_attention": 2,
    "qkv,attention": 5,
    None: 5,
}


@pytest.mark.slow
@pytest.mark.parametrize("kernels", SITES, ids=str)
def test_every_set_of_kernels_passes_on_flux2(small, kernels):
    found = verify(small(), VerifyOptions(kernels=kernels, steps=2), SHAPES)
    assert found.passed
    judge(found)
    assert len(found.sites) == SITES[kernels]
    assert [s.step for s in found.loop.steps] == [1, 2]
    assert all(s.choice == "kernel" and s.note == "" for s in found.sites)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(small, dtype):
    found = verify(small(dtype), VerifyOptions(steps=2), SHAPES)
    judge(found)
    assert {s.dtype for s in found.sites} == {str(dtype).removeprefix("torch.")} == {found.setting.dtype}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qkv", "rope", "attention", "norm_rope_attention"])
def test_an_error_of_one_percent_in_one_kernel_fails_and_names_the_site(small, plant, kind):
    """In calls over 24 + 12 tokens, or over the 12 text tokens; in bfloat16, whose own rounding is nearest to that."""
    rows = 12 if kind == "qkv" else 36

    def where(x, *more):
        x = x[0] if isinstance(x, (list, tuple)) else x
        return rows in x.shape or kind == "norm_rope_attention"

    plant(kind, lambda t: t * 1.01, where)
    found = verify(
        small(torch.bfloat16), VerifyOptions(kernels=kind, provider="mine", execution="emulate", steps=1), SHAPES
    )
    wrong = [s for s in found.sites if not s.passed]
    assert {s.kind for s in wrong} == {kind}
    assert {s.shapes["sequence"] for s in wrong} <= {rows, 36}
    assert len(wrong) == {"qkv": 1, "rope": 4, "attention": 2, "norm_rope_attention": 2}[kind]
    with pytest.raises(CheckFailed) as failed:
        judge(found)
    line = failed.value.args[0]
    worst = max(wrong, key=lambda s: s.excess)
    assert f"{len(wrong)} of {len(found.sites)} sites fail; worst: {kind}:{worst.form} at {worst.path}" in line
    assert "of the norm (limit" in line


@pytest.mark.slow
def test_inline_sites_are_verified(small):
    policy = lambda site: "inline" if site.kind == "qkv" else True  # noqa: E731
    found = verify(small(), VerifyOptions(kernels="qkv,attention", policy=policy, steps=2), SHAPES)
    judge(found)
    assert [s.choice for s in found.sites if s.kind == "qkv"] == ["inline", "inline"], (
        "a packed layer is one product as it is"
    )
    assert found.setting.policy == "<lambda>"


class Wide(nn.Module):
    """Activations as large as the weights: one product on joined weights is predicted to be faster."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(64, 64, bias=False) for _ in range(3))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 32)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v)


def wide(model=None, name="wide"):
    return Workload(name, (model or Wide()).requires_grad_(False), {"x": torch.randn(64, 512, 64)}, denoises=False)


def test_policy_auto():
    found = verify(wide(), VerifyOptions(kernels="qkv", policy="auto", provider="reference", steps=1))
    judge(found)
    assert [(s.kind, s.choice) for s in found.sites] == [("qkv", "inline")]
    assert (found.setting.policy, found.setting.image_tokens) == ("auto", None)


def test_graph_breaks_and_graphs_that_run_twice():
    class Halves(Wide):
        def forward(self, x):
            y = super().forward(x[:2, :8])
            torch._dynamo.graph_break()
            return y + super().forward(x[:2, :8] * 2)

    found = verify(wide(Halves()), VerifyOptions(provider="reference", steps=2))
    judge(found)
    assert [(s.graph, s.kind) for s in found.sites] == [(0, "qkv"), (0, "attention"), (1, "qkv"), (1, "attention")]


@pytest.mark.slow
def test_many_models_of_one_class_in_one_process():
    """Dynamo's recompile limit (8) does not end the rewriting."""
    for _ in range(5):  # two compiles each
        assert len(verify(wide(), VerifyOptions(kernels="attention", provider="reference", steps=1)).sites) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            VerifyOptions(policy="none"),
            "kernels attention,norm_rope_attention,qkv,rope, policy 'none', provider 'builtin';",
        ),
        (VerifyOptions(kernels="rope"), "kernels rope, policy 'all'"),
        (
            VerifyOptions(kernels="qkv:packed", provider="reference"),
            "kernels qkv:packed, policy 'all', provider 'reference';",
        ),
    ],
)
def test_nothing_rewritten_is_bad_input(options, words):
    with pytest.raises(InputError, match="fluxrewrite inspect wide says why") as error:
        verify(wide(), options)
    assert f"wide: nothing was rewritten with {words}" in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"tolerance": -1.0}, "--tolerance -1"),
        ({"tolerance": float("nan")}, "--tolerance nan"),
        ({"policy": "measure"}, "'measure'"),
    ],
)
def test_options_that_cannot_be(given, words):
    with pytest.raises(InputError, match=words):
        VerifyOptions(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"inner": "nobody"}, "unknown inner backend"),
        ({"kernels": "flash"}, "unknown kernel"),
        ({"provider": "x"}, "'x'"),
    ],
)
def test_unknown_names(given, words):
    with pytest.raises(InputError, match=words):
        verify(wide(), VerifyOptions(**given))


def test_a_model_that_fails_is_bad_input():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(InputError, match="wide: the first step fails: RuntimeError: shapes do not fit"):
        verify(wide(Broken()))


def test_errors_of_fluxrewrite_come_through_dynamo(monkeypatch):
    def refuse(*args, **kwargs):
        raise InputError("a file of evidence is wrong")

    monkeypatch.setattr("fluxrewrite.measure.verify.run.analyse", refuse)
    with pytest.raises(InputError, match=r"^a file of evidence is wrong$"):
        verify(wide())


def test_a_loop_that_rewrites_other_sites_than_were_checked_fails():
    """A policy that changes its mind."""
    sites = []

    def fickle(site):
        sites.append(site)
        return len(sites) != 3 or site.kind != "attention"

    found = verify(wide(), VerifyOptions(policy=fickle, provider="reference", steps=1))
    assert len(found.sites) == 2
    assert all(s.passed for s in found.sites)
    assert "it rewrote 1 sites but 2 were checked; they differ in attention:sdpa" in found.loop.note
    with pytest.raises(CheckFailed, match="the loop: it rewrote 1 sites"):
        judge(found)


def test_a_kernel_that_fails_in_the_loop_alone(plant):
    """The sites passed, so the line is on the loop."""
    calls = []

    def harm(t):
        calls.append(t)
        return t if len(calls) <= 2 else t * float("nan")

    plant("attention", harm)
    found = verify(wide(), VerifyOptions(kernels="attention", provider="mine", execution="emulate", steps=3))
    assert [s.passed for s in found.loop.steps] == [True, False, False]
    with pytest.raises(CheckFailed) as failed:
        judge(found)
    assert failed.value.args == ("2 of 3 steps of the loop fail; worst: step 2: the replacement computes NaN or inf",)


def test_a_kernel_that_failed_elsewhere_in_the_process_is_verified_all_the_same(plant):
    def refuse(t):
        raise RuntimeError("no such instruction")

    options = VerifyOptions(kernels="attention", provider="mine", execution="emulate", steps=1)
    plant("attention", refuse)
    w = wide()
    lenient = torch.compile(w.model, backend=backend("eager", "attention", provider="mine", execution="emulate"))
    with torch.no_grad():
        lenient(**w.inputs)  # falls back, and remembers it
    found = verify(wide(), options)
    assert [s.note for s in found.sites] == ["RuntimeError: no such instruction"]
    assert found.loop.note == "step 1 of the rewritten model fails: RuntimeError: no such instruction"
    plant("attention", lambda t: t)
    assert verify(wide(), options).passed


def test_progress_is_reported():
    counts, sites, steps = [], [], []
    found = verify(
        wide(),
        VerifyOptions(provider="reference", steps=2),
        progress=Progress(counts.append, sites.append, steps.append),
    )
    assert counts == [2]
    assert tuple(sites) == found.sites
    assert tuple(steps) == found.loop.steps


def test_the_record_as_json(small):
    found = verify(small(), VerifyOptions(kernels="attention", steps=1), SHAPES, seed=0)
    text = found.to_json()
    data = json.loads(text)
    assert data["schema"] == "fluxrewrite.verify/1"
    assert data["passed"] is True
    assert {"model", "kernels", "policy", "provider", "execution", "inner", "versions"} <= set(data["setting"])
    assert (data["setting"]["image_tokens"], data["setting"]["text_tokens"]) == (24, 12)
    assert {"kind", "path", "node", "max_abs", "relative", "norm", "cosine", "passed"} <= set(data["sites"][0])
    for record in (data, *data["sites"], *data["loop"]["steps"], data["loop"]):
        record.pop("passed")
    assert Verification.model_validate(data) == found
