"""A command under torchrun: every rank runs it, one speaks for all."""

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

_SPOKEN = "spoken"
_SPEAKER_S = 10.0
"""How long a rank that has failed stays for the one that speaks: when one has gone torchrun ends the others."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as torchrun sends it to all ranks when one of them ends."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM end the work as Ctrl-C does, with what was started gone and what has finished kept."""
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
    """Whether this process prints and writes files."""
    return rank_group is None or rank_group.here.leads


@contextlib.contextmanager
def ranked(tp: int | None, wait_s: float) -> Iterator[RankGroup | None]:
    """The ranks, where torchrun started several of them; None for one process. An error in the block is told once, by one rank.

    Args:
        tp: how many ranks there have to be, None where it was not said.
        wait_s: seconds that a rank waits for another.

    Raises:
        InputError: `tp` says something else than torchrun, or `wait_s` is no time.
        typer.Exit: on every rank, when one of several has failed; the reason is told by then.
    """
    if not wait_s > 0:
        raise InputError(f"--rank-timeout {wait_s:g}: more than 0 seconds")
    if tp is not None and tp < 1:
        raise InputError(f"--tp {tp}: 1 or more")
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
            _tell(rank_group, _End(0))
            return
        except (FluxrewriteError, typer.Abort, KeyboardInterrupt) as error:
            code = _all_ended(rank_group, _end_of(error))
    if threading.current_thread() is threading.main_thread():
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # torchrun tells ranks to end that are about to, each with its exit code
    raise typer.Exit(code)


@dataclass(frozen=True)
class _End:
    """How a rank ended: its exit code, what there is to say, and whether it only followed from another rank's end."""

    code: int
    lines: tuple[str, ...] = ()
    follows: bool = False


def _end_of(error: BaseException) -> _End:
    if isinstance(error, (Terminated, KeyboardInterrupt, typer.Abort)):
        told = isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)
        why = ": torchrun ends all ranks when one of them ends, which its report names, or when it is ended itself"
        return _End(130, (f"interrupted{why if told else ''}",), True)
    if isinstance(error, CheckFailed):
        return _End(1, tuple(map(str, error.args)))
    return _End(2 if isinstance(error, InputError) else 1, (str(error),), isinstance(error, RankError))


def leave(rank_group: RankGroup, signalled: bool) -> None:
    """End this process, for `watched`: because of a signal, or because another rank has failed."""
    why = "interrupted" if signalled else "another rank failed or torchrun ended"
    os._exit(_all_ended(rank_group, _End(130 if signalled else 1, (why,), True)))


def _tell(rank_group: RankGroup, end: _End) -> None:
    """Tell how this rank ended, as far as there is still somebody to tell."""
    from ..measure.rendezvous import END

    with contextlib.suppress(RankError):
        rank_group.publish(END, json.dumps(asdict(end)))


def _all_ended(rank_group: RankGroup, mine: _End) -> int:
    """Have one rank say why all end, the lowest of those that can; the exit code.

    The cause is the end of a rank that does not follow from another's.
    """
    _tell(rank_group, mine)
    ends = {**_ends(rank_group, mine), rank_group.here.rank: mine}
    failed = {rank: end for rank, end in ends.items() if end.code}
    rank = next((rank for rank, end in failed.items() if not end.follows), rank_group.here.rank)
    cause, speaker = failed[rank], min(failed)
    if rank_group.here.rank != speaker:
        _listen(rank_group, speaker, _SPOKEN)
        return cause.code
    foreign = cause.lines != mine.lines
    for line in cause.lines:
        sys.stderr.write(f"fluxrewrite: {f'rank {rank}: ' if foreign else ''}{' '.join(line.split())}\n")
    sys.stderr.flush()
    with contextlib.suppress(RankError):
        rank_group.publish(_SPOKEN, "")
    return cause.code


def _ends(rank_group: RankGroup, mine: _End) -> dict[int, _End]:
    """How the ranks ended, in order of ranks, as far as they tell in time.

    Signals are for all ranks: once there was one the first rank waits for nobody, for a rank with a reason has told it before,
    and the others wait only for the first, which may have a table to print.
    """
    from ..measure.rendezvous import AFTER_FAILURE_S, END

    try:
        try:
            if mine.code != 130:
                told = rank_group.await_all(END, AFTER_FAILURE_S)
            else:
                _listen(rank_group, 0, END)
                told = rank_group.published(END)
        except KeyboardInterrupt:
            told = rank_group.published(END)
    except RankError:
        return {}
    return {rank: _End(**json.loads(text)) for rank, text in told.items()}


def _listen(rank_group: RankGroup, to: int, what: str) -> None:
    """Return when a rank has told, nobody can tell any more, or it takes too long."""
    deadline = time.monotonic() + _SPEAKER_S
    with contextlib.suppress(RankError, KeyboardInterrupt):
        while to not in rank_group.published(what) and time.monotonic() < deadline:
            time.sleep(0.05)
