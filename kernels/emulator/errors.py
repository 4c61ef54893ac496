"""What the emulator refuses: stable limit codes and the one exception that carries them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import NoReturn

_HERE = str(Path(__file__).parent)


class HardwareLimit(StrEnum):
    """Stable code of a limit a kernel broke. Sources: NKI 0.6.0 (SDK 2.32) API pages unless a member says otherwise."""

    PARTITION_COUNT = "partition_count"  # more than 128 partitions, or operands of different partition counts
    PARTITION_START = "partition_start"  # >64 start at 0; 33-64 at 0/64; <=32 at 0/32/64/96 (architecture guide)
    PARTITION_STEP = "partition_step"  # an access must step through partitions one by one (NKI access patterns page)
    OPERAND_PARTITION = "operand_partition"  # two SBUF inputs of one instruction start at different partitions
    FREE_DIMS = "free_dims"  # more than four free dimensions in a hardware access pattern
    ON_CHIP_RANK = "on_chip_rank"  # SBUF/PSUM tensors need a partition and at least one free dimension
    SHAPE = "shape"  # element counts or shapes of operands disagree (no broadcasting)
    INDEX = "index"  # an index, slice or pattern leaves its tensor
    VIEW = "view"  # a view that the hardware access patterns cannot express
    BUFFER = "buffer"  # an operand lies in a memory that the instruction cannot reach
    BOTH_PSUM = "both_psum"  # two inputs of one Vector instruction are in PSUM
    GPSIMD_PSUM = "gpsimd_psum"  # GpSimd cannot reach PSUM
    ENGINE = "engine"  # the chosen engine cannot run the instruction
    ARCH = "arch"  # the instruction or mode needs another NeuronCore generation
    DTYPE = "dtype"  # a data type that the instruction does not take
    OPERATOR = "operator"  # an operator that the instruction does not take
    OPERAND = "operand"  # a scalar operand that is neither a constant nor a (P, 1) tile of a legal type
    VALUE = "value"  # a constant that its data type or instruction cannot hold
    MATMUL_SIZE = "matmul_size"  # K or M > 128, or N > 512 (v2/v3)
    MATMUL_TILE = "matmul_tile"  # tile_position and tile_size
    PSUM_BANK = "psum_bank"  # a matmul result crosses a 2 KiB bank (v2/v3)
    ACCUMULATE = "accumulate"  # accumulation onto something that no overwriting matmul has started
    TRANSPOSE_SIZE = "transpose_size"  # 128x128 on TensorE, 32x32 on VectorE
    REDUCE_AXIS = "reduce_axis"  # only trailing free axes
    REDUCE = "reduce"  # reduce_op, reduce_cmd or accumulator misuse
    ACTIVATION_RANGE = "activation_range"  # an input outside the function's valid range
    PATTERN = "pattern"  # iota/affine_select pattern
    BN_STATS = "bn_stats"  # 512 elements in, 6 out; triples in, 2 out
    DMA_PSUM = "dma_psum"  # DMA copies do not reach PSUM (since NKI 0.3)
    DMA_ELEMENTS = "dma_elements"  # element counts of a copy disagree
    DMA_MODE = "dma_mode"  # hwdge and priority rules
    DMA_TRANSPOSE = "dma_transpose"  # permutation, shape, dtype rules of dma_transpose
    SBUF_CAPACITY = "sbuf_capacity"
    PSUM_CAPACITY = "psum_capacity"
    UNINITIALISED = "uninitialised"  # a read of elements that nothing has written
    OUTPUT_BUFFER = "output_buffer"  # a kernel result that is not in shared_hbm
    OUTPUT_UNWRITTEN = "output_unwritten"  # a kernel result that was not written in full
    LNC = "lnc"  # logical-NeuronCore rules: barrier, sendrecv, control flow of the two cores
    UNSUPPORTED = "unsupported"  # real NKI, but not in this emulator


def kernel_frame() -> FrameType | None:
    """Return the innermost stack frame that is outside the emulator's own sources."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return frame


def kernel_line() -> str:
    """Return ``file:line`` of the kernel statement that is running, or ``?``."""
    frame = kernel_frame()
    return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


class EmulationError(Exception):
    """A kernel did what the device, or this emulator, refuses.

    Attributes:
        limit: stable code of the limit.
        instruction: the instruction (or ``nl`` call) that broke it.
        line: kernel source position as ``file:line``.
    """

    def __init__(self, limit: HardwareLimit, message: str, instruction: str = "", line: str = "") -> None:
        where = f" at {line}" if line else ""
        head = f"{instruction}{where}: " if instruction or line else ""
        super().__init__(f"{head}[{limit}] {message}")
        self.limit = limit
        self.message = message
        self.instruction = instruction
        self.line = line


def fail(limit: HardwareLimit, instruction: str, message: str) -> NoReturn:
    """Raise :class:`EmulationError` for ``instruction`` at the running kernel line."""
    raise EmulationError(limit, message, instruction, kernel_line())
