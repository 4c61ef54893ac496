"""The workers of a bench, each of which waits for its turn after every run."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..crew import Crew
from ..errors import RankError
from .heard import changed, heard, latents_of
from .process import Failed, conversation
from .ranked import Together
from .runs import Runs, Variant
from .variants import Chosen, Spec

__all__ = ["SHARE", "Turns", "available_mb"]

SHARE = 0.7
"""Of the memory that is free, what the workers of all variants may take together."""


@dataclass(frozen=True)
class _Worker:
    chosen: Chosen
    events: Generator[Mapping[str, Any], None, None]
    folder: Path


class Turns:
    """Runs variants, and keeps the record of it.

    Args:
        runs: a bench in which nothing has run.
        root: an empty folder, for caches and latents.
        keep: called with all there is after every finished run and every failure.
        tell: called with the variant at work and each event of its worker.
        timeout_s: seconds that a variant may take; those in which it waits for its turn do not count.
        worker: the command that runs one variant.
        crew: the ranks; None: this process alone.
    """

    def __init__(
        self,
        runs: Runs,
        root: Path,
        keep: Callable[[Runs], None],
        tell: Callable[[Chosen, Mapping[str, Any]], None],
        timeout_s: float | None,
        worker: Sequence[str],
        crew: Crew | None,
    ) -> None:
        self.runs = runs
        self._root, self._keep, self._tell, self._timeout_s, self._command = root, keep, tell, timeout_s, worker
        self._together = Together(crew)
        self._waiting: list[_Worker] = []

    def all(self, chosen: Sequence[Chosen], alone: bool) -> None:
        """Every variant: the cold runs one after the other, then the warm ones in turn, so that what slows the machine down for
        a minute slows down all of them. One variant after the other where they work `alone`, or do not fit into memory together.

        Raises KeyboardInterrupt and RankError after `keep`.
        """
        free_mb = available_mb()
        try:
            for variant in chosen:
                worker = self._start(variant)
                if self._listen(worker, to_the_end=alone):
                    continue
                if not self._waiting and not self._fit(variant, len(chosen), free_mb):
                    alone = True
                    self._listen(worker, to_the_end=True)
                else:
                    self._waiting.append(worker)
            if len(self._waiting) > 1:
                self.runs = self.runs.model_copy(update={"in_turn": True})
            while self._waiting:
                for worker in list(self._waiting):
                    self._listen(worker)
        except (KeyboardInterrupt, RankError) as error:
            for worker in list(self._waiting):
                self._ended(worker, str(error) or "interrupted")
            raise
        finally:
            for worker in list(self._waiting):
                self._close(worker)

    def _start(self, chosen: Chosen) -> _Worker:
        self.runs = changed(self.runs, Variant(name=chosen.name, kernels=chosen.kernels))
        self._tell(chosen, {"event": "start"})
        latents = str(latents_of(self._root, chosen.name))
        spec = Spec(setup=self.runs.setup, chosen=chosen, latents=latents, meeting=self._together.begin())
        folder = self._root / f"{len(self.runs.variants)}.work"
        folder.mkdir()
        talk = conversation(spec.model_dump_json(), folder, self._timeout_s, self._command, self._together.watch)
        return _Worker(chosen, talk, folder)

    def _listen(self, worker: _Worker, to_the_end: bool = False) -> bool:
        """Until the worker has finished a run and has another one to do, or to its end. Whether that is reached."""
        failure = None
        try:
            for event in worker.events:
                self._tell(worker.chosen, event)
                self.runs = heard(self.runs, worker.chosen.name, event, self._root)
                if event["event"] != "run":
                    continue
                self._keep(self.runs)
                if not to_the_end and len(self._variant(worker).runs) < self.runs.setup.runs:
                    return False
        except Failed as error:
            failure = error
        except (KeyboardInterrupt, RankError) as error:
            self._ended(worker, str(error) or "interrupted")
            raise
        self._settle(worker, failure)
        return True

    def _settle(self, worker: _Worker, failure: Failed | None) -> None:
        """The worker has ended: on several ranks, how did it on the others?"""
        self._close(worker)
        try:
            failure = self._together.end(failure)
        except (KeyboardInterrupt, RankError) as error:
            self._ended(worker, str(error) or "interrupted")
            raise
        if failure is not None:
            self._ended(worker, str(failure))

    def _ended(self, worker: _Worker, error: str) -> None:
        """What stopped a worker goes to its variant."""
        self._close(worker)
        self.runs = changed(self.runs, self._variant(worker).model_copy(update={"error": error}))
        self._keep(self.runs)

    def _close(self, worker: _Worker) -> None:
        self._waiting = [w for w in self._waiting if w is not worker]
        worker.events.close()
        shutil.rmtree(worker.folder, ignore_errors=True)

    def _variant(self, worker: _Worker) -> Variant:
        return next(v for v in self.runs.variants if v.name == worker.chosen.name)

    def _fit(self, first: Chosen, count: int, free_mb: float) -> bool:
        """Whether as many workers as large as the first one fit into memory."""
        peak = next(v.peak_rss_mb for v in self.runs.variants if v.name == first.name)
        return count * (peak or free_mb) <= SHARE * free_mb


def available_mb(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float:
    """Memory that programs can have without swapping, MB (10^6 bytes); 0 where the system does not tell, as outside Linux.

    Not more than what a control group has left (version 2: `memory.max`, `memory.current`).
    """
    try:
        lines = dict(line.split(":", 1) for line in proc.read_text().splitlines() if ":" in line)
        free = float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return 0.0
    with contextlib.suppress(OSError, ValueError):  # no limit is "max"
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return max(0.0, free / 1e6)
