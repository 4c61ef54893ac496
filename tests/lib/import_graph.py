"""Which file imports which, read off the sources: imports inside functions and under `TYPE_CHECKING` count like all others."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LAYERS", "MAY_IMPORT", "Arrow", "arrows", "circles", "modules", "wrong"]

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("graph", "cost"),
    ("site", "pattern", "parallel"),
    ("kernel", "models"),
    ("provider",),
    ("rewrite",),
    ("fusion",),
    ("report",),
    ("analysis",),
    ("dynamo",),
    ("measure",),
    ("cli",),
)
"""The files and packages of the core, from left to right. Each imports only what is in an earlier tuple."""
MAY_IMPORT = {
    "passes": ("graph", "pattern", "rewrite", "site"),
    "kernels": ("errors", "kernel", "provider"),
}
"""What passes and kernels may import of the core; they never import each other."""


@dataclass(frozen=True)
class Arrow:
    """`importer` imports `imported`, in `file` at `line`. Modules are dotted names."""

    importer: str
    imported: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.importer} imports {self.imported}"


def modules(root: Path) -> dict[str, Path]:
    """The source files of a checkout by module name; passes/ and kernels/ are packages of fluxrewrite."""
    found = {}
    for top in ("fluxrewrite", "passes", "kernels"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts if top == "fluxrewrite" else ("fluxrewrite", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(root: Path) -> list[Arrow]:
    """Every import of one module of the project by another."""
    files = modules(root)
    found = []
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for imported, line in _imports(ast.parse(path.read_text()), package, files):
            if imported != module:
                found.append(Arrow(module, imported, str(path.relative_to(root)), line))
    return found


def _imports(tree: ast.AST, package: str, files: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(p for p in (base, node.module) if p)
            for alias in node.names:
                name = f"{source}.{alias.name}"
                if name in files or source in files:
                    yield (name if name in files else source), node.lineno


def wrong(found: Sequence[Arrow]) -> list[Arrow]:
    """The arrows that run against `LAYERS` and `MAY_IMPORT`; what is in no layer may import nothing and be imported by nothing."""
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    return [a for a in found if not _allowed(_place(a.importer), _place(a.imported), rank)]


def _place(module: str) -> str:
    """ "graph" of "fluxrewrite.graph.view"; "" of the package itself."""
    return [*module.split("."), ""][1]


def _allowed(importer: str, imported: str, rank: Mapping[str, int]) -> bool:
    if importer == imported:
        return True
    if importer in ("", "__main__"):  # the front doors: `import fluxrewrite` and `python -m fluxrewrite`
        return imported in rank
    if importer in MAY_IMPORT:
        return imported in MAY_IMPORT[importer]
    return importer in rank and imported in rank and rank[imported] < rank[importer]


def circles(found: Sequence[Arrow]) -> list[list[Arrow]]:
    """Imports that lead back to where they start: one closed chain of arrows for each circle."""
    out: dict[str, list[Arrow]] = {}
    for arrow in found:
        out.setdefault(arrow.importer, []).append(arrow)
    done: set[str] = set()
    chains = []
    for start in out:
        chain = _chain_back(start, out, done)
        if chain:
            chains.append(chain)
    return chains


def _chain_back(start: str, out: Mapping[str, Sequence[Arrow]], done: set[str]) -> list[Arrow]:
    """A chain of arrows that closes, found in depth from `start`; empty where there is none that is new."""
    if start in done:
        return []
    trail: list[Arrow] = []
    pending = [(start, iter(out.get(start, ())))]
    while pending:
        module, rest = pending[-1]
        arrow = next(rest, None)
        if arrow is None:
            done.add(module)
            pending.pop()
            trail = trail[:-1]
            continue
        on_the_way = [m for m, _ in pending]
        if arrow.imported in on_the_way:
            done.update(on_the_way)
            return [*trail[on_the_way.index(arrow.imported) :], arrow]
        if arrow.imported not in done:
            trail.append(arrow)
            pending.append((arrow.imported, iter(out.get(arrow.imported, ()))))
    return []
