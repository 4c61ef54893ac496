"""Where sources decide by a name: comparisons, keys of tables, beginnings of names. Such a list leaves out what users register."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path

from documented import ROOT

__all__ = ["decided_by"]


def decided_by(names: Collection[str], beginnings: Collection[str] = ()) -> list[str]:
    """ "fluxrewrite/a.py:7" for each place in the core, the passes and the kernels that decides by one of `names`.

    `beginnings` are what `startswith` is called with.
    """
    found = []
    for path in sorted(p for folder in ("fluxrewrite", "passes", "kernels") for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            wanted = {*names, *beginnings} if _begins(node) else set(names)
            if wanted & _texts(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def files(places: Collection[str]) -> list[Path]:
    """The files of some places."""
    return [Path(place.rpartition(":")[0]) for place in places]


def _begins(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith"


def _texts(node: ast.AST) -> set[object]:
    """Constants that an expression chooses by."""
    parts: list[ast.expr] = []
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.Dict):
        parts = [key for key in node.keys if key is not None]
    elif isinstance(node, ast.MatchValue):
        parts = [node.value]
    elif isinstance(node, ast.Call) and _begins(node):
        parts = node.args
    return {n.value for part in parts for n in ast.walk(part) if isinstance(n, ast.Constant)}
