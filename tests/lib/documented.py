"""What README.md, CONTRIBUTING.md and docs/ show to be typed: fenced blocks, and commands in them and in the running text."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LANGUAGES", "PAGES", "ROOT", "Command", "Fence", "commands", "fences"]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = ("sh", "console", "python", "toml", "text", "{toctree}", "{eval-rst}")
"""What a fenced block may be; "text" holds no command."""

PROGRAMS = ("fluxrewrite", "make", "model-explorer", "pip", "pytest", "python", "torchrun")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Fence:
    """A fenced block, without its indent."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command as it is typed, without comments; `where` is "README.md:12"."""

    where: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def fences(path: Path) -> list[Fence]:
    """The fenced blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return [
        Fence(path.name, text.count("\n", 0, f.start()) + 1, f["language"], textwrap.dedent(f["text"]))
        for f in _FENCE.finditer(text)
    ]


def commands() -> list[Command]:
    """Every command of every page, the same one once for each place."""
    return [c for path in PAGES for c in (*_fenced(path), *_spans(path))]


def _fenced(path: Path) -> Iterator[Command]:
    for fence in fences(path):
        if fence.language not in ("sh", "console"):
            continue
        for at, line in enumerate(fence.text.replace("\\\n", "  ").splitlines(), fence.line + 1):
            typed = line.removeprefix("$ ") if fence.language == "sh" or line.startswith("$ ") else ""
            yield from (Command(f"{path.name}:{at}", part) for part in _parts(typed))


def _parts(line: str) -> Iterator[str]:
    """The commands of a line, without its comment."""
    words = shlex.shlex(line, posix=False, punctuation_chars="&")
    words.whitespace_split, words.commenters = True, "#"
    part: list[str] = []
    for word in [*words, "&&"]:
        if word != "&&":
            part.append(word)
        elif part:
            yield " ".join(part)
            part = []


def _spans(path: Path) -> Iterator[Command]:
    """Commands in the running text: code spans of a program and at least one more word."""
    text = _FENCE.sub(lambda f: "\n" * f[0].count("\n"), path.read_text(encoding="utf-8"))
    for span in _SPAN.finditer(text):
        words = span[1].split()
        if len(words) > 1 and words[0] in PROGRAMS:
            yield Command(f"{path.name}:{text.count(chr(10), 0, span.start()) + 1}", " ".join(words))
