"""``nki.isa`` as ``nisa``: the emulated instructions and their enumerations (NKI 0.6 names)."""

from __future__ import annotations

from typing import Any

from .enums import dge_mode, dma_engine, engine, matmul_perf_mode, nc_version, oob_mode, reduce_cmd
from .errors import EmulationError as NkiValidationError
from .errors import HardwareLimit, fail
from .isa_lnc import core_barrier, sendrecv
from .isa_move import dma_copy, dma_transpose, memset, tensor_copy, tensor_copy_predicated
from .isa_reduce import bn_aggr, bn_stats, exponential, tensor_scalar_reduce
from .isa_scalar import activation, activation_reduce
from .isa_select import (
    affine_select,
    iota,
    nc_stream_shuffle,
    range_select,
    select_reduce,
    tensor_partition_reduce,
)
from .isa_tensor import nc_matmul, nc_transpose
from .isa_vector import (
    reciprocal,
    scalar_tensor_tensor,
    tensor_reduce,
    tensor_scalar,
    tensor_tensor,
    tensor_tensor_scan,
)
from .machine import running

tensor_engine, vector_engine, scalar_engine = engine.tensor, engine.vector, engine.scalar
gpsimd_engine, unknown_engine = engine.gpsimd, engine.unknown

__all__ = [
    "NkiValidationError",
    "activation",
    "activation_reduce",
    "affine_select",
    "bn_aggr",
    "bn_stats",
    "core_barrier",
    "dge_mode",
    "dma_copy",
    "dma_engine",
    "dma_transpose",
    "engine",
    "exponential",
    "get_nc_version",
    "gpsimd_engine",
    "iota",
    "matmul_perf_mode",
    "memset",
    "nc_matmul",
    "nc_stream_shuffle",
    "nc_transpose",
    "nc_version",
    "oob_mode",
    "range_select",
    "reciprocal",
    "reduce_cmd",
    "scalar_engine",
    "scalar_tensor_tensor",
    "select_reduce",
    "sendrecv",
    "tensor_copy",
    "tensor_copy_predicated",
    "tensor_engine",
    "tensor_partition_reduce",
    "tensor_reduce",
    "tensor_scalar",
    "tensor_scalar_reduce",
    "tensor_tensor",
    "tensor_tensor_scan",
    "unknown_engine",
    "vector_engine",
]


def get_nc_version() -> nc_version:
    """Return the NeuronCore generation of the running device (trn2's outside of a run)."""
    machine = running()
    return nc_version.gen3 if machine is None else nc_version(machine.generation)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)

    def refused(*args: Any, **kwargs: Any) -> None:
        fail(HardwareLimit.UNSUPPORTED, name, "this instruction is not emulated")

    return refused
