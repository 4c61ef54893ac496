"""Kernels that fail: at trace, at compile, at the first run; the model's results stay right."""

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.kernels.attention import KERNEL as ATTENTION
from fluxrewrite.kernels.norm_rope_attention import KERNEL as NORM_ROPE_ATTENTION
from fluxrewrite.kernels.qkv import KERNEL as QKV
from fluxrewrite.kernels.rope import KERNEL as ROPE
from torch import nn

import fluxrewrite
from fluxrewrite.dynamo.failures import Failures
from fluxrewrite.provider import registry
from fluxrewrite.site import Code

KERNELS = {k.name: k for k in (ATTENTION, NORM_ROPE_ATTENTION, QKV, ROPE)}


def rotated(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Block(nn.Module):
    """Holds one site of each kind; norm_rope_attention takes the place of the last two where it may."""

    def __init__(self, size=128, heads=2, bias=False):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(size, size, bias=bias) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(size // heads, eps=1e-6) for _ in range(2))
        self.heads = heads

    def forward(self, x, cos, sin):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v))
        cos, sin = cos[None, :, None, :], sin[None, :, None, :]
        q, k = rotated(self.norm_q(q), cos, sin), rotated(self.norm_k(k), cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Stack(nn.Module):
    def __init__(self, blocks=2):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x, cos, sin):
        for layer in self.layers:
            x = layer(x, cos, sin)
        return x


INPUTS = {"x": torch.randn(1, 8, 128), "cos": torch.randn(8, 64), "sin": torch.randn(8, 64)}


@pytest.fixture
def failures(monkeypatch):
    """The memory of one test: the process's own stays clean."""
    found = Failures()
    monkeypatch.setattr("fluxrewrite.dynamo.backend.FAILURES", found)
    return found


class Inner:
    """Compiles nothing; fails to compile graphs with one of these ops in them."""

    def __init__(self, *ops):
        self.ops, self.graphs = ops, []

    def __call__(self, gm, inputs):
        self.graphs.append(gm)
        if any(n.target in self.ops for n in gm.graph.nodes):
            raise RuntimeError("no such instruction")
        return gm.forward


def run(failures, inner="eager", model=None, strict=False, inputs=INPUTS, **options):
    """Compile and run twice, compare with eager; the backend."""
    options = {"provider": "reference", **options}
    backend = fluxrewrite.backend(inner=inner, strict=strict, **options)
    model = model or Stack()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        expected = model(**inputs)
        for _ in range(2):
            torch.testing.assert_close(compiled(**inputs), expected, atol=1e-4, rtol=1e-4)
    return backend


def choices(backend, kind):
    assert len(backend.reports) == 1, "a graph has one report, the one that holds"
    return [s for s in backend.reports[0].sites if s.kind == kind]


@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_that_fails_at_compile(failures, kind, caplog):
    backend = run(failures, Inner(KERNELS[kind].op), kernels=kind)
    found = choices(backend, kind)
    assert found
    assert {s.choice for s in found} == {"keep"}
    assert {s.reasons[0].code for s in found} == {Code.FAILED}
    assert f"kernel {kind} failed at compile: RuntimeError: no such instruction" in found[0].reasons[0].message
    (said,) = [r.message for r in caplog.records if "no such instruction" in r.message]
    assert "layers.0" in said
    assert f"kernels= without '{kind}' switches it off" in said


def planted(monkeypatch, kind, shapes=None):
    """Make the launch of a kernel fail, for calls whose first tensor has one of some shapes; the others give the reference."""
    real = registry.implementations

    def implementations(text):
        found = dict(real(text))

        def launch(execution, *arguments):
            if shapes is None or tuple(arguments[0].shape) in shapes:
                raise ValueError("nonsense")
            return KERNELS[kind].op(*arguments)

        found[kind] = registry.replace(found[kind], launch=launch, limits=())
        return found

    monkeypatch.setattr(registry, "implementations", implementations)


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["rope", "qkv", "attention"])
def test_a_kernel_that_fails_at_its_first_run(failures, monkeypatch, kind, inner, caplog):
    """One that says so by its mark: the others stay."""
    planted(monkeypatch, kind)
    others = {"rope": "qkv", "qkv": "rope", "attention": "rope"}[kind]
    backend = run(failures, inner, kernels=f"{kind}", provider="builtin", execution="emulate")
    found = choices(backend, kind)
    assert {s.reasons[0].code for s in found} == {Code.FAILED}
    assert "failed at first run: ValueError: nonsense" in found[0].reasons[0].message
    assert others not in backend.reports[0].summary.kernels
    assert sum("nonsense" in r.message for r in caplog.records) == 1


def test_norm_rope_attention_fails_at_its_first_run(failures, monkeypatch):
    planted(monkeypatch, "norm_rope_attention")
    backend = run(failures, kernels="norm_rope_attention", provider="builtin", execution="emulate")
    assert {s.reasons[0].code for s in choices(backend, "norm_rope_attention")} == {Code.FAILED}


