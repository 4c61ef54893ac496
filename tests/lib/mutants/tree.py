"""A scratch copy of a tree, laid out as it is installed, with a switch at every guard."""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from collections.abc import Iterable
from pathlib import Path

from . import switch
from .find import Guard, guards_of, instrumented

__all__ = ["Tree"]

_LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "_build", "node_modules", "__pycache__", "*.egg-info", "*.so")


class Tree:
    """The guards of `files` (paths from `root`), numbered from 1; `copy` writes the tree that tests run on."""

    def __init__(self, root: Path, files: Iterable[str]) -> None:
        self.root = root
        self.sources = {file: (root / file).read_text() for file in files}
        found = [guard for file, source in self.sources.items() for guard in guards_of(source, file)]
        self.guards: dict[int, Guard] = dict(enumerate(found, 1))

    def digest(self, file: str) -> str:
        """Of a source as it is now."""
        return hashlib.sha256(self.sources[file].encode()).hexdigest()[:16]

    def copy(self, folder: Path) -> None:
        """Write the tree; packages that another folder of the root holds are put where importing looks for them."""
        shutil.copytree(self.root, folder, ignore=_LEFT_OUT, dirs_exist_ok=True)
        for name, source in self._packages():
            shutil.copytree(self.root / source, folder / name.replace(".", "/"), ignore=_LEFT_OUT, dirs_exist_ok=True)
        for file, source in self.sources.items():
            numbered = {number: guard for number, guard in self.guards.items() if guard.file == file}
            (folder / self.place(file)).write_text(instrumented(source, file, numbered))
        shutil.copy(switch.__file__, folder / "_guard_switch.py")

    def place(self, file: str) -> Path:
        """Where a file of the root lies in the copy."""
        for name, source in self._packages():
            if Path(file).is_relative_to(source):
                return Path(name.replace(".", "/")) / Path(file).relative_to(source)
        return Path(file)

    def _packages(self) -> list[tuple[str, str]]:
        """(name, folder) of packages that lie elsewhere than they are imported from; inner ones first."""
        project = tomllib.loads((self.root / "pyproject.toml").read_text())
        folders = project.get("tool", {}).get("setuptools", {}).get("package-dir", {})
        moved = [(name, source) for name, source in folders.items() if name.replace(".", "/") != source]
        return sorted(moved, key=lambda pair: -len(pair[1]))
