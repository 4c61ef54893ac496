"""The interface of kernel providers: launch, limits, cost profile, check cases, source digests, and the Neuron device."""

from .registry import Implementation, Provider, launch

__all__ = ["Implementation", "Provider", "launch"]
