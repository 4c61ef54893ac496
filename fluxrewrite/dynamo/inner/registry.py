"""Inner backends by name, from the entry point group `fluxrewrite.inner_backends`."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import InputError
from ...kernel import load_plugins, plugin_names
from ...provider.neuron_device import check_lnc
from .record import InnerAdapter, InnerBackend

__all__ = ["GROUP", "default_inner", "inner_backend", "inner_backends", "prepare"]

GROUP = "fluxrewrite.inner_backends"


def inner_backend(name: str) -> InnerBackend:
    """The record of an inner backend; the default record for a name that is not registered.

    Raises InputError where the entry point of that name cannot be loaded.
    """
    if name not in plugin_names(GROUP):
        return InnerBackend()
    found: InnerBackend = load_plugins(GROUP, (name,), _checked)[name]
    return found


def inner_backends() -> dict[str, InnerBackend]:
    """All registered inner backends, in name order. One that cannot be loaded is left out with a warning."""
    return load_plugins(GROUP, build=_checked)


def _checked(loaded: Any) -> InnerBackend:
    if not isinstance(loaded, InnerBackend):
        raise TypeError(f"it is {type(loaded).__name__}, not an InnerBackend")
    return loaded


def default_inner() -> str:
    """The inner backend for the accelerator that torch sees, if one is installed; else "inductor"."""
    known = torch._dynamo.list_backends(exclude_tags=None)
    candidates = {n: b.accelerator for n, b in inner_backends().items() if b.accelerator is not None and n in known}
    here = torch.accelerator.current_accelerator() if candidates else None
    return next((n for n, kind in candidates.items() if here is not None and here.type == kind), "inductor")


def prepare(name: str, execution: str, lnc: int | None) -> InnerAdapter:
    """What is done around an inner backend.

    Args:
        name: of the inner backend.
        execution: what kernel calls run.
        lnc: physical cores of each kernel call; those of the runtime when None.

    Raises:
        InputError: an execution that the backend cannot compile, a package that is missing, or a wrong `lnc`.
    """
    backend = inner_backend(name)
    if lnc is not None:
        check_lnc(lnc)
        if not backend.takes_lnc:
            raise InputError(
                f"lnc={lnc} is for {_those('takes_lnc')}; behind others, kernels take the cores that "
                "NEURON_LOGICAL_NC_CONFIG says"
            )
    adapter = backend.adapter(execution, lnc)
    if execution == "custom_call" and not backend.custom_calls:
        raise InputError(f"execution='custom_call' makes XLA's custom calls; it needs {_those('custom_calls')}")
    return adapter


def _those(flag: str) -> str:
    """ "inner='neuron'": the backends that have a flag set."""
    return " or ".join(f"inner={name!r}" for name, backend in inner_backends().items() if getattr(backend, flag))
