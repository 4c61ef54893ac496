"""A bench on several ranks: each runs its own workers, all agree how a variant ended, and figures are those of all."""

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
    """The parents of the workers of one variant after the other; with a group of None a single one.

    Args:
        rank_group: the ranks.
    """

    def __init__(self, rank_group: RankGroup | None) -> None:
        self._rank_group = rank_group
        self._number = 0

    @property
    def world(self) -> int:
        """How many ranks."""
        return 1 if self._rank_group is None else self._rank_group.here.world

    def begin(self) -> RendezvousAddress | None:
        """A new variant: where its workers meet."""
        self._number += 1
        return None if self._rank_group is None else self._rank_group.meeting(f"{self._what}/group")

    def watch(self) -> None:
        """Raise Failed once another rank has told that the variant failed there: this one's worker may be waiting for it."""
        if self._rank_group is None:
            return
        for rank, text in self._rank_group.published(self._what).items():
            if json.loads(text)["error"] is not None:
                raise WorkerFailed(f"was at work when rank {rank} failed", lost=True)

    def end(self, failure: WorkerFailed | None) -> WorkerFailed | None:
        """Why the variant failed, the same on all ranks: the first reason that is not the failure of another rank; all of them
        where there is none, as when one stands still.

        Raises RankError when a rank does not tell how it ended.
        """
        if self._rank_group is None:
            return failure
        mine = {"error": None if failure is None else str(failure), "lost": failure is not None and failure.lost}
        told = self._rank_group.gather(self._what, json.dumps(mine), None if failure is None else AFTER_FAILURE_S)
        failed = {rank: end for rank, end in enumerate(map(json.loads, told)) if end["error"] is not None}
        if not failed:
            return None
        causes = [f"rank {rank}: {end['error']}" for rank, end in failed.items() if not end["lost"]]
        if not causes:
            return WorkerFailed("; ".join(f"rank {rank}: {end['error']}" for rank, end in failed.items()), lost=True)
        everywhere = len(causes) == len(told) and len({end["error"] for end in failed.values()}) == 1
        return WorkerFailed(failed[0]["error"] if everywhere else causes[0])

    @property
    def _what(self) -> str:
        return f"variant {self._number}"


@contextlib.contextmanager
def joined(meeting: RendezvousAddress | None) -> Iterator[Ranks | None]:
    """The process group of the workers of a variant; None where there is only this one.

    Raises RankError as `parallel.process_group` does.
    """
    if meeting is None:
        yield None
        return
    with process_group(meeting.rank, meeting.world, meeting.store(), meeting.wait_s) as here:
        yield here


def pooled(here: Ranks | None, run: Mapping[str, Any], load: Load) -> dict[str, Any]:
    """An event "run" that speaks of all ranks: every rank gets the same but for `others`.

    A step takes as long as on the slowest rank. Peaks are those of the largest rank; `peak_rss_sum_mb` is the sum of all.

    Args:
        here: this rank, None where there is only one.
        run: `steps_s`, `peak_rss_mb`, `peak_device_mb` and `output` of this rank.
        load: of this rank since the run began. Other ranks on this machine are no other programs.
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
    """Of the first rank; finite only if it is on all."""
    return {**outputs[0], "finite": all(o["finite"] for o in outputs)}
