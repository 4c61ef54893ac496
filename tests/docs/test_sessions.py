"""The terminal sessions of the pages, and `tools/docs_sessions.py`, which takes them anew."""

import importlib
import re
import sys

import pytest
from documented import PAGES, ROOT, fences

SESSIONS = {
    f.text.partition("\n")[0].removeprefix("$ "): f.text.partition("\n")[2]
    for page in PAGES
    for f in fences(page)
    if f.language == "console"
}


def settled(text):
    """Without what differs from run to run and from machine to machine."""
    return re.sub(r"(?m)^traced in .*$", "traced in ...", "\n".join(line.rstrip() for line in text.splitlines()))


def test_sessions_fit_a_terminal():
    assert set(SESSIONS) == {"fluxrewrite inspect flux2-klein-4b --details none", "fluxrewrite verify flux2-klein-mini"}
    assert max(len(line) for text in SESSIONS.values() for line in text.splitlines()) <= 80


@pytest.mark.slow
def test_the_session_of_inspect_is_what_it_prints(run):
    command = "fluxrewrite inspect flux2-klein-4b --details none"
    code, out = run(command)
    assert code == 0
    assert settled(SESSIONS[command]) == settled(out), "run: make sessions"


@pytest.fixture
def sessions(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("docs_sessions")


def test_a_session_is_recorded_again(sessions, tmp_path, monkeypatch, capsys):
    page = tmp_path / "a.md"
    page.write_text("before\n```console\n$ platform --x\nold\n```\nafter\n```sh\nls\n```\n")
    monkeypatch.setattr(sys, "argv", ["docs_sessions.py", str(page)])
    monkeypatch.setattr(sessions, "printed", lambda command: f"new, of {command}\n")
    assert sessions.main() == 0
    assert page.read_text() == "before\n```console\n$ platform --x\nnew, of platform --x\n```\nafter\n```sh\nls\n```\n"
    assert f"written: {page}" in capsys.readouterr().out


def test_a_command_that_fails_leaves_its_page(sessions, tmp_path, monkeypatch, capsys):
    page = tmp_path / "a.md"
    page.write_text(text := "```console\n$ no_such_program_here --x\nold\n```\n")
    monkeypatch.setattr(sys, "argv", ["docs_sessions.py", str(page)])
    assert sessions.main() == 1
    assert page.read_text() == text
    assert "no_such_program_here --x: exit code 1: " in capsys.readouterr().err


def test_what_a_program_prints(sessions):
    assert sessions.printed("json.tool --help").startswith("usage: ")
