"""TorchNeuron and NKI: the real packages where they can be imported, else the stand-in of `stand_in/` over our emulator."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fluxrewrite.kernels import emulator
from torch._dynamo.backends import registry

import fluxrewrite
from fluxrewrite.kernel import load_kernels
from fluxrewrite.provider.neuron_device import runtime_lnc
from fluxrewrite.provider.registry import implementations

_HERE = Path(__file__).parent
_STAND_IN = _HERE / "stand_in"


def _real() -> Any:
    """TorchNeuron with a device, or None."""
    try:
        module = importlib.import_module("torch_neuronx")
        importlib.import_module("nki").jit  # noqa: B018
        return (
            module if hasattr(module, "wrap_nki") and torch.accelerator.current_accelerator().type == "neuron" else None
        )
    except Exception:
        return None


@functools.cache
def _standing_in() -> dict[str, Any]:
    """The modules of the stand-in, imported once: torch keeps what they register for the whole process."""
    before = set(sys.modules)
    sys.path.insert(0, str(_STAND_IN))
    try:
        importlib.import_module("torch_neuronx")
    finally:
        sys.path.remove(str(_STAND_IN))
    return {n: sys.modules.pop(n) for n in set(sys.modules) - before if n.partition(".")[0] == "torch_neuronx"}


@pytest.fixture
def neuron(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """`module` torch_neuronx, `kernels` of these tests, `device`, `lnc` of the runtime, and `real`."""
    load_kernels()
    implementations("builtin")  # imported before the stand-ins, not to be forgotten with them
    monkeypatch.syspath_prepend(str(_HERE))
    real = _real()
    monkeypatch.setenv("TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION", "1")
    if real is not None:
        kernels = importlib.import_module("some_kernels")
        yield SimpleNamespace(module=real, kernels=kernels, device="neuron", lnc=runtime_lnc(), real=True)
        return
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", "2")
    with emulator.installed():
        for name, module in _standing_in().items():
            monkeypatch.setitem(sys.modules, name, module)
        module = sys.modules["torch_neuronx"]
        registry.register_backend(module.neuron_backend, "neuron")
        module.calls.clear()
        module.graphs.clear()
        sys.modules.pop("some_kernels", None)
        try:
            kernels = importlib.import_module("some_kernels")
            yield SimpleNamespace(module=module, kernels=kernels, device="cpu", lnc=2, real=False)
        finally:
            del registry._BACKENDS["neuron"], registry._COMPILER_FNS["neuron"]
            sys.modules.pop("some_kernels", None)


@pytest.fixture
def compiled(neuron: SimpleNamespace) -> Any:
    """`compiled(fn, **options)`: `fn` behind fluxrewrite and TorchNeuron."""

    def run(fn: Any, **options: Any) -> Any:
        backend = fluxrewrite.backend(inner="neuron", strict=True, **options)
        return torch.compile(fn, backend=backend, fullgraph=True, dynamic=False), backend

    return run
