"""NKI on NumPy: runs kernel sources unchanged, refuses what the device refuses, and models what a call costs.

Use ``from fluxrewrite.kernels.emulator import isa as nisa, language as nl, jit`` where a kernel would import ``nki``, and
``simulate(kernel, device="trn2")(*arrays)`` to run it. Nothing here needs the ``nki`` package or Neuron hardware.
"""

from . import isa, language
from .errors import EmulationError, Limit
from .profile import EngineRow, InstructionRow, MemoryRow, Profile
from .run import Kernel, Run, jit, simulate

__all__ = [
    "EmulationError",
    "EngineRow",
    "InstructionRow",
    "Kernel",
    "Limit",
    "MemoryRow",
    "Profile",
    "Run",
    "isa",
    "jit",
    "language",
    "simulate",
]
