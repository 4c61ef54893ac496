"""``nki.isa`` as ``nisa``: the emulated instructions and their enumerations (NKI 0.6 names)."""

from __future__ import annotations

from typing import Any

from .enums import dge_mode, dma_engine, engine, matmul_perf_mode, nc_version, oob_mode, reduce_cmd
from .errors import EmulationError as NkiValidationError
from .errors import Limit, fail
from .isa_move import dma_copy, dma_transpose, memset, tensor_copy, tensor_copy_predicated
from .isa_scalar import activation, activation_reduce
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
    *("NkiValidationError", "dge_mode", "dma_engine", "engine", "matmul_perf_mode", "nc_version", "oob_mode"),
    *("reduce_cmd", "tensor_engine", "vector_engine", "scalar_engine", "gpsimd_engine", "unknown_engine"),
    *("dma_copy", "dma_transpose", "memset", "tensor_copy", "tensor_copy_predicated"),
    *("nc_matmul", "nc_transpose", "activation", "activation_reduce"),
    *("reciprocal", "scalar_tensor_tensor", "tensor_reduce", "tensor_scalar", "tensor_tensor", "tensor_tensor_scan"),
    "get_nc_version",
]


def get_nc_version() -> nc_version:
    """Return the NeuronCore generation of the running device (trn2's outside of a run)."""
    machine = running()
    return nc_version.gen3 if machine is None else nc_version(machine.generation)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)

    def refused(*args: Any, **kwargs: Any) -> None:
        fail(Limit.UNSUPPORTED, name, "this instruction is not emulated")

    return refused
