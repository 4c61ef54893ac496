"""The end of a rank whose main thread waits inside torch.

In a collective that another rank will never join, Python hears neither a signal nor that the other has failed until the wait
is over. A thread does.
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
"""How long the main thread has to hear it itself."""
_LOOK_S = 0.25
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def watched(rank_group: RankGroup, leave: Leave) -> Iterator[None]:
    """Call `leave` from a thread when this rank is told to end, or another one has failed, and the block goes on all the same.

    Args:
        rank_group: the ranks; the thread has a connection of its own, for a wait occupies that of the main thread.
        leave: ends the process. It is given the thread's group, and whether there was a signal.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are not for it
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
        with leaving:  # who leaves does not come back
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
    signalled = signalled or _signalled(
        signals, 0
    )  # all ranks get the signal; another one may have ended of it before this one did
    with leaving:
        if not done.is_set():
            leave(rank_group, signalled)


def _signalled(signals: socket.socket, wait: float) -> bool:
    """Whether a signal to end comes within `wait` seconds."""
    readable, _, _ = select.select([signals], [], [], wait)
    return bool(readable) and any(number in _SIGNALS for number in signals.recv(64))


def _failed(rank_group: RankGroup) -> bool:
    """Whether a rank has told of its failure, or nobody can tell any more."""
    from ..measure.rendezvous import END

    try:
        return any(json.loads(text)["code"] for text in rank_group.published(END).values())
    except RankError:
        return True