def test_other_kernels_stay(failures, monkeypatch):
    planted(monkeypatch, "rope")
    backend = run(failures, kernels="rope,attention", provider="builtin", execution="emulate")
    assert {s.choice for s in choices(backend, "rope")} == {"keep"}
    assert {s.choice for s in choices(backend, "attention")} == {"kernel"}


def test_other_sizes_of_the_kernel_stay(failures, monkeypatch):
    def two(x, y):
        return tuple(F.scaled_dot_product_attention(t, t, t) for t in (x, y))

    inputs = {"x": torch.randn(1, 2, 8, 64), "y": torch.randn(1, 2, 16, 64)}
    planted(monkeypatch, "attention", shapes=[(1, 2, 8, 64)])
    backend = run(
        failures, model=lambda **i: torch.stack([t.sum() for t in two(**i)]), inputs=inputs, kernels="attention",
        provider="builtin", execution="emulate",
    )  # fmt: skip
    assert {s.shapes["sequence"]: s.choice for s in choices(backend, "attention")} == {8: "keep", 16: "kernel"}


@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_that_fails_at_trace(failures, monkeypatch, kind):
    """Its replacement is never put in."""
    passes = fluxrewrite.dynamo.backend.Selection.of(kind, "reference").passes

    def fails(self, site, builder, op):
        raise RuntimeError("the front end says no")

    monkeypatch.setattr(type(passes[kind]), "emit", fails)
    backend = run(failures, kernels=kind)
    assert {s.reasons[0].code for s in choices(backend, kind)} == {Code.REPLACEMENT}
    assert "the front end says no" in choices(backend, kind)[0].reasons[0].message
    torch._dynamo.reset()
    with pytest.raises(Exception, match="the front end says no"):
        run(failures, kernels=kind, strict=True)


def test_what_failed_once_is_not_tried_again(failures):
    first, second = Inner(ROPE.op), Inner(ROPE.op)
    run(failures, first, kernels="rope")
    torch._dynamo.reset()
    run(failures, second, kernels="rope")
    assert len(first.graphs) == 2
    assert len(second.graphs) == 1


def test_backends_of_a_process_share_what_they_know():
    assert fluxrewrite.backend(inner="eager").failures is fluxrewrite.backend(inner="inductor").failures


def test_strict_raises(failures, monkeypatch):
    with pytest.raises(Exception, match="no such instruction"):
        run(failures, Inner(ROPE.op), kernels="rope", strict=True)
    torch._dynamo.reset()
    planted(monkeypatch, "rope")
    with pytest.raises(ValueError, match="nonsense"):
        run(failures, kernels="rope", provider="builtin", execution="emulate", strict=True)


def test_a_graph_that_does_not_compile_anyhow_blames_no_kernel(failures):
    """The error is the model's: it goes on up, and the kernels are tried again next time."""
    graphs = []

    def always(gm, inputs):
        graphs.append(gm)
        raise RuntimeError("full")

    with pytest.raises(Exception, match="full"):
        run(failures, always, kernels="rope")
    assert len(graphs) == 2
    assert failures._known == {}


def test_a_model_that_fails_anyhow_blames_no_kernel(failures):
    def failing(gm, inputs):
        def run(*given):
            raise IndexError("out of range")

        return run

    with pytest.raises(IndexError, match="out of range"):
        run(failures, failing, kernels="rope")
    assert failures._known == {}


def test_a_graph_that_writes_to_its_inputs_is_not_run_twice(failures, monkeypatch):
    def model(x, cos, sin):
        x.add_(1)
        return rotated(x, cos, sin)

    planted(monkeypatch, "rope")
    inputs = {"x": torch.randn(1, 2, 8, 64), "cos": INPUTS["cos"], "sin": INPUTS["sin"]}
    backend = fluxrewrite.backend(inner="eager", kernels="rope", provider="builtin", execution="emulate")
    with torch.no_grad(), pytest.raises(ValueError, match="nonsense"):
        torch.compile(model, backend=backend)(**inputs)
    assert len(backend.reports) == 1


def test_later_failures_are_the_users(failures, monkeypatch):
    """After a first run that went well an error is no longer the kernel's word against the graph's."""
    backend = fluxrewrite.backend(inner="eager", kernels="rope", provider="builtin", execution="emulate")
    compiled = torch.compile(lambda **i: rotated(**i), backend=backend)
    inputs = {"x": torch.randn(1, 2, 8, 64), "cos": INPUTS["cos"], "sin": INPUTS["sin"]}
    with torch.no_grad():
        compiled(**inputs)
        planted(monkeypatch, "rope")
        with pytest.raises(ValueError, match="nonsense"):
            compiled(**inputs)


def test_only_inline_sites_left_and_the_compile_fails(failures):
    """What is written inline is left out as well before the graph is given up."""

    def picky(gm, inputs):
        if any(n.meta.get("joined") for n in gm.graph.nodes):
            raise RuntimeError("too many inputs")
        return gm.forward

    backend = run(failures, picky, policy=lambda site: "inline" if site.kind == "qkv" else False)
    assert {s.choice for s in choices(backend, "qkv")} == {"keep"}
