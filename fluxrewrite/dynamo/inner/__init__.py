"""Compilers behind fluxrewrite's backend that need more than the rewritten graph: TorchNeuron and torch-xla."""

from ...provider.neuron_device import Device, runtime_lnc
from .prepare import Inner, prepare

__all__ = ["Device", "Inner", "prepare", "runtime_lnc"]
