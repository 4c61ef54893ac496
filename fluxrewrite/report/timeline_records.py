"""Records of what engines do in kernel calls, for the report."""

from __future__ import annotations

from .base import Record

__all__ = ["EngineInfo", "TimelineInfo"]


class EngineInfo(Record):
    """One engine in one kernel call, mean of the cores: `busy` is the share of the call's time, `slices` the percent of each of
    its equal parts, in order."""

    engine: str
    instructions: int
    busy: float
    slices: tuple[int, ...]


class TimelineInfo(Record):
    """What the engines do in one distinct kernel call, which `sites` make; modelled by an emulator, no hardware.

    `latency_us` is the modelled time of a call and `roofline_us` what the device's peaks allow. Where the call could not be
    modelled, `problem` says why, and there are no figures.
    """

    kernel: str
    form: str
    provider: str
    sites: tuple[str, ...]
    device: str
    cores: int
    shapes: dict[str, int | str]
    latency_us: float | None = None
    roofline_us: float | None = None
    bound: str = ""
    engines: tuple[EngineInfo, ...] = ()
    problem: str = ""
