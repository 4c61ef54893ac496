"""Predicts time from bytes, operations and calls: a roofline with fixed costs, on a device profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .devices import Device, Figure

__all__ = ["Estimate", "Term", "Work", "estimate"]

ModelBasis = Literal["modelled", "assumed"]


@dataclass(frozen=True)
class Work:
    """The work of one core.

    Attributes:
        bytes: read from and written to memory.
        flops: of matrix products; a multiplication with its addition counts as two.
        dtype: of the operands of matrix products.
        elements: results of elementwise operations, counted for each operation and element.
        kernels: compiled kernels or fused groups that are started.
        calls: opaque kernel calls inside an executable.
        launches: executables beyond the first.
    """

    bytes: float = 0
    flops: float = 0
    dtype: str = "bfloat16"
    elements: float = 0
    kernels: float = 0
    calls: float = 0
    launches: float = 0


@dataclass(frozen=True)
class Term:
    """The time of one unit of the device, or of one kind of start."""

    name: str
    figure: Figure
    us: float
    low_us: float
    high_us: float


@dataclass(frozen=True)
class Estimate:
    """Predicted microseconds for some work.

    Attributes:
        us, low_us, high_us: the estimate, and the estimates at both ends of the figures' ranges.
        bound: the largest term: "memory", "matmul", "vector", "kernel", "call", "launch", or "nothing" for no work.
        basis: "assumed" when the figure behind the largest term is assumed, else "modelled".
        device: name of the profile.
        terms: the summands of `us`.
    """

    us: float
    low_us: float
    high_us: float
    bound: str
    basis: ModelBasis
    device: str
    terms: tuple[Term, ...]

    @property
    def why(self) -> str:
        """The terms with their figures, in one line."""
        return f"{self.device}: " + (" + ".join(map(_shown, self.terms)) or "no work")


def estimate(device: Device, work: Work) -> Estimate:
    """us = max(bytes / memory, flops / matmul, elements / vector) + kernels * kernel + calls * call + launches * launch.

    Memory, matrix and vector units work at the same time, so the slowest one decides. Fixed costs are added, one after another:
    nothing is assumed to overlap with a start.

    Raises InputError for flops of a dtype that the profile has no rate for.
    """
    side = [_rate("memory", device.memory, work.bytes / 1e3), _rate("vector", device.vector, work.elements / 1e3)]
    if work.flops:
        side.append(_rate("matmul", device.rate(work.dtype), work.flops / 1e6))
    fixed = [
        _fixed("kernel", device.kernel, work.kernels),
        _fixed("call", device.call, work.calls),
        _fixed("launch", device.launch, work.launches),
    ]
    terms = [max(side, key=lambda t: t.us), *(t for t in fixed if t.us)]
    largest = max(terms, key=lambda t: t.us)
    shown = [t for t in terms if t.us]
    return Estimate(
        us=sum(t.us for t in terms),
        low_us=max(t.low_us for t in side) + sum(t.low_us for t in fixed),
        high_us=max(t.high_us for t in side) + sum(t.high_us for t in fixed),
        bound=largest.name if shown else "nothing",
        basis="assumed" if largest.figure.basis == "assumed" and shown else "modelled",
        device=device.name,
        terms=tuple(shown),
    )


def _rate(name: str, figure: Figure, amount: float) -> Term:
    low, high = figure.range
    return Term(name, figure, amount / figure.value, amount / high, amount / low)


def _fixed(name: str, figure: Figure, count: float) -> Term:
    low, high = figure.range
    return Term(name, figure, count * figure.value, count * low, count * high)


def _shown(term: Term) -> str:
    """ "memory 10.4 us (725 GB/s, modelled)"."""
    f = term.figure
    return f"{term.name} {term.us:.3g} us ({f.value:g} {f.unit}, {f.basis})"
