"""The workers of a bench, each of which waits for its turn after every run."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cost.runs import Runs, Variant
from ...errors import RankError
from ..rendezvous import RankGroup
from .events import apply_event, beside, changed, latents_of
from .ranks import Together
from .variants import Chosen, Spec
from .worker_process import WorkerFailed, conversation

__all__ = ["SHARE", "WorkerScheduler", "available_mb"]

SHARE = 0.7
"""Of the memory that is free, what the workers of all variants may take together."""


@dataclass(frozen=True)
class _Worker:
    """`is_shared_baseline`: it can do more runs than were asked for, beside other variants."""

    chosen: Chosen
    events: Generator[Mapping[str, Any], None, None]
    folder: Path
    is_shared_baseline: bool


class WorkerScheduler:
    """Runs variants, and keeps the record of it.

    Args:
        runs: a bench in which nothing has run.
        root: an empty folder, for caches and latents.
        keep: called with all there is after every finished run and every failure.
        tell: called with the variant at work and each event of its worker.
        timeout_s: seconds that a variant may take; those in which it waits for its turn do not count.
        worker: the command that runs one variant.
        rank_group: the ranks; None: this process alone.
    """

    def __init__(
        self,
        runs: Runs,
        root: Path,
        keep: Callable[[Runs], None],
        report_event: Callable[[Chosen, Mapping[str, Any]], None],
        timeout_s: float | None,
        worker: Sequence[str],
        rank_group: RankGroup | None,
    ) -> None:
        self.runs = runs
        self._root, self._keep, self._report_event, self._timeout_s, self._command = (
            root,
            keep,
            report_event,
            timeout_s,
            worker,
        )
        self._together = Together(rank_group)
        self._waiting: list[_Worker] = []

    def run_all(self, chosen: Sequence[Chosen], alone: bool) -> None:
        """Every variant: the cold runs one after the other, then the warm ones in turn, so that what slows the machine down for
        a minute slows down all of them. Where they do not fit into memory together, as many at a time as do, each time beside
        vanilla, if that comes first. One variant after the other where they work `alone`, or no two fit.

        Raises KeyboardInterrupt and RankError after `keep`.
        """
        free_mb, room = available_mb(), len(chosen)
        try:
            for place, variant in enumerate(chosen):
                later = 0 if alone or self._waiting else len(chosen) - place - 1
                worker = self._start(variant, later)
                if self._listen(worker, to_the_end=alone):
                    continue
                if not self._waiting:
                    room = self._room(worker, len(chosen), free_mb)
                if room == 1:
                    alone = True
                    self._listen(worker, to_the_end=True)
                    continue
                self._waiting.append(worker)
                if len(self._waiting) == room:
                    self._warm()
            self._warm()
        except (KeyboardInterrupt, RankError) as error:
            for worker in list(self._waiting):
                self._stopped(worker, error)
            raise
        finally:
            for worker in list(self._waiting):
                self._close(worker)

    def _warm(self) -> None:
        """The warm runs of all that wait, in turn, until only the one is left that stays."""
        if len(self._waiting) > 1:
            self.runs = self.runs.model_copy(update={"in_turn": True})
        while any(not (w.is_shared_baseline and self._complete(w)) for w in self._waiting):
            for worker in list(self._waiting):
                self._listen(worker)

    def _start(self, chosen: Chosen, later: int) -> _Worker:
        """Start the worker of a variant, which stays for up to `later` other ones if it is vanilla."""
        self.runs = changed(self.runs, Variant(name=chosen.name, kernels=chosen.kernels))
        self._report_event(chosen, {"event": "start"})
        setup, timeout_s = self.runs.setup, self._timeout_s
        is_shared_baseline = later > 1 and chosen.name == "vanilla" and setup.runs > 1
        if is_shared_baseline:
            runs = 1 + later * (setup.runs - 1)
            timeout_s = None if timeout_s is None else timeout_s * runs / setup.runs
            setup = setup.model_copy(update={"runs": runs})
        latents = str(latents_of(self._root, chosen.name))
        spec = Spec(setup=setup, chosen=chosen, latents=latents, meeting=self._together.begin())
        folder = self._root / f"{len(self.runs.variants)}.work"
        folder.mkdir()
        talk = conversation(spec.model_dump_json(), folder, timeout_s, self._command, self._together.watch)
        return _Worker(chosen, talk, folder, is_shared_baseline)

    def _listen(self, worker: _Worker, to_the_end: bool = False) -> bool:
        """Until the worker has finished a run and has another one to do, or to its end. Whether that is reached."""
        failure = None
        try:
            for event in worker.events:
                self._report_event(worker.chosen, event)
                if worker.is_shared_baseline and self._complete(worker):
                    others = [w.chosen.name for w in self._waiting if w is not worker]
                    self.runs = beside(self.runs, others, event)
                else:
                    self.runs = apply_event(self.runs, worker.chosen.name, event, self._root)
                if event["event"] != "run":
                    continue
                self._keep(self.runs)
                if not to_the_end and (worker.is_shared_baseline or not self._complete(worker)):
                    return False
                if worker.is_shared_baseline and self._complete(worker):
                    break
        except WorkerFailed as error:
            failure = error
        except (KeyboardInterrupt, RankError) as error:
            self._stopped(worker, error)
            raise
        self._settle(worker, failure)
        return True

    def _settle(self, worker: _Worker, failure: WorkerFailed | None) -> None:
        """The worker has ended: on several ranks, how did it on the others?"""
        self._close(worker)
        try:
            failure = self._together.end(failure)
        except (KeyboardInterrupt, RankError) as error:
            self._stopped(worker, error)
            raise
        if failure is not None:
            self._ended(worker, str(failure))

    def _stopped(self, worker: _Worker, error: BaseException) -> None:
        """All ends. A worker that stays for others has done what was asked for."""
        if worker.is_shared_baseline and self._complete(worker):
            self._close(worker)
        else:
            self._ended(worker, str(error) or "interrupted")

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
        return self.runs.named(worker.chosen.name)

    def _complete(self, worker: _Worker) -> bool:
        """Whether its variant has all the runs that were asked for."""
        return len(self._variant(worker).runs) >= self.runs.setup.runs

    def _room(self, first: _Worker, count: int, free_mb: float) -> int:
        """How many of `count` workers as large as the first one may be there at once: all, some if the first one stays, or 1."""
        fit = int(SHARE * free_mb // (self._variant(first).peak_rss_mb or free_mb or 1.0))
        if fit >= count:
            return count
        return max(1, fit) if first.is_shared_baseline else 1


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
