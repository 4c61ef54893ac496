"""Predicted time, from device profiles and from measured runs: roofline, evidence, verdicts, cost of compiling."""

from .devices import Device, Figure, device_names, load_device
from .evidence import Case, Evidence, load_evidence
from .roofline import Estimate, Work, estimate

__all__ = [
    "Case", "Device", "Estimate", "Evidence", "Figure", "Work", "device_names", "estimate", "load_device", "load_evidence",
]  # fmt: skip
