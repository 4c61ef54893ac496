"""Enumerations of ``nki.isa`` (SDK 2.32)."""

from __future__ import annotations

from enum import Enum, IntEnum


class engine(Enum):
    """Engines that an instruction may be put on."""

    unknown = 0
    tensor = 1
    scalar = 2
    gpsimd = 3
    dma = 4
    vector = 5
    sync = 6


class reduce_cmd(Enum):
    """What happens to an engine's accumulator registers."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


class dge_mode(Enum):
    """Who generates DMA descriptors."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(Enum):
    """What an out-of-bounds run-time index does."""

    error = 0
    skip = 1


class matmul_perf_mode(Enum):
    """Tensor engine modes."""

    none = "none"
    double_row = "double_row"


class nc_version(IntEnum):
    """NeuronCore generations."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


class dma_engine(Enum):
    """Engines that ``sendrecv`` may use."""

    dma = 1
    gpsimd_dma = 2
