import itertools
import json

import pytest
import torch
from torch import nn

from fluxrewrite.errors import InputError
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.registry import PRESETS, ModelSpec
from fluxrewrite.models.workload import realise

CONFIG = {
    "_class_name": "Flux2Transformer2DModel",
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 24,
    "in_channels": 8,
    "guidance_embeds": False,
    "axes_dims_rope": [4, 4, 4, 4],
}
SHAPES = Shapes(image_tokens=6, text_tokens=3)


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return find_model(str(tmp_path))


def test_the_same_numbers_every_time(spec):
    a, b, other = (realise(spec, SHAPES, torch.float32, seed) for seed in (0, 0, 1))
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y)
    assert torch.equal(a.inputs["hidden_states"], b.inputs["hidden_states"])
    assert not torch.equal(a.inputs["hidden_states"], other.inputs["hidden_states"])
    assert not torch.equal(next(a.model.parameters()), next(other.model.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_can_run(spec, dtype):
    workload = realise(spec, SHAPES, dtype)
    assert {p.dtype for p in workload.model.parameters()} == {dtype}
    assert not any(p.requires_grad for p in workload.model.parameters())
    assert not workload.model.training
    latents = list(workload.steps(3))
    assert [x.shape for x in latents] == [(1, 6, 8)] * 3
    assert all(bool(x.isfinite().all()) for x in latents)
    assert 0.1 < float(latents[-1].float().std()) < 10
    ids = workload.inputs["img_ids"]
    assert sorted({(int(r), int(c)) for r, c in ids[0, :, 1:3]}) == [(r, c) for r in range(2) for c in range(3)]
    assert workload.inputs["txt_ids"][0, :, 3].tolist() == [0, 1, 2]


def test_between_steps_gradients_are_as_the_caller_has_them(spec):
    """A loop that is never finished would leave them switched off for the rest of the process."""
    grad = []
    workload = realise(spec, SHAPES, torch.float32)
    steps = workload.steps(2, lambda hidden_states, **inputs: grad.append(torch.is_grad_enabled()) or (hidden_states,))
    next(steps)
    assert (grad, torch.is_grad_enabled()) == ([False], True)


def test_steps_are_euler_steps_of_the_velocity(spec):
    """With a constant velocity the latents move along it by the whole of the noise level."""
    workload = realise(spec, SHAPES, torch.float32)
    times = []

    def call(hidden_states, timestep, **inputs):
        times.append(float(timestep))
        return (torch.ones_like(hidden_states),)

    latents = list(workload.steps(4, call))
    torch.testing.assert_close(latents[-1], workload.inputs["hidden_states"] - 1)
    assert times[0] == 1.0
    assert times == sorted(times, reverse=True)
    assert all(a.shape == b.shape for a, b in itertools.pairwise(latents))


def test_weights_of_a_folder_are_its_own(spec, tmp_path):
    first = realise(spec, SHAPES, torch.float32)
    first.model.save_pretrained(tmp_path / "saved")
    found = realise(find_model(str(tmp_path / "saved")), SHAPES, torch.float32, seed=5)
    for x, y in zip(first.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(x, y)
    (tmp_path / "saved" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="the weights cannot be loaded"):
        realise(find_model(str(tmp_path / "saved")), SHAPES, torch.float32)


class Doubles(nn.Module):
    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return {"y": 2 * x} if self.answer is None else self.answer


def made(model):
    return ModelSpec("mine", lambda shapes, dtype: (model, {"x": torch.ones(2)}))


def test_other_models_run_as_they_are():
    workload = realise(made(Doubles()), SHAPES, torch.float32)
    assert not workload.denoises
    assert [x.tolist() for x in workload.steps(2)] == [[2.0, 2.0]] * 2
    with pytest.raises(InputError, match="without a tensor"):
        list(realise(made(Doubles("text")), SHAPES, torch.float32).steps(1))


def test_a_compiled_module_runs_in_the_place_of_the_model():
    """It has no truth value: asking for one asks for the model's length."""
    workload = realise(made(Doubles()), SHAPES, torch.float32)
    compiled = torch.compile(workload.model, backend="eager")
    assert [x.tolist() for x in workload.steps(1, compiled)] == [[2.0, 2.0]]


def test_a_model_with_buffers_makes_them_itself():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.arange(3.0), persistent=False)
            self.layer = nn.Linear(3, 3)

    spec = ModelSpec("m", lambda shapes, dtype: (Model(), {"x": torch.empty(3)}), generated=True)
    model = realise(spec, SHAPES, torch.float32).model
    assert model.table.tolist() == [0.0, 1.0, 2.0]
    assert not model.layer.weight.is_meta


def test_the_small_preset_has_the_widths_of_the_large_one():
    mini, full = (PRESETS[name].config for name in ("flux2-klein-mini", "flux2-klein-4b"))
    blocks = {"num_layers", "num_single_layers"}
    assert {k: v for k, v in mini.items() if k not in blocks} == {k: v for k, v in full.items() if k not in blocks}
