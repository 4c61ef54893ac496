"""What the inner backends "neuron" and "openxla" need: packages, an execution, and a graph made ready for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import GraphModule

from ...errors import InputError
from ...provider.neuron_device import check_lnc, runtime_lnc
from . import neuron, openxla

__all__ = ["WARNING", "InnerAdapter", "default_execution", "prepare"]

WARNING = (
    f"{neuron.NO_FALLBACK}=1 is not set: where a graph fails on the device, TorchNeuron runs it eagerly without a word, and "
    "times and outputs are then not those of the kernels; set it before the process starts"
)
"""Said once where TorchNeuron may run a graph otherwise than it was compiled."""


@dataclass(frozen=True)
class InnerAdapter:
    """What is done around an inner backend.

    Attributes:
        ready: makes a rewritten graph ready for it.
        eager_fallback: whether it may run graphs eagerly without a word; None where that is not known of it.
        lnc: physical cores of each kernel call; None where kernels do not run on a device.
    """

    ready: Callable[[GraphModule], GraphModule] = lambda gm: gm
    eager_fallback: Callable[[], bool | None] = lambda: None
    lnc: Callable[[], int | None] = lambda: None


def default_execution(inner: str) -> str:
    """What a kernel call runs with that inner backend: "device" where kernels can run behind it, else "reference"."""
    if inner == "neuron":
        return "device"
    if inner == "openxla" and openxla.has_neuron():
        return "device"
    return "reference"


def prepare(inner: str, execution: str, lnc: int | None) -> InnerAdapter:
    """See `InnerAdapter`. Other backends than "neuron" and "openxla" take graphs as they are.

    Args:
        inner: name of the inner backend.
        execution: what kernel calls run.
        lnc: physical cores of each kernel call; those of the runtime when None.

    Raises InputError for an execution that the backend cannot have, a package that is not there, and a wrong `lnc`.
    """
    if lnc is not None:
        check_lnc(lnc)
        if inner != "neuron":
            raise InputError(
                f"lnc={lnc} is for inner='neuron'; behind others, kernels take the cores that NEURON_LOGICAL_NC_CONFIG says"
            )
    if inner == "neuron":
        neuron.check(execution)
        return InnerAdapter(
            lambda gm: neuron.lowered(gm, lnc or runtime_lnc()), neuron.eager_fallback, lambda: lnc or runtime_lnc()
        )
    if inner == "openxla":
        openxla.check(execution)
        if execution == "device":
            return InnerAdapter(lnc=lambda: lnc or runtime_lnc())
    elif execution == "custom_call":
        raise InputError("execution='custom_call' makes XLA's custom calls; it needs inner='openxla'")
    return InnerAdapter()
