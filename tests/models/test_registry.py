import json
import sys

import pytest
import torch

from fluxrewrite.errors import InputError
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.registry import PRESETS


def build(name, shapes=Shapes(8, 4)):  # noqa: B008 - frozen
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return find_model(name).build(shapes, torch.float32)


@pytest.mark.parametrize(
    ("preset", "billions"),
    [("flux2-klein-4b", 3.876), ("flux2-klein-9b", 9.079), ("flux2-dev", 32.223), ("flux1-dev", 11.901)],
)
def test_presets_have_the_size_of_their_models(preset, billions):
    model, inputs = build(preset)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
    assert inputs["hidden_states"].shape[:2] == (1, 8)
    assert inputs["encoder_hidden_states"].shape[:2] == (1, 4)


def test_every_preset_is_listed_in_the_error_for_an_unknown_one():
    with pytest.raises(InputError) as error:
        find_model("flux3")
    assert all(name in str(error.value) for name in PRESETS)


@pytest.mark.parametrize("layout", ["config.json", "transformer/config.json", None])
def test_diffusers_folder_or_config(tmp_path, layout):
    config = {
        "_class_name": "Flux2Transformer2DModel",
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 1,
    }
    file = tmp_path / (layout or "config.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(config))
    model, _ = build(str(tmp_path if layout else file))
    assert len(model.transformer_blocks) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not a readable JSON file"),
        ("[1]", "_class_name is None"),
        ('{"_class_name": ["x"]}', "_class_name is"),
        ('{"_class_name": "UNet2DConditionModel"}', "expected Flux2Transformer2DModel or FluxTransformer2DModel"),
        ('{"_class_name": "Flux2Transformer2DModel", "num_layers": "three"}', "cannot be built"),
    ],
)
def test_config_that_is_no_flux_transformer(tmp_path, text, told):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=told):
        build(str(tmp_path))


def test_folder_without_a_config(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("size", ["image_tokens", "text_tokens", "batch"])
def test_sizes_start_at_one(size):
    with pytest.raises(InputError, match=f"--{size.replace('_', '-')} -3: must be 1 or more"):
        Shapes(**{size: -3})


MODULE = """
import torch
def good(): return torch.nn.Linear(2, 2), {"input": torch.randn(1, 2)}
def raises(): raise ValueError("no weights here")
def leaves(): raise SystemExit(5)
def wrong(): return torch.nn.Linear(2, 2)
"""


@pytest.mark.parametrize("source", ["raise ValueError('no')", "def (", "import sys; sys.exit(3)"])
def test_module_that_fails_on_import(tmp_path, monkeypatch, source):
    (tmp_path / "failing_models.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="importing 'failing_models' raised"):
        find_model("failing_models:thing")


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return "my_models"


def test_callable(module):
    model, inputs = build(f"{module}:good")
    assert isinstance(model, torch.nn.Linear)
    assert list(inputs) == ["input"]


@pytest.mark.parametrize(
    ("attribute", "told"),
    [
        ("raises", "ValueError: no weights here"),
        ("leaves", "SystemExit: 5"),
        ("wrong", "must return"),
        ("missing", "has no 'missing'"),
    ],
)
def test_callable_that_cannot_be_used(module, attribute, told):
    with pytest.raises(InputError, match=told):
        build(f"{module}:{attribute}")


def test_module_that_cannot_be_imported():
    with pytest.raises(InputError, match="'no_such_module' cannot be imported"):
        find_model("no_such_module:thing")


def test_missing_diffusers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install 'fluxrewrite\[diffusers\]'"):
        build("flux2-klein-4b")
