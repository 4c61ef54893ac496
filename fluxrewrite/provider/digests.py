"""Digests of source code: of a module together with its imports from its own package, and of the file that defines a function."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..kernel import Kernel
from .registry import implementations

__all__ = [
    "core_files",
    "files_digest",
    "folder_digest",
    "function_digest",
    "kernel_text",
    "module_digest",
    "module_files",
    "source_digest",
]

NO_SOURCE = "no source"
_CORE = Path(__file__).parents[1]


def function_digest(function: Any) -> str:
    """Digest of the file that defines a function or class; its name where there is no such file."""
    try:
        return _digest([inspect.getsourcefile(function)])
    except TypeError:
        return str(getattr(function, "__qualname__", type(function).__qualname__))


def source_digest(written: Any) -> str | None:
    """Digest of the module that defines a function or class, and of all that it imports from its own top-level package.

    None where there is no file, as in a notebook: the same name may mean something else the next time.
    """
    try:
        file, module = inspect.getsourcefile(written), inspect.getmodule(written)
    except (TypeError, OSError):
        return None
    if file is None or module is None or not Path(file).is_file():
        return None
    return f"{files_digest([Path(file)])} {module_digest(module.__name__)}"


def module_digest(module: str) -> str:
    """Digest of a module and of all that it imports, directly or indirectly, from its own top-level package."""
    return _digest(list(map(str, module_files(module))))


def module_files(module: str) -> list[Path]:
    """The files that `module_digest` reads, in the order of their modules' names; [] for a name that is not a module."""
    top = module.partition(".")[0]
    pending, found = [module], dict[str, Path | None]()
    while pending:
        name = pending.pop()
        if name in found:
            continue
        path = found[name] = _file(name)
        if path is not None:
            pending += [n for n in _imports(path, name) if n.partition(".")[0] == top]
    return [path for _, path in sorted(found.items()) if path is not None]


def core_files() -> list[Path]:
    """Every source file of the core, without passes and kernels, which are inside the same folder in a wheel."""
    apart = (_CORE / "passes", _CORE / "kernels")
    return sorted(p for p in _CORE.rglob("*.py") if not any(p.is_relative_to(folder) for folder in apart))


def folder_digest(folder: Path) -> str:
    """Digest of all Python files in a folder and its subfolders."""
    return files_digest(folder.rglob("*.py"))


def files_digest(paths: Iterable[Path]) -> str:
    """Digest of some files, whatever their order."""
    return _digest(sorted(map(str, paths)))


def _digest(paths: Sequence[str | None]) -> str:
    read = [Path(p).read_bytes() for p in paths if p is not None and Path(p).is_file()]
    if not read:
        return NO_SOURCE
    return hashlib.sha256(b"\0".join(read)).hexdigest()


def _file(module: str) -> Path | None:
    """The source file of a module; None for a name that is not a module, and for a module without one."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # a parent package that cannot be imported here, such as kernels without `nki`
        return _beside(module)
    origin = None if spec is None else spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


def _beside(module: str) -> Path | None:
    """The same from the folder of the top-level package, without importing anything."""
    top, _, rest = module.partition(".")
    spec = importlib.util.find_spec(top)
    for root in (spec.submodule_search_locations if spec is not None else None) or ():
        base = Path(root, *rest.split("."))
        found = next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)
        if found is not None:
            return found
    return None


def _imports(path: Path, module: str) -> tuple[str, ...]:
    """Names that a file imports. Some are not modules but functions and classes: without importing, the two look alike."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        return _imported(path.read_bytes(), package)
    except (OSError, SyntaxError):
        return ()


@lru_cache(maxsize=1024)  # keyed by content, so that an edited file is read again
def _imported(source: bytes, package: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_named(ast.parse(source), package)))


def _named(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(p for p in (base, node.module) if p)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def kernel_text(kernel: Kernel) -> str:
    """The name of a kernel, and digests of the sources that run when it is called."""
    name = getattr(kernel.op, "_name", str(kernel.op)).removesuffix(".default")
    definition = torch._library.custom_ops.OPDEFS.get(name)
    body = definition._init_fn if definition is not None else kernel.op
    sources = [source_digest(body) or function_digest(body)]
    if kernel.execution != "reference":
        found = implementations(kernel.provider)[kernel.name]
        sources += [
            source_digest(found.launch) or function_digest(found.launch),
            module_digest(found.entry.partition(":")[0]),
        ]
    return " ".join([kernel.name, name, kernel.provider, kernel.execution, *sources])
