"""torch-xla, whose Dynamo backend is named "openxla". The graph stays as it is: ops are called with lazy tensors.

A call then becomes the aten ops of the reference body, the `@nki.jit` kernel if the Neuron packages of the XLA stack are installed,
or a bare custom call.
"""

from __future__ import annotations

import importlib.util

from ...errors import InputError
from ...provider.neuron_device import native, runtime_lnc
from .record import InnerAdapter, InnerBackend

__all__ = ["BACKEND", "check", "has_neuron"]


def has_neuron() -> bool:
    """Whether the Neuron packages of the XLA stack are installed: nki, and a torch_neuronx that is not TorchNeuron."""
    if any(importlib.util.find_spec(name) is None for name in ("torch_neuronx", "nki")):
        return False
    try:
        return not native()
    except ImportError:  # a placeholder package, or a wheel for another platform
        return False


def check(execution: str) -> None:
    """Raise InputError unless torch-xla is installed and ops of that execution can run on its tensors."""
    if importlib.util.find_spec("torch_xla") is None:
        raise InputError("inner='openxla' needs torch-xla, in an environment with torch 2.9; run: make xla")
    if execution == "emulate":
        raise InputError(
            "inner='openxla' with execution='emulate': the emulator reads numbers, XLA's tensors are lazy; choose reference, "
            "custom_call or, with Neuron's packages, device"
        )
    if execution == "device" and native():
        raise InputError(
            "inner='openxla' with execution='device' needs torch_neuronx of the XLA stack; the one installed here is "
            "TorchNeuron: choose inner='neuron'"
        )


def _adapter(execution: str, lnc: int | None) -> InnerAdapter:
    check(execution)
    if execution != "device":
        return InnerAdapter()
    return InnerAdapter(cache_key=lambda: (f"lnc {lnc or runtime_lnc()}",))


BACKEND = InnerBackend(
    default_execution=lambda: "device" if has_neuron() else "reference",
    custom_calls=True,
    adapter=_adapter,
    caches={"NKI_COMPILE_CACHE_URL": "nki"},
)
