"""Commands under torchrun: one rank reports, all end with one exit code. Ranks are threads here; test_torchrun.py has real ones."""

import importlib
import inspect
import signal
import subprocess
import sys
import threading
import time

import pytest
import typer
from rank_groups import at_once, rank_groups

from fluxrewrite.cli import main, ranks
from fluxrewrite.cli.ranks import Terminated, leads, ranked, terminable
from fluxrewrite.errors import CheckFailed, InputError, RankError
from fluxrewrite.measure import rendezvous


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(rendezvous, "AFTER_FAILURE_S", 0.5)
    monkeypatch.setattr(ranks, "_REPORTER_S", 5)


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(*bodies)`: the exit code of each rank, "ran" where there is none, and the lines on stderr."""

    def call(*bodies, tp=None, world=None):
        groups = rank_groups(world or len(bodies))
        mine = threading.local()
        monkeypatch.setattr(rendezvous, "meet", lambda wait_s: mine.rank_group)

        def rank(rank_group, body):
            mine.rank_group = rank_group
            with ranked(tp, 10) as here:
                body(here)
            return "ran"

        found = at_once(*(lambda c=c, b=b: rank(c, b) for c, b in zip(groups, bodies, strict=False)))
        codes = [e.exit_code if isinstance(e, typer.Exit) else e for e in found]
        return codes, capsys.readouterr().err.splitlines()

    return call


def fail(error):
    def body(rank_group):
        raise error

    return body


def slow(error):
    """As the first rank, with a table to print."""

    def body(rank_group):
        time.sleep(0.7)
        raise error

    return body


def good(rank_group):
    pass


def test_ranks_without_errors(run):
    assert run(good, good) == (["ran", "ran"], [])


SAME = InputError("--steps 0: 1 or more")
LOST = RankError("rank 0 of 2: another rank ended")
ENDS = [
    ((fail(SAME), fail(SAME)), [2, 2], ["--steps 0: 1 or more"]),
    ((fail(CheckFailed("a", "b")), fail(CheckFailed("a", "b"))), [1, 1], ["a", "b"]),
    ((good, fail(InputError("no file"))), ["ran", 2], ["no file"]),
    ((fail(InputError("no file")), good), [2, "ran"], ["no file"]),
    ((fail(LOST), fail(CheckFailed("planted"))), [1, 1], ["rank 1: planted"]),
    ((fail(InputError("planted")), fail(LOST)), [2, 2], ["planted"]),
    ((fail(LOST), fail(LOST)), [1, 1], ["rank 0 of 2: another rank ended"]),
    ((fail(LOST),), [1], ["rank 0 of 2: another rank ended"]),
    ((fail(KeyboardInterrupt()), fail(KeyboardInterrupt())), [130, 130], ["interrupted"]),
    ((slow(KeyboardInterrupt()), fail(KeyboardInterrupt())), [130, 130], ["interrupted"]),
    ((fail(typer.Abort()), fail(LOST)), [130, 1], ["interrupted"]),
]


@pytest.mark.parametrize(("bodies", "codes", "printed"), ENDS)
def test_one_rank_reports_for_all(run, bodies, codes, printed):
    assert run(*bodies, world=2) == (codes, [f"fluxrewrite: {line}" for line in printed])


def test_a_rank_without_the_others_reports_for_itself(run):
    """The first rank is gone or hangs; the second one does not wait for long."""
    start = time.monotonic()
    codes, lines = run(lambda rank_group: time.sleep(3), fail(InputError("no file")))
    assert (codes[1], lines) == (2, ["fluxrewrite: no file"])
    assert time.monotonic() - start < 10


def test_sigterm_says_that_torchrun_sent_it(run):
    aborted = typer.Abort()
    aborted.__cause__ = Terminated()
    for error in (Terminated(), aborted):
        codes, (line,) = run(fail(error), world=2)
        assert codes == [130]
        assert "interrupted: torchrun ends all ranks when one of them ends, which it names in its report" in line


def test_an_unexpected_error_is_raised_unchanged(run):
    (found,), lines = run(fail(KeyError("x")), world=2)
    assert isinstance(found, KeyError)
    assert lines == []


def test_the_first_rank_prints_and_writes():
    assert [leads(c) for c in (None, *rank_groups(2))] == [True, True, False]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--tp", "0"), "--tp 0: must be 1 or more"),
        (("--tp", "4"), "--tp 4: ranks are processes; run torchrun --nproc-per-node 4 -m fluxrewrite"),
        (("--rank-timeout", "0"), "--rank-timeout 0: must be more than 0 seconds"),
        (("--rank-timeout", "nan"), "--rank-timeout nan: must be more than 0 seconds"),
    ],
)
@pytest.mark.parametrize("command", ["bench", "verify"])
def test_bad_input_without_torchrun(capsys, monkeypatch, command, args, why):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main([command, "flux2-klein-mini", *args]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert why in err


def test_tp_differs_from_torchrun(run):
    assert run(good, good, tp=2) == (["ran", "ran"], [])
    codes, lines = run(good, good, tp=4)
    assert (codes, lines) == ([2, 2], ["fluxrewrite: --tp 4, but torchrun started 2 ranks; leave --tp out"])


@pytest.mark.parametrize(
    "command", [("verify", "--kernels", "rope"), ("verify",), ("bench", "flux3"), ("bench", "x", "--steps", "0")]
)
def test_commands_report_an_error_once(monkeypatch, capsys, command):
    """Whole commands, with an error that occurs on each rank."""
    groups = iter(rank_groups(2))
    lock = threading.Lock()

    def meet(wait_s):
        with lock:
            return next(groups)

    monkeypatch.setattr(rendezvous, "meet", meet)
    assert at_once(*(lambda: main(list(command)) for _ in range(2))) == [2, 2]
    assert capsys.readouterr().err.count("fluxrewrite: ") == 1


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_help_has_the_default_timeout_of_the_rank_group(command):
    function = getattr(importlib.import_module(f"fluxrewrite.cli.{command}"), command)
    assert inspect.signature(function).parameters["rank_timeout"].default == rendezvous.RANK_TIMEOUT_S


def test_sigterm_ends_the_work():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


# *** the thread

STUCK = """
import ctypes, sys, threading, time
from fluxrewrite.cli.ranks import leave, ranked, terminable
from fluxrewrite.cli import watchdog
from fluxrewrite.measure.rendezvous import END, RankGroup
from fluxrewrite.parallel import Ranks
import fluxrewrite.measure.rendezvous
import torch.distributed as dist

store = dist.HashStore()
first, second = (RankGroup(Ranks(r, 2), store, 60) for r in range(2))
fluxrewrite.measure.rendezvous.AFTER_FAILURE_S = watchdog.GRACE_S = 0.5
with terminable(), watchdog.watched(first, leave):
    if sys.argv[1] == "failure":
        second.publish(END, '{"code": 2, "lines": ["no file"], "follows": false}')
    if sys.argv[1] == "good end":
        second.publish(END, '{"code": 0}')
        time.sleep(1.5)
        sys.exit(7)
    print("stuck", flush=True)
    store.set_timeout(__import__("datetime").timedelta(seconds=60))
    store.get("never")
"""


def stuck(how):
    """A process whose main thread waits inside torch, once it does."""
    command = [sys.executable, "-c", STUCK, how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "printed"),
    [
        (signal.SIGTERM, 130, "fluxrewrite: interrupted\n"),
        (signal.SIGINT, 130, "fluxrewrite: interrupted\n"),
        ("failure", 2, "fluxrewrite: rank 1: no file\n"),
        ("good end", 7, ""),
    ],
)
def test_a_rank_blocked_inside_torch_still_ends(how, code, printed):
    process = stuck(str(how))
    if not isinstance(how, str):
        time.sleep(1)  # it has said that it will wait, and then it does
        process.send_signal(how)
    assert (process.wait(20), process.communicate()[1]) == (code, printed)


def test_the_thread_ends_with_the_block():
    rank_group = rank_groups(2)[0]
    before = signal.set_wakeup_fd(-1)
    threads = threading.active_count()
    from fluxrewrite.cli.watchdog import watched

    left = []
    with watched(rank_group, lambda *a: left.append(a)):
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(before) == -1
    assert not left
