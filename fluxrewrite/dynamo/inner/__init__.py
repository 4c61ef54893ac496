"""Compilers behind fluxrewrite's backend that need more than the rewritten graph: TorchNeuron and torch-xla."""

from ...provider.neuron_device import NeuronDevice, runtime_lnc
from .prepare import InnerAdapter, prepare

__all__ = ["InnerAdapter", "NeuronDevice", "prepare", "runtime_lnc"]
