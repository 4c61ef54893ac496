"""What other programs do to the machine while something is timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["Load"]

_LEAST_S = 0.2
"""Below this the kernel's ticks of 10 ms say nothing."""


class Load:
    """From its making on: the share of all processors that other programs used.

    Args:
        stat: the kernel's counters, as Linux has them.
    """

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._start = self._now()
        self._begun_s = time.process_time()

    def own_s(self) -> float:
        """Seconds of processors that this process used."""
        return time.process_time() - self._begun_s

    def others(self, ours_s: float = 0.0) -> float | None:
        """0 to 1; time that a hypervisor took away counts. None where the system does not tell, or too little time passed.

        Args:
            ours_s: seconds of processors that were used by processes which are no others.
        """
        now = self._now()
        if now is None or self._start is None:
            return None
        wall, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        if wall < _LEAST_S:
            return None
        return round(min(1.0, max(0.0, (busy - own - ours_s) / (wall * (os.cpu_count() or 1)))), 3)

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds: of the clock, of all processors at work, of this process."""
        try:
            fields = self._stat.read_text().split("\n", 1)[0].split()[1:9]
            user, nice, system, _, _, irq, softirq, steal = map(int, fields)
        except (OSError, ValueError):
            return None
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()
