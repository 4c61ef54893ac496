"""A worker and what it says, from the parent's side: no worker outlives the conversation, whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...dynamo.inner import inner_backends
from ...errors import FluxrewriteError

__all__ = ["WORKER", "WorkerFailed", "conversation"]

WORKER = (sys.executable, "-m", "fluxrewrite.measure.bench.worker")

_GO = "go"
"""What lets a worker begin its next run."""

_END = object()
_LOOK_S = 0.25
"""Seconds between two looks at the other ranks, while a worker says nothing."""
_AFTER_LAST_WORD_S = 30.0
"""Seconds between the end of a worker's output and its own: torch and a device clean up."""


class WorkerFailed(FluxrewriteError):
    """A worker that did not finish; one line that says why.

    Args:
        text: why.
        lost: because another rank did not.
    """

    def __init__(self, text: str, lost: bool = False) -> None:
        super().__init__(text)
        self.lost = lost


def conversation(
    request: str,
    folder: Path,
    timeout_s: float | None = None,
    worker: Sequence[str] = WORKER,
    watch: Callable[[], None] = lambda: None,
) -> Generator[Mapping[str, Any], None, None]:
    """Start a worker, give it one line, and yield its events. When the iteration ends or is left, the worker is gone.

    After an event "run" the worker waits: asking for the next event lets it go on.

    Args:
        request: one line of JSON.
        folder: an empty one: for caches, and for what the worker writes on stderr.
        timeout_s: seconds that all of it may take, those between an event and asking for the next one left out; None: as long
            as it takes.
        worker: the command.
        watch: called while the worker says nothing; what it raises ends the conversation.

    Raises:
        Failed: it cannot be started, told of an error, died, or took too long.
    """
    log = folder / "stderr"
    caches = {name: str(folder / place) for b in inner_backends().values() for name, place in b.caches.items()}
    with log.open("wb") as stderr:
        try:
            process = subprocess.Popen(
                list(worker),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **caches},
                start_new_session=True,  # Ctrl-C is for the parent, which ends the worker and its compilers as one group
            )
        except OSError as error:
            raise WorkerFailed(f"the worker cannot be started ({error})") from error
    try:
        yield from _events(process, request, timeout_s, watch)
        _judge(process, log)
    finally:
        _end(process)


def _events(
    process: subprocess.Popen[bytes], request: str, timeout_s: float | None, watch: Callable[[], None]
) -> Iterator[Mapping[str, Any]]:
    """Events until the worker closes its output. Raises Failed for an event "error", and when time is over."""
    lines: queue.Queue[Any] = queue.Queue()
    threading.Thread(
        target=_read, args=(process, lines), daemon=True
    ).start()  # a queue can be waited on with a deadline
    _say(process, request)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        try:
            left_s = _LOOK_S if deadline is None else deadline - time.monotonic()
            line = lines.get(timeout=max(0.0, min(_LOOK_S, left_s)))
        except queue.Empty as error:
            if deadline is not None and time.monotonic() >= deadline:
                raise WorkerFailed(f"no end after {timeout_s:g} s; give a longer --timeout") from error
            watch()
            continue
        if line is _END:
            return
        event = _parsed(line)
        if event["event"] == "error":
            raise WorkerFailed(str(event["error"]), lost=bool(event.get("lost")))
        asked = time.monotonic()
        yield event
        if deadline is not None:
            deadline += time.monotonic() - asked
        if event["event"] == "run":
            _say(process, _GO)


def _say(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died; its end of the conversation tells how
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()


def _read(process: subprocess.Popen[bytes], lines: queue.Queue[Any]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # closed in the middle, when the conversation is left
        for line in process.stdout:
            lines.put(line)
    lines.put(_END)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "event" not in event:
        text = line.decode(errors="replace").strip()
        raise WorkerFailed(f"the worker said {text[:80]!r}, which is no event")
    return event


def _judge(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raise Failed unless the worker ended well."""
    try:
        code = process.wait(_AFTER_LAST_WORD_S)
    except subprocess.TimeoutExpired as error:
        raise WorkerFailed(f"the worker closed its output and did not end within {_AFTER_LAST_WORD_S:g} s") from error
    if code == 0:
        return
    if code < 0:
        killed = "; the system may be out of memory" if -code == signal.SIGKILL else ""
        how = f"the worker was killed by {_signal(-code)}{killed}"
    else:
        how = f"the worker ended with exit code {code} and no word"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise WorkerFailed(f"{how}; last on stderr: {lines[-1][:200]}" if lines else how)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the worker's group, and wait for the worker."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
