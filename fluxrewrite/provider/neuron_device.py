"""Runs NKI kernels on a Neuron device, through the public interface of TorchNeuron or of the XLA stack."""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import InputError

__all__ = ["NeuronDevice", "check_lnc", "imported", "native", "runtime_lnc", "typed"]

_LNC = "NEURON_LOGICAL_NC_CONFIG"
_TARGET = "NEURON_PLATFORM_TARGET_OVERRIDE"
_ONE_CORE = ("trn1", "inf2", "gen2")
"""Platforms whose logical core is one physical core by default; on all others it is two (logical-neuroncore-config.rst, SDK 2.32).

These are the runtime's own names of platforms, not names of device profiles."""


def check_lnc(lnc: int, source: str = "lnc") -> int:
    """Return `lnc`. Raises InputError, which names `source`, unless it is 1 or 2: the physical cores of a logical one."""
    if lnc not in (1, 2):
        raise InputError(f"{source}={lnc}: a logical NeuronCore has 1 or 2 physical cores")
    return lnc


def runtime_lnc(environment: Mapping[str, str] | None = None) -> int:
    """Physical cores of a logical core in this process. The grid of every kernel call must equal it.

    This is `NEURON_LOGICAL_NC_CONFIG` if set, as the runtime reads it. Otherwise it is the platform's default: 2, or 1 where
    `NEURON_PLATFORM_TARGET_OVERRIDE` is trn1, inf2 or gen2.

    Raises InputError for a setting other than 1 and 2.
    """
    variables = os.environ if environment is None else environment
    text = variables.get(_LNC)
    if text is None:
        return 1 if variables.get(_TARGET) in _ONE_CORE else 2
    if text not in ("1", "2"):
        raise InputError(f"{_LNC}={text!r}: a logical NeuronCore has 1 or 2 physical cores")
    return int(text)


def imported(entry: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, _, name = entry.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def typed(language: Any, value: Any) -> Any:
    """A dtype of torch as the one of `nki.language`; any other value unchanged."""
    return getattr(language, str(value).removeprefix("torch.")) if isinstance(value, torch.dtype) else value


def native() -> bool:
    """Whether the installed torch_neuronx is TorchNeuron. The package of the XLA stack has the same name, but no `wrap_nki`."""
    return hasattr(importlib.import_module("torch_neuronx"), "wrap_nki")


class NeuronDevice:
    """Runs kernels on the device of their tensors: by `torch_neuronx.wrap_nki` on `neuron`, by a direct call on `xla`.

    Args:
        lnc: physical cores that each call takes, 1 or 2; None for the number that the runtime has. Raises InputError for others.
    """

    def __init__(self, lnc: int | None = None) -> None:
        self.lnc = None if lnc is None else check_lnc(lnc)

    def run(self, entry: str, *arguments: Any, cores: int | None = None, **options: Any) -> Any:
        """Call the kernel "module:function". Leading tensors are positional arguments, all others are given by name."""
        kernel = imported(entry)
        grid = cores or self.lnc or runtime_lnc()
        language = importlib.import_module("nki.language")
        tensors, named = _call(kernel, arguments, options)
        named = {name: typed(language, value) for name, value in named.items()}
        if any(isinstance(t, torch.Tensor) and t.device.type == "xla" for t in (*tensors, *named.values())):
            return (kernel[grid] if grid > 1 else kernel)(*tensors, **named)  # type: ignore[index]
        return importlib.import_module("torch_neuronx").wrap_nki(kernel)[grid](*tensors, **named)


def _call(
    kernel: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The leading tensors, and the other arguments by name without those equal to their default.

    Leaving out defaults leaves out absent tensors too. They are None, which cannot be passed: a kernel's constant is a number, a
    bool, a string or a dtype.
    """
    signature = inspect.signature(getattr(kernel, "func", kernel))
    bound = signature.bind(*arguments, **options).arguments
    leading = list(itertools.takewhile(lambda name: isinstance(bound[name], torch.Tensor), bound))
    rest = {n: v for n, v in bound.items() if n not in leading and not _same(v, signature.parameters[n].default)}
    return [bound[n] for n in leading], rest


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and not isinstance(value, torch.Tensor) and bool(value == default)
