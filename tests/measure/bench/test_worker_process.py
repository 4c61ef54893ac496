"""Every way in which a worker can end, and that none is left."""

import contextlib
import os
import sys
import time

import pytest

from fluxrewrite.dynamo.inner import inner_backends
from fluxrewrite.measure.bench.worker_process import WorkerFailed, conversation

REQUEST = '{"chosen": {"name": "qkv"}}'


def talk(worker, folder, timeout_s=None):
    with contextlib.closing(conversation(REQUEST, folder, timeout_s, worker)) as events:
        return list(events)


def test_events_come_in_order(fake, tmp_path):
    events = talk(fake("ready()\nrun(1.0, 2.0)\n"), tmp_path)
    assert [e["event"] for e in events] == ["ready", "run"]
    assert events[1]["steps_s"] == [1.0, 2.0]


ENDS = [
    ("tell('error', error='ValueError: no')", "^ValueError: no$"),
    ("raise KeyError('x')", "exited with code 1 and without an error event; last on stderr: KeyError: 'x'$"),
    ("os._exit(9)", "exited with code 9 and without an error event$"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL; the system may be out of memory$"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV$"),
    ("os.kill(os.getpid(), 40)", "killed by signal 40$"),
    ("print('hello')", "wrote 'hello', which is not an event"),
    ("print('[1]')", r"wrote '\[1\]', which is not an event"),
    ("print('{}')", "wrote '{}', which is not an event"),
]


@pytest.mark.parametrize(("body", "message"), ENDS, ids=[b for b, _ in ENDS])
def test_a_worker_that_does_not_finish_is_one_line(fake, tmp_path, body, message):
    with pytest.raises(WorkerFailed, match=message) as caught:
        talk(fake(f"ready()\n{body}\n"), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_worker_that_never_reads(tmp_path):
    with pytest.raises(WorkerFailed, match="exited with code 3"):
        talk([sys.executable, "-S", "-c", "raise SystemExit(3)"], tmp_path)


def test_a_command_that_is_not_there(tmp_path):
    with pytest.raises(WorkerFailed, match=r"cannot be started \(.*no-such-python"):
        talk([str(tmp_path / "no-such-python")], tmp_path)


def test_time_is_over(fake, tmp_path):
    start = time.monotonic()
    with pytest.raises(WorkerFailed, match=r"not finished after 1\.5 s; use a longer --timeout"):
        talk(fake("ready()\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n"), tmp_path, 1.5)
    assert time.monotonic() - start < 20
    assert not alive(int((tmp_path / "pid").read_text()))


def test_output_that_is_closed_too_early(fake, tmp_path, monkeypatch):
    monkeypatch.setattr("fluxrewrite.measure.bench.worker_process._AFTER_LAST_WORD_S", 0.5)
    with pytest.raises(WorkerFailed, match=r"closed its output but did not exit within 0\.5 s"):
        talk(fake("ready()\nsys.stdout.flush()\nos.close(1)\ntime.sleep(60)\n"), tmp_path)


def test_abandoning_the_conversation_ends_the_worker_and_its_children(fake, tmp_path):
    body = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "tell('pids', mine=os.getpid(), child=child.pid)\n"
        "time.sleep(60)\n"
    )
    with contextlib.closing(conversation(REQUEST, tmp_path, None, fake(body))) as events:
        pids = next(events)
        assert alive(pids["mine"])
        assert alive(pids["child"])
    assert not alive(pids["mine"])
    gone_by = time.monotonic() + 10
    while alive(pids["child"]) and time.monotonic() < gone_by:
        time.sleep(0.05)
    assert not alive(pids["child"])


def test_caches_are_the_workers_own_and_empty(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    variables = sorted({name for backend in inner_backends().values() for name in backend.caches})
    assert {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_NEURONX_NEFF_CACHE_DIR", "NKI_COMPILE_CACHE_URL"} <= {
        *variables
    }
    body = "tell('caches', **{n: os.environ[n] for n in " + repr(variables) + "})\n"
    ((event),) = talk(fake(body), tmp_path)
    places = {v for k, v in event.items() if k != "event"}
    assert len(places) == len(variables)
    for place in places:
        assert os.path.dirname(place) == str(tmp_path)
        assert not os.path.exists(place)


def alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
