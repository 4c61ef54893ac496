"""Weights that change after the compile, with and without joined ones."""

import copy

import pytest
import torch
from torch import nn


def attention(model):
    return model.transformer_blocks[0].attn


def load(model, other):
    model.load_state_dict(other)


def assign(model, other):
    model.load_state_dict(other, assign=True)


def set_data(model, other):
    attention(model).to_k.weight.data = torch.randn_like(attention(model).to_k.weight)


def replace(model, other):
    attention(model).to_v.weight = nn.Parameter(torch.randn_like(attention(model).to_v.weight))


def transpose(model, other):
    weight = attention(model).to_q.weight
    weight.data = weight.data.t()


def exchange(model, other):
    a = attention(model)
    a.to_q.weight.data, a.to_k.weight.data = a.to_k.weight.data, a.to_q.weight.data


def scale(model, other):
    attention(model).to_v.weight.mul_(2)  # queries and keys are normed


def there_and_back(model, other):
    model.double().float()
    attention(model).to_v.weight.mul_(2)  # queries and keys are normed


CHANGES = [load, scale, transpose, exchange, set_data, replace, there_and_back, assign]


def test_each_change_counts(small, plugin, same, taken):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    other = {k: v * 1.1 for k, v in copy.deepcopy(model).state_dict().items()}
    last = same(run, model, inputs)
    assert taken(backend)["qkv"] == 3
    for change in CHANGES:
        with torch.no_grad():
            change(model, other)
        now = same(run, model, inputs)
        assert not torch.allclose(now, last, atol=1e-4), f"{change.__name__} changes nothing"
        last = now


@pytest.mark.parametrize("change", [load, exchange, assign], ids=lambda c: c.__name__)
@pytest.mark.slow
def test_the_first_change_counts_where_weights_are_joined(change, small, plugin, same):
    model, inputs = small()
    run = torch.compile(model, backend=plugin("inline", "aot_eager"))
    other = {k: v * 1.1 for k, v in copy.deepcopy(model).state_dict().items()}
    last = same(run, model, inputs)
    with torch.no_grad():
        change(model, other)
    assert not torch.allclose(same(run, model, inputs), last, atol=1e-4)
    same(run, model, inputs)


@pytest.mark.slow
def test_another_dtype_is_another_graph(small, plugin, same, taken):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    same(run, model, inputs)
    model.to(torch.bfloat16)
    low = {
        k: v.bfloat16() if k in ("hidden_states", "encoder_hidden_states", "timestep") else v for k, v in inputs.items()
    }
    same(run, model, low, 5e-2)
    model.float()
    same(run, model, inputs)
    assert len(backend.reports) == 2


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_weights_that_the_model_itself_writes_are_not_joined(inner, plugin, same, taken):
    """The joined tensor is another input of the graph: compilers do not know that the parameter lies in it."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x):
            self.q.weight.mul_(1.5)
            q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return (nn.functional.scaled_dot_product_attention(q, k, v),)

    model = Block()
    twin = copy.deepcopy(model)
    backend = plugin("inline", inner)
    run = torch.compile(model, backend=backend)
    for _ in range(3):
        same(run, twin, {"x": torch.randn(2, 5, 16)})
    assert taken(backend)["attention"] == 1


def test_weights_joined_under_inference_mode_can_be_trained(small, plugin, same, taken):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    with torch.inference_mode():
        expected = model(**inputs)[0]
        torch.testing.assert_close(run(**inputs)[0], expected, atol=1e-4, rtol=1e-4)
    assert taken(backend)["qkv"] == 3
    assert not any(p.is_inference() or p.data.is_inference() for p in model.parameters())
    model(**inputs)[0].sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    same(run, model, inputs)


@pytest.mark.slow
def test_joined_weights_are_saved_whole(small, plugin, same, tmp_path):
    model, inputs = small()
    same(torch.compile(model, backend=plugin("inline")), model, inputs)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    same(again, model, inputs)


@pytest.mark.slow
def test_tied_weights(small, plugin, same, taken):
    """One parameter cannot lie in two joined tensors."""
    model, inputs = small(num_layers=2)
    first, second = (b.attn for b in model.transformer_blocks)
    second.to_q.weight = first.to_q.weight
    first.add_q_proj.weight = first.add_k_proj.weight
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    same(run, model, inputs)
    with torch.no_grad():
        first.to_q.weight[:4].mul_(2)
    same(run, model, inputs)
    assert second.to_q.weight is first.to_q.weight
