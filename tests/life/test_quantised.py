"""Linear layers whose weights are tensors of a class of their own."""

import pytest
import torch
from quantised import quantise

NAMES = ("to_q", "to_k", "to_v", "add_q_proj", "to_qkv_mlp_proj")


@pytest.mark.parametrize("inner", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_projections_with_such_weights_are_left_alone(inner, small, plugin, same, taken, reasons):
    model, inputs = small()
    before = same(model, model, inputs)
    assert quantise(model, NAMES) == 5
    backend = plugin("inline", inner)
    after = same(torch.compile(model, backend=backend), model, inputs)
    assert not torch.equal(before, after)
    assert taken(backend) == {"norm_rope_attention": 2}
    assert "tensor_subclass" in reasons(backend)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao(config, small, plugin, same, taken, reasons):
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao, of the extra quantised")
    model, inputs = small()
    quantization.quantize_(model.transformer_blocks, getattr(quantization, config)())
    backend = plugin("inline", "aot_eager")
    same(torch.compile(model, backend=backend), model, inputs)
    assert taken(backend) == {"qkv": 1, "norm_rope_attention": 2}, "the single block's weights are plain"
    assert "tensor_subclass" in reasons(backend)
