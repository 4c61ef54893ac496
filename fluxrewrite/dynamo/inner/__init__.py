"""Compilers behind fluxrewrite's backend, one file each: what the rewritten graph, the report and the caches need to know."""

from ...provider.neuron_device import NeuronDevice, runtime_lnc
from .record import InnerAdapter, InnerBackend
from .registry import default_inner, inner_backend, inner_backends, prepare

__all__ = [
    "InnerAdapter", "InnerBackend", "NeuronDevice", "default_inner", "inner_backend", "inner_backends", "prepare",
    "runtime_lnc",
]  # fmt: skip
