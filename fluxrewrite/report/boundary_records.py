"""What goes through memory around kernel calls, and what ranks exchange, as records of the report."""

from __future__ import annotations

from typing import Literal

from .base import Record

__all__ = ["AbsorptionInfo", "Boundary", "CollectiveInfo", "LostFusion", "TensorInfo"]


class TensorInfo(Record):
    """A tensor that goes through memory; `bytes` is its size, `op` what computes it, `role` what it is to the kernel call."""

    name: str
    op: str
    role: Literal["operand", "result"]
    shape: tuple[int | str, ...]
    dtype: str
    bytes: int


class LostFusion(Record):
    """Two operations that the compiler would have fused."""

    producer: str
    consumer: str


class AbsorptionInfo(Record):
    """Operations next to a kernel call that, taken into the kernel, would save `bytes` of traffic."""

    side: Literal["before", "after"]
    ops: tuple[str, ...]
    nodes: tuple[str, ...]
    path: str
    bytes: int


class Boundary(Record):
    """A kernel call between operations, and what its border costs a step in microseconds, on the basis named.

    `site` is the id of a site; it is "" for a graph break, which has `reason` and `path`, the line of the model. `bytes` is the
    sum of the tensors.
    """

    site: str
    graph: int
    kind: Literal["split", "barrier", "layout"]
    path: str
    bytes: int
    tensors: tuple[TensorInfo, ...]
    lost_fusions: tuple[LostFusion, ...]
    absorptions: tuple[AbsorptionInfo, ...] = ()
    cost_us: float | None
    basis: Literal["measured", "modelled", "assumed"]
    reason: str = ""


class CollectiveInfo(Record):
    """An exchange between ranks in the rewritten graph, where compilers fuse nothing.

    `ranks` take part, null where the graph does not say how many; `shape` and `bytes` are of what one rank sends.
    """

    name: str
    op: str
    graph: int
    path: str
    ranks: int | None
    shape: tuple[int | str, ...]
    dtype: str
    bytes: int
