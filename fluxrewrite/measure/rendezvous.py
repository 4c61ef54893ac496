"""How the processes that torchrun started exchange messages: through torchrun's own store, without collectives.

A process group does not notice that one of its ranks failed: the others stay blocked in their collective. Here every wait polls
the store instead, so that a signal or the end of another rank ends it at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TypeVar

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from ..cost.data_files import DataRecord
from ..errors import FluxrewriteError, InputError, RankError, one_line
from ..parallel import Ranks, ranks

__all__ = ["AFTER_FAILURE_S", "END", "RANK_TIMEOUT_S", "RankGroup", "RendezvousAddress", "meet"]

RANK_TIMEOUT_S = 300.0
"""Seconds that a rank waits for another; one rank may take that much longer to compile than another."""
AFTER_FAILURE_S = 15.0
"""Seconds that a failed rank waits for the other ranks' reasons. It is less than the 30 s that torchrun leaves them."""
END = "end"
"""Name of the last message of a rank."""

_LOOK_S = 0.05
_CONNECT_S = 60.0
T = TypeVar("T")


class RendezvousAddress(DataRecord):
    """Where the child process of a rank meets those of the others: a part of its parent's store.

    Attributes:
        host, port: address of the store.
        name: name of the part.
        rank, world: number of this process, and number of all.
        wait_s: seconds that a wait for another rank may take.
    """

    host: str
    port: int
    name: str
    rank: int
    world: int
    wait_s: float

    def store(self) -> Store:
        """Connect to the part. Raises RankError when the store does not answer."""
        return PrefixStore(self.name, _connected(self.host, self.port, False, self.wait_s))


def meet(environment: Mapping[str, str] | None = None, wait_s: float = RANK_TIMEOUT_S) -> RankGroup | None:
    """The group of ranks that torchrun's environment describes; None outside torchrun and for a single process.

    Raises:
        InputError: the environment is not torchrun's.
        RankError: the store does not answer.
    """
    given = os.environ if environment is None else environment
    here = ranks(given)
    if here is None or here.world == 1:
        return None
    host, port = given.get("MASTER_ADDR", ""), given.get("MASTER_PORT", "")
    if not host or not port.isdigit():
        raise InputError(
            f"WORLD_SIZE is {here.world}, but MASTER_ADDR and MASTER_PORT are {host!r} and {port!r}: run under torchrun, "
            "or unset WORLD_SIZE"
        )
    hosts = here.leads and given.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = given.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = _connected(host, int(port), hosts, wait_s)
    return RankGroup(here, store, wait_s, (host, int(port)), f"fluxrewrite/{attempt}")


def _connected(host: str, port: int, hosts: bool, wait_s: float) -> Store:
    """Connect to the store at an address; with `hosts`, this process runs the store itself."""
    wait = timedelta(seconds=min(wait_s, _CONNECT_S))
    try:
        return TCPStore(host, port, is_master=hosts, timeout=wait, wait_for_workers=False)
    except RuntimeError as error:
        raise _gone(f"{host}:{port}", error) from error


def _gone(place: str, error: Exception) -> RankError:
    why = one_line(error, named=False)
    return RankError(f"torchrun's store at {place} does not answer ({why}); torchrun or the first rank has ended")


class RankGroup:
    """This process among those of all ranks.

    Args:
        here: this rank.
        store: the store that all ranks use.
        wait_s: seconds that a wait for another rank may take.
        address: host and port of the store, for child processes; without a host, the store is in this process.
        name: the part of the store that messages go to.
    """

    def __init__(
        self,
        here: Ranks,
        store: Store,
        wait_s: float,
        address: tuple[str, int] = ("", 0),
        name: str = "fluxrewrite",
    ) -> None:
        self.here, self.wait_s = here, wait_s
        self._address, self._name = address, name
        self._given = store
        self._store = PrefixStore(name, store)

    def twin(self) -> RankGroup:
        """The same group with a connection of its own, for another thread: a blocked call occupies the connection.

        Raises RankError when the store does not answer.
        """
        host, port = self._address
        store = _connected(host, port, False, self.wait_s) if host else self._given
        return RankGroup(self.here, store, self.wait_s, self._address, self._name)

    def part(self, name: str) -> Store:
        """A part of the store, for a process group."""
        return PrefixStore(name, self._store)

    def meeting(self, name: str) -> RendezvousAddress:
        """The address of a part of the store, for a process that this rank starts."""
        host, port = self._address
        here = self.here
        name = f"{self._name}/{name}"
        return RendezvousAddress(host=host, port=port, name=name, rank=here.rank, world=here.world, wait_s=self.wait_s)

    def publish(self, what: str, text: str) -> None:
        """Publish this rank's text under the name `what`, which is used once. Raises RankError when the store is gone."""
        self._call(lambda: self._store.set(f"{what}/{self.here.rank}", text))

    def published(self, what: str) -> dict[int, str]:
        """The texts that ranks have published under `what` so far, by rank, this one included."""
        return {rank: text for rank in range(self.here.world) if (text := self._published(what, rank)) is not None}

    def gather(self, what: str, text: str, wait_s: float | None = None) -> list[str]:
        """Publish a text and wait for those of all ranks. Every rank returns the same list, in order of ranks.

        Args:
            what: a name that is used once.
            text: this rank's text.
            wait_s: seconds to wait; None for the group's `wait_s`.

        Raises:
            RankError: a rank has ended, or did not publish in time.
        """
        self.publish(what, text)
        wait_s = self.wait_s if wait_s is None else wait_s
        found = self.await_all(what, wait_s)
        missing = [rank for rank in range(self.here.world) if rank not in found]
        if missing:
            ended = [rank for rank in self.published(END) if rank in missing]
            named = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
            raise RankError(f"{named} ended early" if ended else f"{named} did not answer within {wait_s:g} s ({what})")
        return [found[rank] for rank in range(self.here.world)]

    def await_all(self, what: str, wait_s: float) -> dict[int, str]:
        """Wait until all ranks have published, a rank ended without doing so, or `wait_s` is over; return the texts by rank."""
        deadline = time.monotonic() + wait_s
        while True:
            ended = set() if what == END else set(self.published(END))
            found = self.published(what)
            if len(found) == self.here.world or ended - set(found) or time.monotonic() > deadline:
                return found
            time.sleep(_LOOK_S)

    def together(self, what: str, work: Callable[[], T]) -> T:
        """Do work that may raise, on every rank. If it raises on one, it raises on all.

        Without this, the ranks for which the work succeeds would go on and wait in a collective for the one that failed.

        Args:
            what: a name for the work, used once.
            work: called without arguments.

        Raises:
            FluxrewriteError: the work raised it here.
            InputError: the work raised on another rank; the message is that of the first such rank.
        """
        try:
            result = work()
        except FluxrewriteError as error:
            self.publish(what, str(error))
            self.await_all(what, AFTER_FAILURE_S)
            raise
        reasons = self.gather(what, "")
        for rank, reason in enumerate(reasons):
            if reason:
                raise InputError(f"rank {rank}: {reason}")
        return result

    def _published(self, what: str, rank: int) -> str | None:
        key = f"{what}/{rank}"
        if not self._call(lambda: self._store.check([key])):
            return None
        return self._call(lambda: self._store.get(key)).decode()

    def _call(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except RuntimeError as error:
            raise _gone(":".join(map(str, self._address)), error) from error
