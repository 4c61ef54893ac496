"""A bench on several ranks: each runs its own workers, all agree on how a variant ended, and figures cover all ranks."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from ...parallel import Ranks, process_group
from ..rendezvous import AFTER_FAILURE_S, RankGroup, RendezvousAddress
from .machine_load import Load
from .worker_process import WorkerFailed

__all__ = ["Together", "joined", "pooled"]


class Together:
    """Keeps the parent processes of all ranks in step, one variant after the other.

    Args:
        rank_group: the ranks; None for a single process, for which every method is trivial.
    """

    def __init__(self, rank_group: RankGroup | None) -> None:
        self._rank_group = rank_group
        self._number = 0

    @property
    def world(self) -> int:
        """The number of ranks."""
        return 1 if self._rank_group is None else self._rank_group.here.world

    def begin(self) -> RendezvousAddress | None:
        """Start a new variant. Returns the address at which its workers meet; None for a single process."""
        self._number += 1
        return None if self._rank_group is None else self._rank_group.meeting(f"{self._what}/group")

    def watch(self) -> None:
        """Raise WorkerFailed once the variant has failed on another rank.

        This rank's worker may be inside a collective that the failed worker will never join, and would wait for its timeout.
        """
        if self._rank_group is None:
            return
        for rank, text in self._rank_group.published(self._what).items():
            if json.loads(text)["error"] is not None:
                raise WorkerFailed(f"was running when rank {rank} failed", lost=True)

    def end(self, failure: WorkerFailed | None) -> WorkerFailed | None:
        """Agree on how the variant ended. Every rank returns the same failure, or None.

        The failure is the first cause, which is one that did not follow from another rank. If every rank only reports that
        another one failed, as when a worker hangs, it lists all of them.

        Args:
            failure: how this rank's worker failed, None if it finished.

        Raises:
            RankError: a rank does not report how it ended.
        """
        if self._rank_group is None:
            return failure
        mine = {"error": None if failure is None else str(failure), "lost": failure is not None and failure.lost}
        ends = self._rank_group.gather(self._what, json.dumps(mine), None if failure is None else AFTER_FAILURE_S)
        failed = {rank: end for rank, end in enumerate(map(json.loads, ends)) if end["error"] is not None}
        if not failed:
            return None
        causes = [f"rank {rank}: {end['error']}" for rank, end in failed.items() if not end["lost"]]
        if not causes:
            return WorkerFailed("; ".join(f"rank {rank}: {end['error']}" for rank, end in failed.items()), lost=True)
        everywhere = len(causes) == len(ends) and len({end["error"] for end in failed.values()}) == 1
        return WorkerFailed(failed[0]["error"] if everywhere else causes[0])

    @property
    def _what(self) -> str:
        return f"variant {self._number}"


@contextlib.contextmanager
def joined(meeting: RendezvousAddress | None) -> Iterator[Ranks | None]:
    """The process group of a variant's workers; yields None for a single process.

    Raises RankError as `parallel.process_group` does.
    """
    if meeting is None:
        yield None
        return
    with process_group(meeting.rank, meeting.world, meeting.store(), meeting.wait_s) as here:
        yield here


def pooled(here: Ranks | None, run: Mapping[str, Any], load: Load) -> dict[str, Any]:
    """The fields of a "run" event for all ranks together; they are the same on every rank, except for `others`.

    The time of a step is that of the slowest rank. Peaks are those of the largest rank, and `peak_rss_sum_mb` is their sum.

    Args:
        here: this rank, None for a single process.
        run: `steps_s` (seconds), `peak_rss_mb`, `peak_device_mb` (10^6 bytes) and `output` of this rank.
        load: of this rank since the run began. Other ranks on the same machine do not count as other programs.
    """
    if here is None:
        return {**run, "others": load.others()}
    everyone: list[Any] = [None] * here.world
    host = socket.gethostname()
    dist.all_gather_object(everyone, {**run, "host": host, "own_s": load.own_s()})
    elsewhere = sum(r["own_s"] for rank, r in enumerate(everyone) if r["host"] == host and rank != here.rank)
    device = [r["peak_device_mb"] for r in everyone if r["peak_device_mb"] is not None]
    return {
        "steps_s": [max(step) for step in zip(*(r["steps_s"] for r in everyone), strict=True)],
        "peak_rss_mb": max(r["peak_rss_mb"] for r in everyone),
        "peak_rss_sum_mb": round(sum(r["peak_rss_mb"] for r in everyone), 1),
        "peak_device_mb": max(device, default=None),
        "output": _output([r["output"] for r in everyone]),
        "others": load.others(elsewhere),
    }


def _output(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The output of the first rank, which is finite only if it is finite on all ranks."""
    return {**outputs[0], "finite": all(o["finite"] for o in outputs)}
