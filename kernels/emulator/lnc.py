"""Running the cores of a logical core: one thread each, one at a time, handing over at barriers.

Core 0 runs until it ends or waits, then core 1, so results do not depend on thread scheduling.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .errors import EmulationError, HardwareLimit
from .machine import Machine, enter, leave


class Rendezvous:
    """Meeting point of the cores: each waits for the other, exchanging a value."""

    def __init__(self, cores: int) -> None:
        self._turn = 0
        self._cores = cores
        self._lock = threading.Condition()
        self._finished = [False] * cores
        self._failed = False
        self._arrived: list[dict[int, Any]] = [{} for _ in range(cores)]
        self._step = [0] * cores

    def start(self, core: int) -> None:
        """Wait for this core's first turn."""
        with self._lock:
            self._lock.wait_for(lambda: self._turn == core or self._failed)

    def _pass_on(self, core: int) -> None:
        others = [c for c in range(self._cores) if c != core and not self._finished[c]]
        self._turn = others[0] if others else core
        self._lock.notify_all()

    def meet(self, core: int, value: Any, instruction: str) -> list[Any]:
        """Wait until every core has reached its next exchange; return the values of all, by core."""
        with self._lock:
            step = self._step[core]
            self._step[core] += 1
            self._arrived[core][step] = value
            while not all(step in arrived for arrived in self._arrived):
                if self._failed or any(self._finished[c] and step not in self._arrived[c] for c in range(self._cores)):
                    raise EmulationError(HardwareLimit.LNC, "the other core ended without taking part", instruction)
                self._pass_on(core)
                self._lock.wait_for(lambda: self._turn == core or self._failed)
            return [arrived[step] for arrived in self._arrived]

    def finish(self, core: int, failed: bool) -> None:
        """Note the end of a core and let the other go on."""
        with self._lock:
            self._finished[core] = True
            self._failed = self._failed or failed
            self._pass_on(core)


def run_cores(machines: Sequence[Machine], body: Callable[[], Any]) -> Any:
    """Run ``body`` once on each machine; return core 0's result. The first core's error is raised."""
    if len(machines) == 1:
        token = enter(machines[0])
        try:
            return body()
        finally:
            leave(token)
    meeting = Rendezvous(len(machines))
    results: list[Any] = [None] * len(machines)
    errors: list[BaseException | None] = [None] * len(machines)

    def run(core: int) -> None:
        machines[core].barrier = meeting
        meeting.start(core)
        token = enter(machines[core])
        try:
            results[core] = body()
        except BaseException as error:
            errors[core] = error
        finally:
            leave(token)
            meeting.finish(core, errors[core] is not None)

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(run, core)) for core in range(len(machines))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = [e for e in errors if e is not None and not _follow_up(e)] or [e for e in errors if e is not None]
    if first:
        raise first[0]
    return results[0]


def _follow_up(error: BaseException) -> bool:
    return isinstance(error, EmulationError) and error.limit is HardwareLimit.LNC
