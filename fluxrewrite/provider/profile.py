"""The modelled cost of one kernel call: engines, time, and the limits of the device.

Providers return records of their own. These protocols are the part of them that the core reads.
"""

# ruff: noqa: D102 (the docstring of each class describes its properties)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..errors import InputError

__all__ = [
    "ProfileRequest",
    "Profiled",
    "ProfiledEngine",
    "ProfiledEvent",
    "ProfiledInstruction",
    "ProfiledLaunch",
    "ProfiledMemory",
    "parse_sizes",
]


@dataclass(frozen=True)
class ProfileRequest:
    """A kernel call for a provider to model.

    Attributes:
        kernel: name of the op.
        sizes: of the arguments, by the names of `Site.shapes`; the provider adds defaults for those left out.
        dtype: of the activations.
        device, cores: name of the device that is modelled, and physical cores of a logical one.
        form, details: of the site, as in the report; "" and {} for a call without a site.
        operands: shape and dtype of each tensor that the call reads, in order; () for a call without a site.
    """

    kernel: str
    sizes: Mapping[str, int]
    dtype: torch.dtype
    device: str = "trn2"
    cores: int = 1
    form: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    operands: tuple[tuple[tuple[int, ...], str], ...] = ()


class ProfiledEvent(Protocol):
    """One instruction on the timeline: name of its `engine`, `start` and `end` in ns, `bytes` moved."""

    @property
    def engine(self) -> str: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def bytes(self) -> int: ...


class ProfiledEngine(Protocol):
    """Totals of one engine of one core; `utilisation` is the busy fraction of the launch's time, 0 to 1."""

    @property
    def core(self) -> int: ...
    @property
    def engine(self) -> str: ...
    @property
    def instructions(self) -> int: ...
    @property
    def cycles(self) -> float: ...
    @property
    def busy_us(self) -> float: ...
    @property
    def utilisation(self) -> float: ...
    @property
    def macs(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class ProfiledInstruction(Protocol):
    """Totals of one instruction on one engine of one core."""

    @property
    def core(self) -> int: ...
    @property
    def engine(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def busy_us(self) -> float: ...


class ProfiledMemory(Protocol):
    """Peak use of an on-chip memory of one core, bytes a partition."""

    @property
    def core(self) -> int: ...
    @property
    def memory(self) -> str: ...
    @property
    def peak(self) -> int: ...
    @property
    def capacity(self) -> int: ...


class ProfiledLaunch(Protocol):
    """One kernel that the call launches; `events` by core, in ns from the start of the launch."""

    @property
    def latency_us(self) -> float: ...
    @property
    def engines(self) -> Sequence[ProfiledEngine]: ...
    @property
    def memory(self) -> Sequence[ProfiledMemory]: ...
    @property
    def events(self) -> Sequence[Sequence[ProfiledEvent]]: ...
    def instructions(self) -> Sequence[ProfiledInstruction]:
        """Totals by instruction, busiest first."""

    def chrome_trace(self) -> dict[str, Any]:
        """The timeline in the Chrome trace event format."""


class Profiled(Protocol):
    """The modelled cost of one call.

    `latency_us` is the time of all launches one after another, without the cost of launching. `roofline_us` is the least time by
    the device's peaks. `flops` are those of the op, `traffic` the bytes of operands and results. `bound` is what limits the call,
    in words.
    """

    @property
    def kernel(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def cores(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def sizes(self) -> Mapping[str, int]: ...
    @property
    def profiles(self) -> Sequence[ProfiledLaunch]: ...
    @property
    def flops(self) -> float: ...
    @property
    def traffic(self) -> int: ...
    @property
    def latency_us(self) -> float: ...
    @property
    def roofline_us(self) -> float: ...
    @property
    def peak_tflops(self) -> float: ...
    @property
    def peak_gbs(self) -> float: ...
    @property
    def bound(self) -> str: ...


def parse_sizes(text: str | None) -> dict[str, int]:
    """Parse sizes from the command line: "heads=6,sequence=4608". Raises InputError for a value that is not a whole number."""
    given: dict[str, int] = {}
    for part in text.split(",") if text else ():
        key, _, value = (s.strip() for s in part.partition("="))
        if not value.removeprefix("-").isdecimal():
            raise InputError(f"--shape {part.strip()!r}: {key} takes a whole number, as in {key}=128")
        given[key] = int(value)
    return given
