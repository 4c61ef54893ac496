"""Runs the tests of a scratch tree: all once, to see which of them make each guard refuse, then those with the guard disabled."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .find import Guard
from .tree import Tree

__all__ = ["Outcome", "Runner", "Unfit"]

FIRST = 6
"""Tests that are tried before all others that could tell."""
SLACK_S = 60
SLOWER = 10


class Unfit(Exception):
    """The tests or the tree are not such that anything can be told by disabling guards."""


@dataclass(frozen=True)
class Outcome:
    """What became of one guard disabled: "killed", "timeout", "survived", or "never" where no test makes it refuse."""

    guard: Guard
    status: str
    by: str = ""
    how: str = ""
    tests: int = 0


@dataclass
class _Seen:
    """What the tests did on the tree as it is: seconds by test, and by guard the tests that make it refuse."""

    seconds: dict[str, float] = field(default_factory=dict)
    fired: dict[int, set[str]] = field(default_factory=dict)
    arrived: dict[str, str] = field(default_factory=dict)


class _Server:
    """One process that answers requests one after the other."""

    def __init__(self, folder: Path, preload: Sequence[str]) -> None:
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        serve = Path(__file__).with_name("serve.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(serve), *preload],
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise Unfit("the process that runs the tests has ended; what it printed stands above")
        answer = Path(request["folder"]) / f"{request['id']}.json"
        found: dict[str, Any] | None = json.loads(answer.read_text()) if answer.exists() else None
        return found


class Runner:
    """Runs tests of a tree that was copied to `folder`, in `jobs` processes that have `preload` imported.

    Closes these at the end of a `with`.
    """

    def __init__(self, tree: Tree, folder: Path, jobs: int = 1, preload: Sequence[str] = ()) -> None:
        self.tree, self.folder, self.jobs = tree, folder, jobs
        self.accounts = folder.with_name(f"{folder.name}-accounts")
        self.accounts.mkdir()
        tree.copy(folder)
        self.seen = _Seen()
        self._count = 0
        self._alone: set[str] = set()
        """Tests that pass alone with no guard disabled."""
        self._idle: queue.Queue[_Server] = queue.Queue()
        self._servers = [_Server(folder, preload) for _ in range(jobs)]
        for server in self._servers:
            self._idle.put(server)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            with suppress(BrokenPipeError):
                server.process.communicate()

    def record(self, paths: Iterable[str]) -> Iterator[str]:
        """Run all tests of `paths`, files or folders, with no guard disabled; yields each file when it is done.

        Raises Unfit where a test fails, or a file of the tree is not imported from the copy.
        """
        files = sorted({str(p.relative_to(self.folder)) for path in paths for p in _files(self.folder / path)})
        for file, account in self._each({file: {"files": [file]} for file in files}):
            if account is None or account["code"] not in (0, 5):
                failed = account["failed"] if account else "the time limit was passed"
                raise Unfit(f"{file} does not pass with all guards in place: {failed}")
            self.seen.seconds.update(account["seconds"])
            self.seen.arrived.update(account["arrived"])
            for number, tests in account["fired"].items():
                self.seen.fired.setdefault(int(number), set()).update(tests)
            yield file
        for file in {guard.file for guard in self.tree.guards.values()}:
            wanted = self.folder / self.tree.place(file)
            if self.seen.arrived.get(file) != str(wanted):
                raise Unfit(f"{file} is imported from {self.seen.arrived.get(file, 'nowhere')}, not from {wanted}")

    def control(self) -> None:
        """Raises Unfit where the tests that make a file's guards refuse all pass although the file raises on import."""
        told: dict[str, set[str]] = {}
        for number, guard in self.tree.guards.items():
            told.setdefault(guard.file, set()).update(self.seen.fired.get(number, ()))
        asked: dict[str, dict[str, Any]] = {}
        for file, found in told.items():
            tests = self._ordered(file, set(self.seen.seconds) if "" in found else found)[:FIRST]
            if tests:
                files = list(dict.fromkeys(t.partition("::")[0] for t in tests))
                asked[file] = {"files": files, "tests": tests, "broken": file}
        for file, account in self._each(asked):
            if account is not None and account["code"] == 0:
                tests = asked[file]["tests"]
                raise Unfit(f"{tests} pass while {file} raises on import: it is not the copy that is tested")

    def kill(self, numbers: Iterable[int]) -> Iterator[tuple[int, Outcome]]:
        """Disable each guard in turn, those that no test makes refuse first: nothing is left to run for them."""
        wanted = sorted(numbers, key=lambda number: bool(self._tests(number)))
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._outcome, number): number for number in wanted}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _outcome(self, number: int) -> Outcome:
        guard, tests = self.tree.guards[number], self._tests(number)
        if not tests:
            return Outcome(guard, "never")
        for some in filter(None, (tests[:FIRST], tests[FIRST:])):
            limit = SLACK_S + SLOWER * sum(self.seen.seconds[t] for t in some)
            files = list(dict.fromkeys(t.partition("::")[0] for t in some))
            account = self._ask({"files": files, "tests": some, "active": number, "limit": limit})
            if account is None:
                return Outcome(guard, "timeout", some[0], "", len(tests))
            if account["code"] not in (0, 5):
                by, how = account["failed"][0] if account["failed"] else (some[0], f"exit code {account['code']}")
                self._stands_alone(by)
                return Outcome(guard, "killed", by, how, len(tests))
        return Outcome(guard, "survived", tests=len(tests))

    def _stands_alone(self, test: str) -> None:
        """Raises Unfit for a test that fails without those before it: it tells nothing of a guard."""
        if test in self._alone:
            return
        account = self._ask({"files": [test.partition("::")[0]], "tests": [test] if "::" in test else []})
        if account is None or account["code"] not in (0, 5):
            raise Unfit(f"{test} fails when it runs alone, with all guards in place; it needs a test before it")
        self._alone.add(test)

    def _tests(self, number: int) -> list[str]:
        """Tests that make a guard refuse, the most likely to tell first."""
        fired = self.seen.fired.get(number, set())
        return self._ordered(self.tree.guards[number].file, set(self.seen.seconds) if "" in fired else fired)

    def _ordered(self, file: str, tests: set[str]) -> list[str]:
        """Those of the test file of the same name first, and the quick ones."""
        own = f"test_{Path(file).stem}.py"
        return sorted(tests, key=lambda t: (Path(t.partition("::")[0]).name != own, self.seen.seconds[t], t))

    def _each(self, asked: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any] | None]]:
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._ask, request): name for name, request in asked.items()}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        server = self._idle.get()
        try:
            self._count += 1
            made = {
                "id": self._count,
                "folder": str(self.accounts),
                "active": 0,
                "broken": "",
                "tests": [],
                "limit": 1800,
            }
            return server.ask({**made, **request})
        finally:
            self._idle.put(server)


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
