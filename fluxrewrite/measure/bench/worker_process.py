"""The conversation with a worker, from the parent's side. However it ends, no worker outlives it."""

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
"""The line that lets a worker begin its next run."""

_END = object()
_LOOK_S = 0.25
"""Seconds between two calls of `watch` while a worker is silent."""
_AFTER_LAST_WORD_S = 30.0
"""Seconds that a worker may take to exit once it has closed its output, since torch and a device clean up then."""


class WorkerFailed(FluxrewriteError):
    """A worker did not finish.

    Args:
        text: why, in one line.
        lost: it stopped only because another rank failed.
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
    """Start a worker, send it one line, and yield its events. The worker is killed when the iteration ends or is abandoned.

    After a "run" event the worker waits until the next event is requested.

    Args:
        request: one line of JSON.
        folder: an empty folder for compilers' caches and the worker's stderr.
        timeout_s: seconds that the worker may take, without those in which it waits for its next event to be requested; None for
            no limit.
        worker: the command.
        watch: called while the worker is silent; an exception from it ends the conversation.

    Raises:
        WorkerFailed: it cannot be started, reported an error, died, or took too long.
    """
    log = folder / "stderr"
    process = _started(worker, folder, log)
    try:
        yield from _events(process, request, timeout_s, watch)
        _judge(process, log)
    finally:
        _end(process)


def _started(worker: Sequence[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    # A worker starts with empty caches; otherwise an earlier variant, or an earlier bench, would make its cold run warm.
    caches = {name: str(folder / place) for b in inner_backends().values() for name, place in b.caches.items()}
    with log.open("wb") as stderr:
        try:
            return subprocess.Popen(
                list(worker),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **caches},
                start_new_session=True,  # Ctrl-C is for the parent, which ends the worker and its compilers as one group
            )
        except OSError as error:
            raise WorkerFailed(f"the worker cannot be started ({error})") from error


def _events(
    process: subprocess.Popen[bytes], request: str, timeout_s: float | None, watch: Callable[[], None]
) -> Iterator[Mapping[str, Any]]:
    """Yield events until the worker closes its output. Raises WorkerFailed for an "error" event and after the timeout."""
    lines: queue.Queue[Any] = queue.Queue()
    # A pipe cannot be read with a deadline, but a queue can.
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    _say(process, request)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        try:
            left_s = _LOOK_S if deadline is None else deadline - time.monotonic()
            line = lines.get(timeout=max(0.0, min(_LOOK_S, left_s)))
        except queue.Empty as error:
            if deadline is not None and time.monotonic() >= deadline:
                raise WorkerFailed(f"not finished after {timeout_s:g} s; use a longer --timeout") from error
            watch()
            continue
        if line is _END:
            return
        event = _parsed(line)
        if event["event"] == "error":
            raise WorkerFailed(str(event["error"]), lost=bool(event.get("lost")))
        yielded = time.monotonic()
        yield event
        if deadline is not None:
            deadline += time.monotonic() - yielded
        if event["event"] == "run":
            _say(process, _GO)


def _say(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died; `_judge` finds out how
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()


def _read(process: subprocess.Popen[bytes], lines: queue.Queue[Any]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # closed while reading, when the conversation is abandoned
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
        raise WorkerFailed(f"the worker wrote {text[:80]!r}, which is not an event")
    return event


def _judge(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raise WorkerFailed unless the worker exits with code 0."""
    try:
        code = process.wait(_AFTER_LAST_WORD_S)
    except subprocess.TimeoutExpired as error:
        raise WorkerFailed(f"the worker closed its output but did not exit within {_AFTER_LAST_WORD_S:g} s") from error
    if code == 0:
        return
    if code < 0:
        killed = "; the system may be out of memory" if -code == signal.SIGKILL else ""
        how = f"the worker was killed by {_signal(-code)}{killed}"
    else:
        how = f"the worker exited with code {code} and without an error event"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise WorkerFailed(f"{how}; last on stderr: {lines[-1][:200]}" if lines else how)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the worker's process group, which includes its compilers, and wait for the worker."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
