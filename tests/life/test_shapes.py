"""Sizes that change: recompiles, symbols, and sizes marked by hand."""

import pytest
import torch


def longer(inputs, tokens):
    batch = inputs["hidden_states"].shape[0]
    return {
        **inputs,
        "hidden_states": torch.randn(batch, tokens, 16),
        "img_ids": torch.randint(0, 9, (batch, tokens, 4)).float(),
    }


@pytest.mark.slow
def test_recompiles(small, plugin, same, taken):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    for tokens in (24, 20, 28, 24):
        same(run, model, longer(inputs, tokens))
    assert len(backend.reports) == 2, "one graph of fixed sizes, one of symbols"
    assert taken(backend) == {"qkv": 6, "norm_rope_attention": 4}


@pytest.mark.slow
def test_marked_sizes(small, plugin, taken):
    model, inputs = small()
    backend = plugin("inline", "aot_eager")
    run = torch.compile(model, backend=backend)
    with torch.no_grad():
        for tokens in (24, 20):
            given = longer(inputs, tokens)
            for name in ("hidden_states", "img_ids"):
                torch._dynamo.mark_dynamic(given[name], 1)
            torch.testing.assert_close(run(**given)[0], model(**given)[0], atol=1e-4, rtol=1e-4)
    assert len(backend.reports) == 1
    assert taken(backend) == {"qkv": 3, "norm_rope_attention": 2}
