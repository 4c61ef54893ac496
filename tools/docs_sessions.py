"""Record the terminal sessions of README.md and docs/ again: every ```console block is a command and its output.

    python tools/docs_sessions.py [PAGE ...]

The commands run exactly as shown, in a terminal of 80 columns; all of them take minutes. The output contains times of this
machine, so run it on a quiet one. Exit code: 0; 1 when a command fails, and its page is then left unchanged.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SESSION = re.compile(r"```console\n\$ (?P<command>[^\n]+)\n.*?```", re.DOTALL)


class Failed(Exception):
    """A command of a page exited with a code other than 0."""


def printed(command: str) -> str:
    """The output of a command. Raises Failed, with the end of stderr, when it does not exit with 0."""
    program, *arguments = shlex.split(command)
    words = [sys.executable, "-m", program, *arguments]
    done = subprocess.run(
        words, env={**os.environ, "COLUMNS": "80"}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{command}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines()).rstrip("\n") + "\n"


def taken(text: str) -> str:
    """The page with its sessions recorded again."""
    return _SESSION.sub(lambda f: f"```console\n$ {f['command']}\n{printed(f['command'])}```", text)


def main() -> int:
    """Record the sessions of the named pages, or of all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="default: README.md and docs/*.md")
    for path in parser.parse_args().pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        try:
            text = path.read_text(encoding="utf-8")
            found = taken(text)
        except (OSError, Failed) as error:
            sys.stderr.write(f"docs_sessions: {error}\n")
            return 1
        if found != text:
            path.write_text(found, encoding="utf-8")
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
