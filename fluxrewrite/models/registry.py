"""Models by name: presets, diffusers folders and configs, and callables."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError

__all__ = ["PRESETS", "ModelSpec", "Shapes", "default_dtype", "find_model"]

Built = tuple[torch.nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Shapes:
    """Sizes of the inputs, in tokens and samples."""

    image_tokens: int = 256
    text_tokens: int = 512
    batch: int = 1

    def __post_init__(self) -> None:
        """Raise InputError for a size below 1."""
        for name in ("image_tokens", "text_tokens", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 1 or more")


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be built.

    Attributes:
        name: the name given to `find_model`.
        build: takes sizes and dtype, and returns (module, keyword inputs).
        generated: only the shapes of `build`'s weights and inputs have a meaning, as for presets and configurations.
        load: takes a dtype and returns the module with its own weights; None if it has none.
        weights: the folder that `load` reads.
    """

    name: str
    build: Callable[[Shapes, torch.dtype], Built]
    generated: bool = False
    load: Callable[[torch.dtype], torch.nn.Module] | None = None
    weights: Path | None = None


@dataclass(frozen=True)
class _Preset:
    cls: str
    source: str
    config: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, _Preset] = {
    "flux2-klein-4b": _Preset(
        "Flux2Transformer2DModel",
        "black-forest-labs/FLUX.2-klein-4B, transformer/config.json",
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    ),
    "flux2-klein-9b": _Preset(
        "Flux2Transformer2DModel",
        "black-forest-labs/FLUX.2-klein-9B, transformer/config.json",
        {
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 12288,
            "guidance_embeds": False,
        },
    ),
    "flux2-klein-mini": _Preset(
        "Flux2Transformer2DModel",
        "the widths of FLUX.2-klein-4B with 1 and 2 blocks, for small machines",
        {
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    ),
    "flux2-dev": _Preset(
        "Flux2Transformer2DModel", "black-forest-labs/FLUX.2-dev: the defaults of the class in diffusers"
    ),
    "flux1-dev": _Preset(
        "FluxTransformer2DModel", "black-forest-labs/FLUX.1-dev, transformer/config.json", {"guidance_embeds": True}
    ),
}
"""Configurations by name; values that are not listed are the defaults of the class in diffusers."""


def find_model(name: str) -> ModelSpec:
    """The model that `name` refers to: a preset, a diffusers folder or `config.json`, or `module:callable`.

    Raises InputError when it is none of these or cannot be used.
    """
    if name in PRESETS:
        preset = PRESETS[name]
        build = functools.partial(_from_config, name, preset.cls, preset.config)
        return ModelSpec(name, build, generated=True)
    path = Path(name)
    if path.exists():
        cls, config, folder = _read_config(path)
        build = functools.partial(_from_config, name, cls, config)
        if not any(folder.glob("*.safetensors")):
            return ModelSpec(name, build, generated=True)
        return ModelSpec(name, build, generated=True, load=functools.partial(_pretrained, cls, folder), weights=folder)
    module, colon, attribute = name.partition(":")
    if colon and module and attribute:
        return ModelSpec(name, _load_callable(name, module, attribute))
    known = ", ".join(PRESETS)
    raise InputError(
        f"unknown model {name!r}: not a preset ({known}), not an existing folder or config.json, not module:callable"
    )


def _read_config(path: Path) -> tuple[str, dict[str, Any], Path]:
    """Class name, configuration and folder, from a diffusers folder (of a pipeline or its transformer) or a config.json."""
    file = path
    if path.is_dir():
        candidates = [path / "transformer" / "config.json", path / "config.json"]
        file = next((c for c in candidates if c.is_file()), path / "config.json")
        if not file.is_file():
            raise InputError(
                f"{path}: no config.json and no transformer/config.json in this folder; give a diffusers model folder"
            )
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable JSON file ({error}); give a diffusers config.json") from error
    cls = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(cls, str) or cls not in _INPUTS:
        known = " or ".join(_INPUTS)
        raise InputError(f"{file}: _class_name is {cls!r}, expected {known}; use module:callable for other models")
    return cls, {k: v for k, v in config.items() if not k.startswith("_")}, file.parent


def _pretrained(cls: str, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The model with the weights in its folder. Raises InputError when they cannot be read."""
    try:
        model: torch.nn.Module = getattr(importlib.import_module("diffusers"), cls).from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True
        )
    except Exception as error:
        raise InputError(f"{folder}: the weights cannot be loaded ({type(error).__name__}: {error})") from error
    return model


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make this torch's default dtype, so that modules are built in it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _from_config(name: str, cls: str, config: Mapping[str, Any], shapes: Shapes, dtype: torch.dtype) -> Built:
    try:
        diffusers = importlib.import_module("diffusers")
        model_class = getattr(diffusers, cls)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{name} needs diffusers with {cls} ({error}); run: pip install 'fluxrewrite[diffusers]'"
        ) from error
    try:
        model = model_class.from_config(dict(config)) if config else model_class()
        inputs = _INPUTS[cls](model.config, shapes, dtype)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name}: {cls} cannot be built from this configuration ({type(error).__name__}: {error})"
        ) from error
    return model.eval(), inputs


def _load_callable(name: str, module: str, attribute: str) -> Callable[[Shapes, torch.dtype], Built]:
    sys.path.append(str(Path.cwd()))  # last, so that no file there shadows an installed package
    try:
        function = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise InputError(
            f"{name}: module {module!r} cannot be imported ({error}); run in its folder, or set PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise InputError(f"{name}: module {module!r} has no {attribute!r}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{name}: importing {module!r} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop()

    def build(shapes: Shapes, dtype: torch.dtype) -> Built:
        try:
            result = function()
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{name} raised {type(error).__name__}: {error}; it must return (model, kwargs)"
            ) from error
        if not (
            isinstance(result, tuple)
            and len(result) == 2
            and isinstance(result[0], torch.nn.Module)
            and isinstance(result[1], dict)
        ):
            raise InputError(
                f"{name} returned {type(result).__name__}; it must return (torch.nn.Module, dict of inputs)"
            )
        return result

    return build


def _flux2_inputs(config: Any, shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    batch, image, text = shapes.batch, shapes.image_tokens, shapes.text_tokens
    axes = len(config.axes_dims_rope)
    return {
        "hidden_states": torch.empty(batch, image, config.in_channels, dtype=dtype),
        "encoder_hidden_states": torch.empty(batch, text, config.joint_attention_dim, dtype=dtype),
        "timestep": torch.empty(batch, dtype=dtype),
        "img_ids": torch.empty(batch, image, axes, dtype=torch.float32),
        "txt_ids": torch.empty(batch, text, axes, dtype=torch.float32),
        "guidance": torch.empty(batch, dtype=dtype) if config.guidance_embeds else None,
        "return_dict": False,
    }


def _flux1_inputs(config: Any, shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    batch, image, text = shapes.batch, shapes.image_tokens, shapes.text_tokens
    axes = len(config.axes_dims_rope)
    return {
        "hidden_states": torch.empty(batch, image, config.in_channels, dtype=dtype),
        "encoder_hidden_states": torch.empty(batch, text, config.joint_attention_dim, dtype=dtype),
        "pooled_projections": torch.empty(batch, config.pooled_projection_dim, dtype=dtype),
        "timestep": torch.empty(batch, dtype=dtype),
        "img_ids": torch.empty(image, axes, dtype=torch.float32),
        "txt_ids": torch.empty(text, axes, dtype=torch.float32),
        "guidance": torch.empty(batch, dtype=dtype) if config.guidance_embeds else None,
        "return_dict": False,
    }


_INPUTS: Mapping[str, Callable[[Any, Shapes, torch.dtype], dict[str, Any]]] = {
    "Flux2Transformer2DModel": _flux2_inputs,
    "FluxTransformer2DModel": _flux1_inputs,
}
