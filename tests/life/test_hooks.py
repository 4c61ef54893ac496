"""Hooks, parametrizations and modules that Dynamo does not enter."""

import pytest
import torch
from torch import nn


def attention(model):
    return model.transformer_blocks[0].attn


def pre_hook(model):
    """Key and value read another tensor than the query."""
    return attention(model).to_q.register_forward_pre_hook(lambda m, args: (args[0] + 1.5,))


def hook(model):
    return attention(model).to_q.register_forward_hook(lambda m, args, y: y + 2)


def replacing_hook(model):
    return attention(model).to_k.register_forward_hook(lambda m, args, y: torch.zeros_like(y))


def around(model):
    return attention(model).register_forward_hook(lambda m, args, y: (y[0] * 2, y[1]))


def in_place(model):
    return attention(model).to_v.register_forward_hook(lambda m, args, y: y.mul_(2))


@pytest.mark.slow
def test_hooks_that_change_values(small, plugin, same, taken):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    last = same(run, model, inputs)
    for add in (pre_hook, hook, replacing_hook, around, in_place):
        torch._dynamo.reset()  # Dynamo guards hooks by default only where there were some
        handle = add(model)
        now = same(run, model, inputs)
        assert not torch.allclose(now, last, atol=1e-4), add.__name__
        handle.remove()
    assert taken(backend)["norm_rope_attention"] == 12


@pytest.mark.slow
def test_a_hook_that_keeps_a_value(small, plugin, same, reasons):
    """What a hook keeps must be made: the region that would not make it is left alone."""
    model, inputs = small()
    kept = []
    attention(model).norm_q.register_forward_hook(lambda m, args, y: kept.append(y))
    backend = plugin()
    run = torch.compile(model, backend=backend)
    same(run, model, inputs)
    torch.testing.assert_close(kept[1], kept[0], atol=1e-5, rtol=1e-5)
    assert "inner_value_used" in reasons(backend)


@pytest.mark.slow
def test_weight_norm(small, plugin, same):
    model, inputs = small()
    a = attention(model)
    for layer in (a.to_q, a.to_k, a.add_v_proj):
        nn.utils.parametrizations.weight_norm(layer)
    run = torch.compile(model, backend=plugin("inline"))
    last = same(run, model, inputs)
    with torch.no_grad():
        a.to_q.parametrizations.weight.original0[:8].mul_(2)
    assert not torch.allclose(same(run, model, inputs), last, atol=1e-4)


@pytest.mark.slow
def test_a_submodule_out_of_dynamos_sight(small, plugin, same, taken):
    model, inputs = small()
    attention(model).to_k.forward = torch.compiler.disable(attention(model).to_k.forward)
    backend = plugin()
    run = torch.compile(model, backend=backend)
    same(run, model, inputs)
    same(run, model, inputs)
    assert len(backend.reports) > 1


@pytest.mark.slow
def test_a_block_out_of_dynamos_sight(small, plugin, same, taken):
    model, inputs = small()
    block = model.transformer_blocks[0]
    block.forward = torch.compiler.disable(block.forward)
    backend = plugin()
    same(torch.compile(model, backend=backend), model, inputs)
    assert taken(backend) == {"qkv": 1, "norm_rope_attention": 1}
