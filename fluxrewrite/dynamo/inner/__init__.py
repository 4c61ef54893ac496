"""The compilers behind fluxrewrite's backend, each a record in a file of its own, found through its entry point."""

from ...provider.neuron_device import NeuronDevice, runtime_lnc
from .record import InnerAdapter, InnerBackend
from .registry import default_inner, inner_backend, inner_backends, prepare

__all__ = [
    "InnerAdapter", "InnerBackend", "NeuronDevice", "default_inner", "inner_backend", "inner_backends", "prepare",
    "runtime_lnc",
]  # fmt: skip
