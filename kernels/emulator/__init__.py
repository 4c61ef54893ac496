"""NKI on NumPy: runs kernel sources unchanged, refuses what the device refuses, and models what a call costs.

A kernel imports ``isa as nisa``, ``language as nl`` and ``jit`` from here as it would from ``nki``;
``simulate(kernel, device="trn2")(*arrays)`` runs it. Nothing here needs the ``nki`` package or Neuron hardware.
"""

from . import isa, language
from .errors import EmulationError, HardwareLimit
from .install import installed
from .profile import EngineRow, InstructionRow, MemoryRow, Profile
from .run import EmulatedKernel, EmulatedRun, jit, simulate

__all__ = [
    "EmulatedKernel",
    "EmulatedRun",
    "EmulationError",
    "EngineRow",
    "HardwareLimit",
    "InstructionRow",
    "MemoryRow",
    "Profile",
    "installed",
    "isa",
    "jit",
    "language",
    "simulate",
]
