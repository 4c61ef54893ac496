"""Ranks as threads of this process, which tell each other by a store in its memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from fluxrewrite.measure.rendezvous import RankGroup
from fluxrewrite.parallel import Ranks


def rank_groups(world: int, wait_s: float = 10) -> list[RankGroup]:
    """A rank group for each rank."""
    store = dist.HashStore()
    return [RankGroup(Ranks(rank, world), store, wait_s) for rank in range(world)]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each of some calls answers, or the error that it raises; all run at the same time."""
    found: list[Any] = [None] * len(calls)

    def run(number: int, call: Callable[[], Any]) -> None:
        try:
            found[number] = call()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(t.is_alive() for t in threads), "a rank hangs"
    return found
