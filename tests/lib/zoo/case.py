"""What is needed to build one small model and to call it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Case", "build", "const", "ints", "ones", "rand"]


@dataclass(frozen=True)
class Case:
    """A model class with a small configuration.

    Attributes:
        name: name of the class.
        config: arguments of its constructor.
        inputs: makes the arguments of a call.
        rotary: names of the functions that rotate queries and keys, as the model's source has them; each tensor that such a
            function returns is one rotation.
        module: where the class is.
        dynamo: settings of Dynamo that the model needs to be traced as a whole.
        why: why the class is left out; such a case has neither config nor inputs.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[], Mapping[str, Any]] = dict
    rotary: tuple[str, ...] = ()
    module: str = "diffusers"
    dynamo: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def build(case: Case) -> torch.nn.Module:
    """The model in float32 with random weights, none of which is zero or one by construction.

    Raises AttributeError where the installed library has no such class, and what its constructor raises.
    """
    made = getattr(importlib.import_module(case.module), case.name)
    torch.manual_seed(0)
    configures = case.module.startswith("transformers")
    model = made(made.config_class(**case.config)) if configures else made(**case.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                gain = "norm" in name and parameter.dim() == 1 and not name.endswith("bias")
                parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.dim() < 2 else 0.2) + float(gain))
    return model.float().eval()


def rand(*shape: int) -> torch.Tensor:
    """Normal random numbers."""
    return torch.randn(*shape)


def ints(limit: int, *shape: int) -> torch.Tensor:
    """Random whole numbers below `limit`."""
    return torch.randint(0, limit, shape)


def ones(*shape: int) -> torch.Tensor:
    """A mask that leaves the last key of each row out, where there are more than two."""
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., -1] = shape[-1] < 3
    return mask


def const(value: float, *shape: int) -> torch.Tensor:
    """A tensor of one value, for timesteps."""
    return torch.full(shape or (2,), value)
