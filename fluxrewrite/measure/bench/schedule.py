"""The order in which the workers of a bench run.

On a shared machine, one slow minute made a variant that ran alone twice as slow as vanilla. So each worker waits for its turn
after every run, and warm runs alternate between variants: what slows the machine down then slows down all of them. Workers that
wait stay in memory. Where they do not fit together, groups of them run in turn, each group with vanilla in it, since the same
kernels came out at 0.962 and 0.992 of vanilla in two benches an hour apart.
"""

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
from .events import add_baseline_run, apply_event, changed, latents_of
from .ranks import Together
from .variants import Chosen, Spec
from .worker_process import WorkerFailed, conversation

__all__ = ["SHARE", "WorkerScheduler", "available_mb"]

SHARE = 0.7
"""The fraction of the available memory that all workers together may take."""


@dataclass(frozen=True)
class _Worker:
    """A running worker.

    Attributes:
        chosen: its variant.
        events: the conversation with it.
        folder: its caches and its log.
        is_shared_baseline: it is vanilla, and stays after its own runs to run in turn with groups of later variants.
    """

    chosen: Chosen
    events: Generator[Mapping[str, Any], None, None]
    folder: Path
    is_shared_baseline: bool


class WorkerScheduler:
    """Runs variants and keeps the record.

    Args:
        runs: the record before anything has run.
        root: an empty folder, for caches and latents.
        keep: called with the whole record after every finished run and every failure.
        report_event: called with a variant and each event of its worker.
        timeout_s: seconds that a variant may take, without those in which it waits for its turn; None for no limit.
        worker: the command that runs one variant.
        rank_group: the ranks; None for a single process.

    Attributes:
        runs: the record so far.
    """

    def __init__(
        self,
        runs: Runs,
        root: Path,
        *,
        keep: Callable[[Runs], None],
        report_event: Callable[[Chosen, Mapping[str, Any]], None],
        timeout_s: float | None,
        worker: Sequence[str],
        rank_group: RankGroup | None,
    ) -> None:
        self.runs = runs
        self._root, self._keep, self._report_event = root, keep, report_event
        self._timeout_s, self._command = timeout_s, worker
        self._together = Together(rank_group)
        self._waiting: list[_Worker] = []

    def run_all(self, chosen: Sequence[Chosen], alone: bool) -> None:
        """Run every variant: first the cold runs, one after the other, then the warm ones in turn.

        If the workers do not fit into memory together, as many at a time as fit run in turn, each time with vanilla if that is the
        first variant. Otherwise, and if no two fit, one variant after the other.

        Args:
            chosen: the variants, in order.
            alone: run one variant after the other in any case.

        Raises:
            KeyboardInterrupt, RankError: after `keep` has been called with what finished.
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
        """Do the warm runs of all waiting workers, in turn, until at most the shared baseline is left."""
        if len(self._waiting) > 1:
            self.runs = self.runs.model_copy(update={"in_turn": True})
        while any(not (w.is_shared_baseline and self._complete(w)) for w in self._waiting):
            for worker in list(self._waiting):
                self._listen(worker)

    def _start(self, chosen: Chosen, later: int) -> _Worker:
        """Start the worker of a variant. If that is vanilla, it can do the runs that `later` further variants need it for.

        With a single later variant there is nothing to share: both are in the same group.
        """
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
        """Follow a worker until it has finished a run and has more to do, or to its end.

        Args:
            worker: the worker.
            to_the_end: do not stop after a run.

        Returns:
            Whether the worker has ended.
        """
        failure = None
        try:
            for event in worker.events:
                self._report_event(worker.chosen, event)
                if worker.is_shared_baseline and self._complete(worker):
                    others = [w.chosen.name for w in self._waiting if w is not worker]
                    self.runs = add_baseline_run(self.runs, others, event)
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
        """Record how a worker ended; on several ranks, as they agree on it."""
        self._close(worker)
        try:
            failure = self._together.end(failure)
        except (KeyboardInterrupt, RankError) as error:
            self._stopped(worker, error)
            raise
        if failure is not None:
            self._ended(worker, str(failure))

    def _stopped(self, worker: _Worker, error: BaseException) -> None:
        """Record that the bench was stopped. A shared baseline that has finished its own runs did not fail."""
        if worker.is_shared_baseline and self._complete(worker):
            self._close(worker)
        else:
            self._ended(worker, str(error) or "interrupted")

    def _ended(self, worker: _Worker, error: str) -> None:
        """Record an error for the variant of a worker."""
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
        """Whether the variant has all of its own runs."""
        return len(self._variant(worker).runs) >= self.runs.setup.runs

    def _room(self, first: _Worker, count: int, free_mb: float) -> int:
        """How many of `count` workers fit into memory at once, each taken to be as large as the first.

        The answer is 1 if not all of them fit and the first is no shared baseline: groups without vanilla in them would be timed
        in different minutes and could not be compared.
        """
        fit = int(SHARE * free_mb // (self._variant(first).peak_rss_mb or free_mb or 1.0))
        if fit >= count:
            return count
        return max(1, fit) if first.is_shared_baseline else 1


def available_mb(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float:
    """Memory available without swapping, in MB (10^6 bytes); 0 if the system does not report it, as outside Linux.

    A control group may leave less (version 2: `memory.max`, `memory.current`), as containers often do.
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
