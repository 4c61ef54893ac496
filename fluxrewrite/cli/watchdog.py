"""End a rank whose main thread is blocked inside torch.

While the main thread waits in a collective that another rank will never join, Python runs no signal handler, and nothing notices
that the other rank has failed. A thread can do both.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import RankError

if TYPE_CHECKING:
    from ..measure.rendezvous import RankGroup

__all__ = ["watched"]

Leave = Callable[["RankGroup", bool], None]

GRACE_S = 5.0
"""Seconds that the main thread has to end by itself, after a signal or the failure of another rank."""
_LOOK_S = 0.25
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def watched(rank_group: RankGroup, leave: Leave) -> Iterator[None]:
    """Call `leave` from a thread if the block is still running `GRACE_S` after a signal or the failure of another rank.

    Args:
        rank_group: the ranks. The thread gets a connection of its own, because a wait occupies that of the main thread.
        leave: ends the process. It is called with the thread's group, and whether there was a signal.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    done, leaving = threading.Event(), threading.Lock()
    thread = threading.Thread(target=_watch, args=(rank_group.twin(), ours, done, leaving, leave), daemon=True)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        done.set()
        with leaving:  # not while the thread is ending the process
            signal.set_wakeup_fd(before)
        thread.join()
        ours.close()
        theirs.close()


def _watch(
    rank_group: RankGroup, signals: socket.socket, done: threading.Event, leaving: threading.Lock, leave: Leave
) -> None:
    signalled = False
    while not done.is_set():
        signalled = _signalled(signals, _LOOK_S)
        if signalled or _failed(rank_group):
            break
    if done.wait(GRACE_S):
        return
    # All ranks get a signal, and another one may have ended of it before this one noticed its own.
    signalled = signalled or _signalled(signals, 0)
    with leaving:
        if not done.is_set():
            leave(rank_group, signalled)


def _signalled(signals: socket.socket, wait: float) -> bool:
    """Whether a signal to end arrives within `wait` seconds."""
    readable, _, _ = select.select([signals], [], [], wait)
    return bool(readable) and any(number in _SIGNALS for number in signals.recv(64))


def _failed(rank_group: RankGroup) -> bool:
    """Whether a rank has published a failure, or the store is gone."""
    from ..measure.rendezvous import END

    try:
        return any(json.loads(text)["code"] for text in rank_group.published(END).values())
    except RankError:
        return True
