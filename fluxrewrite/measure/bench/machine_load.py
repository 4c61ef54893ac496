"""How busy other programs keep the machine while something is timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["Load"]

_LEAST_S = 0.2
"""Linux counts processor time in ticks of 10 ms; over a shorter time than this they are too coarse."""


class Load:
    """The share of all processors that other programs used, measured from the moment the object is created.

    Args:
        stat: the counters of the Linux kernel.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._start = self._now()
        self._begun_s = time.process_time()

    def own_s(self) -> float:
        """Processor time that this process used, in seconds."""
        return time.process_time() - self._begun_s

    def others(self, ours_s: float = 0.0) -> float | None:
        """The share, from 0 to 1. Time that a hypervisor took away (steal) counts as used by others.

        None if the system has no such counters, or too little time has passed.

        Args:
            ours_s: processor time in seconds of further processes that belong to the measurement, such as other ranks.
        """
        now = self._now()
        if now is None or self._start is None:
            return None
        wall, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        if wall < _LEAST_S:
            return None
        return round(min(1.0, max(0.0, (busy - own - ours_s) / (wall * (os.cpu_count() or 1)))), 3)

    def _now(self) -> tuple[float, float, float] | None:
        """Three times in seconds: wall clock, busy time of all processors, processor time of this process."""
        try:
            fields = self._stat.read_text().split("\n", 1)[0].split()[1:9]
            user, nice, system, _, _, irq, softirq, steal = map(int, fields)
        except (OSError, ValueError):
            return None
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()
