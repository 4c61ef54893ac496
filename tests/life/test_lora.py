"""Adapters of PEFT, through diffusers: added, switched, fused and taken away after the compile."""

import pytest
import torch

peft = pytest.importorskip("peft", reason="needs peft, of the extra test")
TARGETS = ["to_q", "to_k", "to_v", "add_q_proj", "to_qkv_mlp_proj"]


def adapter(rank=2):
    return peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=False)


@pytest.mark.slow
def test_a_life_with_adapters(small, plugin, same, taken):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    seen = [same(run, model, inputs)]

    def step(name, change, differs=True):
        change()
        now = same(run, model, inputs)
        assert torch.allclose(now, seen[-1], atol=1e-4) != differs, name
        seen.append(now)

    step("add", lambda: model.add_adapter(adapter(), "one"))
    step("second", lambda: model.add_adapter(adapter(3), "two"))
    step("switch", lambda: model.set_adapters("one", 0.5))
    step("fuse", lambda: model.fuse_lora(adapter_names=["one"]), differs=False)
    step("unfuse", model.unfuse_lora, differs=False)
    step("both", lambda: model.set_adapters(["one", "two"], [1.0, 2.0]))
    step("delete", lambda: model.delete_adapters(["one", "two"]))
    torch.testing.assert_close(seen[-1], seen[0], atol=1e-4, rtol=1e-4)
    assert taken(backend)["norm_rope_attention"] == 2 * len(backend.reports)


@pytest.mark.slow
def test_fused_and_unfused_in_the_same_graph(small, plugin, same, taken):
    """Fusing writes the base weights, in place or into new memory, behind a graph that is not traced again."""
    model, inputs = small()
    model.add_adapter(adapter())
    model.fuse_lora()
    backend = plugin("inline", "aot_eager")
    run = torch.compile(model, backend=backend)
    fused = same(run, model, inputs)
    model.unfuse_lora()
    same(run, model, inputs)
    model.fuse_lora(safe_fusing=True)
    torch.testing.assert_close(same(run, model, inputs), fused, atol=1e-4, rtol=1e-4)
    assert taken(backend)["qkv"] >= 3
