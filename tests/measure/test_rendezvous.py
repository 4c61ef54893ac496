"""Messages between the ranks that torchrun started."""

import socket
import time

import pytest
from rank_groups import at_once, rank_groups

from fluxrewrite.errors import CheckFailed, InputError, RankError
from fluxrewrite.measure import rendezvous
from fluxrewrite.measure.rendezvous import END, RendezvousAddress, meet


def environment(rank, world, port, **more):
    given = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": port, **more}
    return {name: str(value) for name, value in given.items()}


@pytest.fixture
def port():
    """A port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_a_single_process_has_no_rank_group():
    assert meet({}) is None
    assert meet({"RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_an_environment_that_is_not_torchruns(missing):
    given = environment(0, 2, 29500)
    del given[missing]
    with pytest.raises(
        InputError, match=r"WORLD_SIZE is 2, but MASTER_ADDR and MASTER_PORT are .*: run under torchrun"
    ):
        meet(given)


def test_ranks_meet_and_so_do_the_processes_that_they_start(port):
    """Without torchrun's agent the first rank holds the store."""
    first, second = at_once(*(lambda r=r: meet(environment(r, 2, port), wait_s=20) for r in range(2)))
    assert at_once(lambda: first.gather("x", "a"), lambda: second.gather("x", "b")) == [["a", "b"]] * 2
    meetings = [RendezvousAddress.model_validate_json(c.meeting("group").model_dump_json()) for c in (first, second)]
    assert [(m.rank, m.world, m.port, m.wait_s) for m in meetings] == [(0, 2, port, 20), (1, 2, port, 20)]
    meetings[0].store().set("key", "word")
    assert meetings[1].store().get("key") == b"word"
    assert not meetings[1].store().check(["x/0"]), "a part does not contain the messages of the parents"
    assert second.twin().published("x") == {0: "a", 1: "b"}


def test_a_store_that_is_not_there(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "_CONNECT_S", 1.0)
    with pytest.raises(RankError, match=rf"torchrun's store at localhost:{port} does not answer .*has ended"):
        meet(environment(1, 2, port))


def test_a_store_that_goes_away(port):
    first, second = at_once(*(lambda r=r: meet(environment(r, 2, port), wait_s=5) for r in range(2)))
    first._store = first._given = None
    del first
    with pytest.raises(RankError, match="does not answer"):
        second.await_all("x", 10)


def test_gather_returns_the_text_of_every_rank():
    ranks = rank_groups(3)
    assert at_once(*(lambda c=c: c.gather("n", str(c.here.rank)) for c in ranks)) == [["0", "1", "2"]] * 3
    assert ranks[0].published("m") == {}


def test_a_silent_rank_is_named_after_the_timeout():
    ranks = rank_groups(3)
    start = time.monotonic()
    found = at_once(lambda: ranks[0].gather("n", "", 0.3), lambda: ranks[1].gather("n", "", 0.3))
    assert [str(e) for e in found] == ["rank 2 did not answer within 0.3 s (n)"] * 2
    assert time.monotonic() - start < 5


def test_gather_does_not_wait_for_a_rank_that_has_ended():
    ranks = rank_groups(2, wait_s=60)
    ranks[1].publish(END, "over")
    start = time.monotonic()
    with pytest.raises(RankError, match="rank 1 ended early"):
        ranks[0].gather("n", "")
    assert time.monotonic() - start < 5


def test_text_published_before_the_end_counts():
    ranks = rank_groups(2, wait_s=1)
    ranks[1].publish("n", "b")
    ranks[1].publish(END, "over")
    assert ranks[0].gather("n", "a") == ["a", "b"]


def refuse(error):
    raise error


def test_all_ranks_refuse_what_one_refuses():
    ranks = rank_groups(3)
    assert at_once(*(lambda c=c: c.together("a", lambda: c.here.rank) for c in ranks)) == [0, 1, 2]
    works = [lambda: 0, lambda: refuse(InputError("no such file")), lambda: refuse(CheckFailed("too late"))]
    zero, one, two = at_once(*(lambda c=c, w=w: c.together("b", w) for c, w in zip(ranks, works, strict=True)))
    assert (type(zero), str(zero)) == (InputError, "rank 1: no such file")
    assert (type(one), str(one)) == (InputError, "no such file")
    assert (type(two), str(two)) == (CheckFailed, "too late")
