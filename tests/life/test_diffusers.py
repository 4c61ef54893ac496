"""What diffusers offers around a compiled transformer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


@pytest.mark.slow
def test_compiling_in_place(small, plugin, same, taken):
    """`transformer.compile(backend=...)`, as a pipeline's user writes it."""
    model, inputs = small()
    twin, _ = small()
    twin.load_state_dict(model.state_dict())
    backend = plugin()
    model.compile(backend=backend)
    same(model, twin, inputs)
    assert taken(backend) == {"qkv": 3, "norm_rope_attention": 2}


@pytest.mark.slow
def test_repeated_blocks(small, plugin, same, taken):
    """One graph serves all blocks of a class, each with weights of its own."""
    model, inputs = small(num_layers=3, num_single_layers=2)
    twin, _ = small(num_layers=3, num_single_layers=2)
    twin.load_state_dict(model.state_dict())
    backend = plugin("inline")
    model.compile_repeated_blocks(backend=backend, fullgraph=True)
    same(model, twin, inputs)
    assert len(backend.reports) == 2
    assert taken(backend) == {"qkv": 3, "norm_rope_attention": 2}
    for m in (model, twin):
        with torch.no_grad():
            m.transformer_blocks[2].attn.to_v.weight.mul_(2)
    same(model, twin, inputs)


@pytest.mark.slow
def test_projections_fused_after_the_compile(small, plugin, same, taken):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    before = same(run, model, inputs)
    model.fuse_qkv_projections()
    torch.testing.assert_close(same(run, model, inputs), before, atol=1e-4, rtol=1e-4)
    assert len(backend.reports) == 2
    model.unfuse_qkv_projections()
    same(run, model, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_native_math"])
def test_attention_backends(name, small, plugin, same, taken):
    model, inputs = small()
    backend = plugin()
    run = torch.compile(model, backend=backend)
    same(run, model, inputs)
    try:
        model.set_attention_backend(name)
        same(run, model, inputs)
    finally:
        model.set_attention_backend("native")
        model.reset_attention_backend()
    assert taken(backend) == {"qkv": 3 * len(backend.reports), "norm_rope_attention": 2 * len(backend.reports)}


@pytest.mark.slow
def test_flex_attention_is_left_alone(small, plugin, same, taken):
    model, inputs = small()
    model.set_attention_backend("flex")
    try:
        backend = plugin()
        same(torch.compile(model, backend=backend), model, inputs, 1e-3)
    finally:
        model.set_attention_backend("native")  # the last one is that of models made later, too
        model.reset_attention_backend()
    assert taken(backend) == {"rope": 4}


class Linear:
    """A user's processor: attention without softmax, which no pass knows."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        q, k, v = (
            torch.cat([b(encoder_hidden_states), a(hidden_states)], 1)
            .unflatten(-1, (-1, attn.head_dim))
            .transpose(1, 2)
            for a, b in ((attn.to_q, attn.add_q_proj), (attn.to_k, attn.add_k_proj), (attn.to_v, attn.add_v_proj))
        )
        y = (F.elu(q) + 1) @ ((F.elu(k) + 1).transpose(-1, -2) @ v) * 1e-3
        text, image = y.transpose(1, 2).flatten(2).split([encoder_hidden_states.shape[1], hidden_states.shape[1]], 1)
        return attn.to_out[0](image), attn.to_add_out(text)


@pytest.mark.slow
def test_a_processor_of_the_users_own(small, plugin, same, taken):
    model, inputs = small()
    backend = plugin()
    run = torch.compile(model, backend=backend)
    before = same(run, model, inputs)
    model.transformer_blocks[0].attn.set_processor(Linear())
    after = same(run, model, inputs)
    assert not torch.allclose(before, after, atol=1e-3)
    second = backend.reports[-1]
    assert {s.path for s in second.sites if s.choice == "kernel"} == {"single_transformer_blocks.0.attn"}


@pytest.mark.slow
def test_gradient_checkpointing(small, plugin, same, taken):
    """With gradients blocks are graphs within the graph; without, checkpointing does nothing."""
    model, inputs = small()
    model.enable_gradient_checkpointing()
    model.train()
    backend = plugin()
    run = torch.compile(model, backend=backend)
    results = []
    for call in (model, run):
        model.zero_grad()
        y = call(**inputs)[0]
        y.square().mean().backward()
        results.append((y.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)
    assert taken(backend) == {}
    same(run, model, inputs)
    assert taken(backend)["norm_rope_attention"] == 2


@pytest.mark.slow
def test_training_without_checkpointing_is_left_alone(small, plugin, same, taken, reasons):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    for call in (model, run):
        model.zero_grad()
        call(**inputs)[0].square().mean().backward()
    assert taken(backend) == {}
    assert "requires_grad" in reasons(backend)


@pytest.mark.slow
def test_dropout_in_training(small, plugin, same, taken):
    """The random numbers are those that the model draws; attention with dropout is left alone."""
    model, inputs = small()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.train()
    backend = plugin()
    run = torch.compile(model, backend=backend)
    with torch.no_grad():
        torch.manual_seed(3)
        expected = model(**inputs)[0]
        torch.manual_seed(3)
        torch.testing.assert_close(run(**inputs)[0], expected, atol=1e-4, rtol=1e-4)
    assert taken(backend)["qkv"] == 3


@pytest.mark.slow
def test_layerwise_casting(small, plugin, same):
    """Weights lie in float8 between their uses."""
    model, inputs = small(torch.bfloat16)
    backend = plugin("inline")
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    run = torch.compile(model, backend=backend)
    for _ in range(2):
        same(run, model, inputs, 5e-2)
    assert model.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn


@pytest.mark.slow
def test_group_offloading(small, plugin, same):
    model, inputs = small()
    twin, _ = small()
    twin.load_state_dict(model.state_dict())
    cpu = torch.device("cpu")
    model.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    run = torch.compile(model, backend=plugin("inline"))
    for _ in range(2):
        same(run, twin, inputs)
