"""Hooks of accelerate, which bring a module's weights when it runs and take them away after."""

import pytest

accelerate = pytest.importorskip("accelerate", reason="needs accelerate, of the extra test")


@pytest.mark.slow
def test_weights_that_come_and_go(small, plugin, same):
    model, inputs = small()
    twin, _ = small()
    twin.load_state_dict(model.state_dict())
    accelerate.cpu_offload(model, execution_device="cpu")
    model.compile(backend=plugin("inline", strict=False))
    for _ in range(2):
        same(model, twin, inputs)
    assert model.transformer_blocks[0].attn.to_q.weight.device.type == "meta"


@pytest.mark.slow
def test_hooks_that_move_nothing(small, plugin, same):
    model, inputs = small()
    twin, _ = small()
    twin.load_state_dict(model.state_dict())
    _, hook = accelerate.cpu_offload_with_hook(model, execution_device="cpu")
    model.compile(backend=plugin("inline"))
    same(model, twin, inputs)
    hook.offload()
    same(model, twin, inputs)
