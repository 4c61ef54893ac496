"""Commands under torchrun: every rank runs the command, and one rank reports for all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from ..errors import CheckFailed, FluxrewriteError, InputError, RankError
from .common import progress

if TYPE_CHECKING:
    from ..measure.rendezvous import RankGroup

__all__ = ["Terminated", "leads", "leave", "ranked", "terminable"]

_REPORTED = "reported"
_REPORTER_S = 10.0
"""Seconds that a failed rank waits for the reporting one. It must not exit earlier: torchrun then kills the other ranks."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which torchrun sends to all ranks when one of them ends."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: children are ended, and finished work is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leads(rank_group: RankGroup | None) -> bool:
    """Whether this process prints and writes files, as the first rank or a single process does."""
    return rank_group is None or rank_group.here.leads


@contextlib.contextmanager
def ranked(tp: int | None, wait_s: float) -> Iterator[RankGroup | None]:
    """Yield the ranks that torchrun started; None for a single process. An error in the block is reported once, by one rank.

    Args:
        tp: number of ranks that there have to be; None for any.
        wait_s: seconds that a rank waits for another.

    Raises:
        InputError: `tp` differs from the number that torchrun started, or `wait_s` is not positive.
        typer.Exit: on every rank, when one of several has failed; the reason has been printed by then.
    """
    if not wait_s > 0:
        raise InputError(f"--rank-timeout {wait_s:g}: must be more than 0 seconds")
    if tp is not None and tp < 1:
        raise InputError(f"--tp {tp}: must be 1 or more")
    with progress("loading torch", os.environ.get("RANK", "0") == "0"):
        from ..measure.rendezvous import meet

        rank_group = meet(wait_s=wait_s)
    if rank_group is None:
        if tp is not None and tp > 1:
            raise InputError(f"--tp {tp}: ranks are processes; run torchrun --nproc-per-node {tp} -m fluxrewrite ...")
        yield None
        return
    with terminable():
        try:
            if tp not in (None, rank_group.here.world):
                raise InputError(f"--tp {tp}, but torchrun started {rank_group.here.world} ranks; leave --tp out")
            yield rank_group
            _publish_end(rank_group, _End(0))
            return
        except (FluxrewriteError, typer.Abort, KeyboardInterrupt) as error:
            code = _all_ended(rank_group, _end_of(error))
    if threading.current_thread() is threading.main_thread():
        # torchrun sends SIGTERM once a rank has exited; this one is about to, and would lose its own exit code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise typer.Exit(code)


@dataclass(frozen=True)
class _End:
    """How a rank ended.

    Attributes:
        code: its exit code.
        lines: what to print on stderr.
        follows: it ended only because another rank did, so its reason is not the cause.
    """

    code: int
    lines: tuple[str, ...] = ()
    follows: bool = False


def _end_of(error: BaseException) -> _End:
    if isinstance(error, (Terminated, KeyboardInterrupt, typer.Abort)):
        sent = isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)
        why = (
            ": torchrun ends all ranks when one of them ends, which it names in its report, or when it is ended itself"
        )
        return _End(130, (f"interrupted{why if sent else ''}",), follows=True)
    if isinstance(error, CheckFailed):
        return _End(1, tuple(map(str, error.args)))
    code = 2 if isinstance(error, InputError) else 1
    return _End(code, (str(error),), follows=isinstance(error, RankError))


def leave(rank_group: RankGroup, signalled: bool) -> None:
    """Exit this process, because of a signal or because another rank has failed. `watched` calls it from its thread."""
    why = "interrupted" if signalled else "another rank failed or torchrun ended"
    os._exit(_all_ended(rank_group, _End(130 if signalled else 1, (why,), follows=True)))


def _publish_end(rank_group: RankGroup, end: _End) -> None:
    """Publish how this rank ended; if the store is gone, no other rank is left to read it."""
    from ..measure.rendezvous import END

    with contextlib.suppress(RankError):
        rank_group.publish(END, json.dumps(asdict(end)))


def _all_ended(rank_group: RankGroup, mine: _End) -> int:
    """Agree on why all ranks end, let the lowest failed rank print it, and return the exit code.

    The cause is the end of the lowest rank that did not just follow another.
    """
    _publish_end(rank_group, mine)
    ends = {**_ends(rank_group, mine), rank_group.here.rank: mine}
    failed = {rank: end for rank, end in ends.items() if end.code}
    rank = next((rank for rank, end in failed.items() if not end.follows), rank_group.here.rank)
    cause, reporter = failed[rank], min(failed)
    if rank_group.here.rank != reporter:
        _wait_for(rank_group, reporter, _REPORTED)
        return cause.code
    foreign = cause.lines != mine.lines
    for line in cause.lines:
        sys.stderr.write(f"fluxrewrite: {f'rank {rank}: ' if foreign else ''}{' '.join(line.split())}\n")
    sys.stderr.flush()
    with contextlib.suppress(RankError):
        rank_group.publish(_REPORTED, "")
    return cause.code


def _ends(rank_group: RankGroup, mine: _End) -> dict[int, _End]:
    """How the ranks ended, by rank, for those that published it in time.

    A signal reaches all ranks, so after one there is little to wait for: a rank with a reason of its own has published it before.
    The first rank does not wait at all, and the others wait only for the first, which may still print a table.
    """
    from ..measure.rendezvous import AFTER_FAILURE_S, END

    try:
        try:
            if mine.code != 130:
                published = rank_group.await_all(END, AFTER_FAILURE_S)
            else:
                _wait_for(rank_group, 0, END)
                published = rank_group.published(END)
        except KeyboardInterrupt:
            published = rank_group.published(END)
    except RankError:
        return {}
    return {rank: _End(**json.loads(text)) for rank, text in published.items()}


def _wait_for(rank_group: RankGroup, rank: int, what: str) -> None:
    """Wait until a rank has published `what`, the store is gone, or `_REPORTER_S` is over."""
    deadline = time.monotonic() + _REPORTER_S
    with contextlib.suppress(RankError, KeyboardInterrupt):
        while rank not in rank_group.published(what) and time.monotonic() < deadline:
            time.sleep(0.05)
