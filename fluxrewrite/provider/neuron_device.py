"""NKI kernels on a Neuron device, through the public interface of either stack."""

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
"""Targets whose logical core is one physical core; that of the others is two (logical-neuroncore-config.rst, SDK 2.32)."""


def check_lnc(lnc: int, source: str = "lnc") -> int:
    """`lnc` itself. Raises InputError, naming `source`, unless a logical core can have so many physical ones: 1 or 2."""
    if lnc not in (1, 2):
        raise InputError(f"{source}={lnc}: a logical NeuronCore has 1 or 2 physical cores")
    return lnc


def runtime_lnc(environment: Mapping[str, str] | None = None) -> int:
    """Physical cores of one logical core in this process, which the grid of every kernel call must equal.

    `NEURON_LOGICAL_NC_CONFIG` where it is set, as the runtime reads it; else the platform's default: 2, or 1 where
    `NEURON_PLATFORM_TARGET_OVERRIDE` names trn1 or inf2.

    Raises InputError for a setting that is neither 1 nor 2.
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
    """A dtype of torch as that of `nki.language`; everything else as it is."""
    return getattr(language, str(value).removeprefix("torch.")) if isinstance(value, torch.dtype) else value


def native() -> bool:
    """Whether the installed torch_neuronx is TorchNeuron; that of the XLA stack has the same name and no `wrap_nki`."""
    return hasattr(importlib.import_module("torch_neuronx"), "wrap_nki")


class NeuronDevice:
    """Runs kernels where their tensors lie: `torch_neuronx.wrap_nki` on the device `neuron`, a direct call on `xla`.

    `lnc` is the number of physical cores that each call takes; that of the runtime when None.
    """

    def __init__(self, lnc: int | None = None) -> None:
        self.lnc = None if lnc is None else check_lnc(lnc)

    def run(self, entry: str, *arguments: Any, cores: int | None = None, **options: Any) -> Any:
        """Call the kernel "module:function". Tensors go as they are, everything else as a constant given by its name."""
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
    """The tensors that come first, and the rest by name but for what equals its default.

    So a tensor that is absent (None) is left out: a constant of a kernel is a number, a truth value, a text or a dtype.
    """
    signature = inspect.signature(getattr(kernel, "func", kernel))
    bound = signature.bind(*arguments, **options).arguments
    leading = list(itertools.takewhile(lambda name: isinstance(bound[name], torch.Tensor), bound))
    rest = {n: v for n, v in bound.items() if n not in leading and not _same(v, signature.parameters[n].default)}
    return [bound[n] for n in leading], rest


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and not isinstance(value, torch.Tensor) and bool(value == default)
