"""Inline forms: projections as one layer on joined weights, which are the model's own memory."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fluxrewrite
from fluxrewrite.graph.modules import module_with
from fluxrewrite.rewrite.joined_weights import join, owned


class Block(nn.Module):
    """Three projections, or a query beside a packed key and value."""

    def __init__(self, size=16, heads=2, bias=True, mixed=False):
        super().__init__()
        self.heads, self.mixed = heads, mixed
        self.q = nn.Linear(size, size, bias=bias)
        if mixed:
            self.kv = nn.Linear(size, 2 * size, bias=bias)
        else:
            self.k, self.v = nn.Linear(size, size, bias=bias), nn.Linear(size, size, bias=bias)

    def forward(self, x):
        q = self.q(x)
        k, v = self.kv(x).chunk(2, -1) if self.mixed else (self.k(x), self.v(x))
        q, k, v = (t.view(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)


X = torch.randn(2, 8, 16)


def inlined(site):
    return "inline" if site.kind == "qkv" else False


def compiled(model, inner="eager", policy=inlined, **options):
    backend = fluxrewrite.backend(inner=inner, policy=policy, strict=True, provider="reference", **options)
    return torch.compile(model, backend=backend), backend


def storages(model):
    return {p.untyped_storage().data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_one_layer_takes_the_place_of_several(inner, bias, mixed):
    model = Block(bias=bias, mixed=mixed)
    before = {name: p.clone() for name, p in model.named_parameters()}
    run, backend = compiled(model, inner)
    with torch.no_grad():
        expected = model(X)
        torch.testing.assert_close(run(X), expected)
    (site,) = (s for s in backend.reports[0].sites if s.kind == "qkv")
    assert (site.choice, site.status, site.kernel) == ("inline", "eligible", None)
    assert backend.reports[0].summary.kinds["qkv"].inline == 1
    assert len(storages(model)) == 1 + bias, "weights share one memory, biases another"
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name], atol=0, rtol=0)


def test_the_graph_has_one_product_and_one_more_input():
    seen = []
    model = Block(bias=False)
    run, _ = compiled(model, lambda gm, inputs: seen.append((gm, inputs)) or gm.forward)
    with torch.no_grad():
        run(X)
    ((gm, inputs),) = seen
    assert sum(n.target is F.linear or n.target is torch._C._nn.linear for n in gm.graph.nodes) == 1
    assert inputs[-1].shape == (48, 16)
    assert inputs[-1].data_ptr() == model.q.weight.data_ptr()


@pytest.mark.parametrize("change", ["load", "scale", "replace", "parameter", "held"])
def test_weights_that_change_after_the_compile_count(change, caplog):
    """In place they change the joined tensor; where all are replaced, the new ones are joined, if no other tensor holds them."""
    model = Block()
    run, _ = compiled(model, "inductor")
    other = torch.randn(16, 16)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "fluxrewrite"):
        run(X)
        if change == "load":
            model.load_state_dict(Block().state_dict())
        elif change == "scale":
            model.k.weight.mul_(2)
        elif change == "replace":
            for layer in (model.q, model.k, model.v):
                layer.weight.data = torch.randn(16, 16)
        elif change == "parameter":
            for layer in (model.q, model.k, model.v):
                layer.weight = nn.Parameter(torch.randn(16, 16))
        else:
            model.k.weight.data = other
        for _ in range(2):
            torch.testing.assert_close(run(X), model(X))
    assert len(storages(model)) == (3 if change == "held" else 2)
    assert caplog.text.count("cannot be joined again") == (change == "held")
    assert change != "held" or other.data_ptr() == model.k.weight.data_ptr()


def test_weights_are_not_joined_again_without_limit(monkeypatch, caplog):
    monkeypatch.setattr("fluxrewrite.rewrite.joined_weights._JOINS", 2)
    model = Block()
    run, _ = compiled(model)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "fluxrewrite"):
        for n in range(4):
            torch.testing.assert_close(run(X), model(X))
            assert len(storages(model)) == (2 if n < 3 else 4)
            for layer in (model.q, model.k, model.v):
                layer.weight.data = torch.randn(16, 16)
    assert caplog.text.count("cannot be joined again") == 1


def test_one_graph_joins_the_weights_of_several_blocks():
    blocks = [Block() for _ in range(3)]
    backend = fluxrewrite.backend(inner="eager", policy=inlined, strict=True, provider="reference")
    for block in blocks:
        block.compile(backend=backend)
    with torch.no_grad():
        for _ in range(2):
            for block in blocks:
                torch.testing.assert_close(block(X), block.forward(X))
    assert len(backend.reports) == 1
    assert [len(storages(b)) for b in blocks] == [2, 2, 2]


def test_a_second_compile_finds_the_weights_joined():
    model, held = Block(), []
    for size in (8, 9):
        run, backend = compiled(model, "inductor")
        x = torch.randn(2, size, 16)
        with torch.no_grad():
            torch.testing.assert_close(run(x), model(x))
        held.append(storages(model))
        assert [s.choice for s in backend.reports[0].sites if s.kind == "qkv"] == ["inline"]
    assert held[0] == held[1]


def test_symbolic_sizes():
    model = Block()
    backend = fluxrewrite.backend(inner="inductor", policy=inlined, strict=True, provider="reference")
    run = torch.compile(model, backend=backend, dynamic=True)
    with torch.no_grad():
        for size in (8, 9):
            x = torch.randn(2, size, 16)
            torch.testing.assert_close(run(x), model(x))
    assert [s.choice for r in backend.reports for s in r.sites if s.kind == "qkv"] == ["inline"]


def test_training_goes_on_with_joined_weights():
    model = Block()
    run, _ = compiled(model)
    with torch.no_grad():
        run(X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(run(X), model(X))


@pytest.mark.parametrize("shared", ["alias", "tied", "slice", "transposed", "misaligned"])
def test_memory_that_others_use_is_not_moved(shared):
    """Nor weights after which the next one would begin at an odd address."""
    model = Block(size=18) if shared == "misaligned" else Block()
    keep = None
    if shared == "alias":
        keep = model.k.weight.data
    elif shared == "tied":
        keep = nn.Parameter(model.v.weight.data)
    elif shared == "misaligned":
        assert model.q.weight.numel() % 4 == 0, "the bias is what does not fit"
    elif shared == "slice":
        model.q.weight = nn.Parameter(torch.randn(32, 16)[:16])
    else:
        model.q.weight = nn.Parameter(torch.randn(16, 16).t())
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    run, backend = compiled(model)
    x = torch.randn(2, 8, model.q.in_features)
    with torch.no_grad():
        torch.testing.assert_close(run(x), model(x))
    (site,) = (s for s in backend.reports[0].sites if s.kind == "qkv")
    assert site.choice == "keep"
    assert "no inline form" in site.reasons[0].message
    assert places == {name: p.data_ptr() for name, p in model.named_parameters()}
    del keep


def test_a_bias_on_some_layers_only_is_no_inline_form():
    model = Block()
    model.v = nn.Linear(16, 16, bias=False)
    run, backend = compiled(model)
    with torch.no_grad():
        torch.testing.assert_close(run(X), model(X))
    assert [s.choice for s in backend.reports[0].sites if s.kind == "qkv"] == ["keep"]


def test_joining_that_fails_leaves_the_sites_alone(monkeypatch, caplog):
    def fails(gm, inputs):
        raise MemoryError("no room")

    monkeypatch.setattr("fluxrewrite.dynamo.compile_graph.join", fails)
    model = Block()
    backend = fluxrewrite.backend(inner="eager", policy=inlined)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "fluxrewrite"):
        torch.testing.assert_close(torch.compile(model, backend=backend)(X), model(X))
    assert "joining weights; no site is written inline (MemoryError: no room)" in caplog.text
    assert [s.choice for s in backend.reports[0].sites if s.kind == "qkv"] == ["keep"]
    with pytest.raises(Exception, match="no room"):
        compiled(Block())[0](X)


def test_only_parameters_are_joined(trace):
    def f(x, a, b, c):
        q, k, v = (F.linear(x, w).view(2, 8, 2, 8).transpose(1, 2) for w in (a, b, c))
        return F.scaled_dot_product_attention(q, k, v)

    weights = dict(zip("abc", torch.randn(3, 16, 16), strict=True))
    gm = trace(f, x=X, **weights)
    nodes = [n for n in gm.graph.find_nodes(op="placeholder") if n.meta["example_value"].dim() == 2]
    assert len(nodes) == 3
    assert not owned(gm, [torch.empty(0)] * len(gm.graph.find_nodes(op="placeholder")))(nodes)
    assert join(module_with(gm, gm.graph), [None] * len(gm.graph.find_nodes(op="placeholder"))) == []


def test_auto_weighs_the_inline_form(trace):
    """Activations far larger than the weights: reading them once instead of three times is worth more than the margin."""
    model = Block(size=64, heads=2, bias=False)
    options = fluxrewrite.Options(policy="auto", kernels="qkv", device="trn2", provider="reference")
    report = fluxrewrite.inspect(model, options=options, x=torch.randn(64, 512, 64))
    (choice,) = report.effect.choices
    assert {"none", "qkv:triple", "inline qkv:triple"} <= set(choice.times_us)
    assert choice.times_us["inline qkv:triple"] < choice.times_us["none"]
    assert choice.chosen == "inline qkv:triple"
    assert [s.choice for s in report.sites] == ["inline"]
    assert report.boundaries == ()
    assert report.effect.step_after.us < report.effect.step_before.us


def test_a_site_that_its_kernel_refuses_may_be_inline():
    model = Block(size=15, heads=3, bias=False)
    options = fluxrewrite.Options(policy=inlined, kernels="qkv", provider="nkilib")
    report = fluxrewrite.inspect(model, options=options, x=torch.randn(2, 8, 15))
    (site,) = report.sites
    assert (site.status, site.choice) == ("ineligible", "keep"), "a policy is asked about eligible sites only"
    auto = fluxrewrite.Options(policy="auto", kernels="qkv", provider="nkilib")
    report = fluxrewrite.inspect(model, options=auto, x=torch.randn(256, 512, 15))
    (site,) = report.sites
    assert (site.status, site.choice) == ("ineligible", "inline")


@pytest.mark.parametrize("compiler", ["neuronx", "inductor", "xla"])
@pytest.mark.parametrize("mixed", [True, False])
def test_the_time_of_a_block_is_that_of_the_graph_as_it_is_written(compiler, mixed):
    options = fluxrewrite.Options(policy=inlined, kernels="qkv", compiler=compiler, provider="reference")
    model = Block(size=64, mixed=mixed, bias=False)  # XLA adds a bias in a loop, which then makes the slices as well
    report = fluxrewrite.inspect(model, options=options, x=torch.randn(8, 64, 64))
    (choice,) = report.effect.choices
    form = "mixed" if mixed else "triple"
    assert choice.times_us[f"inline qkv:{form}"] == pytest.approx(report.effect.step_after.us, rel=5e-3)
    assert choice.times_us["none"] == pytest.approx(report.effect.step_before.us, rel=1e-3)
