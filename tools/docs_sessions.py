"""Takes the terminal sessions of README.md and docs/ anew: every block of ```console is a command and what it prints.

    python tools/docs_sessions.py [PAGE ...]

The commands run as they stand there, in a terminal of 80 columns; minutes for all of them. Times are those of this machine, so it
should be a quiet one. Exit code: 0; 1 when a command fails, and its page is left as it was.
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
    """A command of a page that did not exit with 0."""


def printed(command: str) -> str:
    """What a command prints. Raises Failed when it does not exit with 0, with the end of what it said."""
    program, *arguments = shlex.split(command)
    words = [sys.executable, "-m", program, *arguments]
    done = subprocess.run(
        words, env={**os.environ, "COLUMNS": "80"}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{command}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines()).rstrip("\n") + "\n"


def taken(text: str) -> str:
    """A page with its sessions as they are now."""
    return _SESSION.sub(lambda f: f"```console\n$ {f['command']}\n{printed(f['command'])}```", text)


def main() -> int:
    """Take the sessions of the pages that are named, or of all."""
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
