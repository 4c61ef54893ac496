"""Runs tests in forks of a process that has what they import from elsewhere, and nothing of the tree that they test.

Reads one request a line: {"id", "folder", "active", "broken", "files", "tests", "limit"}; answers one line {"id"} for each,
with the account in FOLDER/ID.json and what was printed in FOLDER/ID.txt. No account means that the limit was passed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Account:
    """Keeps to the tests asked for, in the order asked for, and notes what came of them."""

    def __init__(self, switch: Any, wanted: list[str]) -> None:
        self.switch, self.wanted = switch, {name: at for at, name in enumerate(wanted)}
        self.seconds: dict[str, float] = {}
        self.failed: list[tuple[str, str]] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.wanted:
            chosen = [item for item in items if item.nodeid in self.wanted]
            items[:] = sorted(chosen, key=lambda item: self.wanted[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.switch.test = item.nodeid
        try:
            return (yield)
        finally:
            self.switch.test = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            lines = str(crash.message if crash is not None else report.longrepr).strip().splitlines()
            self.failed.append((report.nodeid, lines[0] if lines else ""))


def _child(request: dict[str, Any], answer: Path) -> int:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    switch = importlib.import_module("_guard_switch")
    switch.active, switch.broken = request["active"], request["broken"]
    os.environ["FLUXREWRITE_MUTANT"] = str(switch.active)
    account = Account(switch, request["tests"])
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", "not slow", f"--rootdir={os.getcwd()}"]
    code = pytest.main([*options, *request["files"]], plugins=[account])
    made = {
        "code": int(code), "seconds": account.seconds, "failed": account.failed, "arrived": switch.arrived,
        "fired": {str(number): sorted(tests) for number, tests in switch.fired.items()},
    }  # fmt: skip
    answer.with_suffix(".part").write_text(json.dumps(made))
    answer.with_suffix(".part").rename(answer)
    return 0


def _run(request: dict[str, Any]) -> None:
    answer = Path(request["folder"]) / f"{request['id']}.json"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            output = os.open(answer.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = _child(request, answer)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + request["limit"]
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.02)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    if "torch" in sys.argv:  # what the first compilation of a process makes, it makes once
        torch: Any = importlib.import_module("torch")
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
        torch._dynamo.reset()
    here = [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(f"{os.getcwd()}{os.sep}")]
    if here:
        raise RuntimeError(f"of the tree itself, before any test: {', '.join(here)}")
    for line in sys.stdin:
        request = json.loads(line)
        _run(request)
        sys.stdout.write(json.dumps({"id": request["id"]}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
