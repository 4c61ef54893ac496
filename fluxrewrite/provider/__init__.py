"""What the core asks of a kernel provider: launch, limits, cost profile, check cases, source digests, the Neuron device."""

from .registry import Implementation, Provider, launch

__all__ = ["Implementation", "Provider", "launch"]
