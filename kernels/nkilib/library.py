"""How the library is found: as a package, or in a checkout of its repository."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from fluxrewrite.errors import InputError

__all__ = ["checkout", "package"]

_PACKAGES = ("nkilib", "nkilib_src.nkilib")
"""The library as AWS's compiler ships it, and as its repository installs it."""
_FOLDERS = ("src/nkilib_src", "src/nkilib_standalone")
"""Where the repository holds the package `nkilib`: from January 2026 on, and before."""


def package(execution: str) -> str:
    """The name under which the library can be imported. Raises InputError when it cannot."""
    for name in _PACKAGES:
        with contextlib.suppress(ImportError, ValueError):  # no parent package; a module without a spec
            if importlib.util.find_spec(name) is not None:
                return name
    raise InputError(
        f"execution={execution!r} with provider nkilib needs nkilib, AWS's NKI library: install it, or put "
        "src/nkilib_src of a checkout of github.com/aws-neuron/nki-library on sys.path; "
        "execution='reference' needs neither"
    )


@contextlib.contextmanager
def checkout(path: str | Path) -> Iterator[Path]:
    """Import `nkilib` from the checkout at `path` for the duration; yields the folder put on `sys.path`.

    Modules of another `nkilib` are removed for the duration and restored afterwards.

    Raises InputError when there is no `nkilib` in the checkout.
    """
    folder = next((f for name in _FOLDERS if (f := Path(path).resolve() / name).joinpath("nkilib").is_dir()), None)
    if folder is None:
        raise InputError(
            f"{path}: no nkilib there; give a checkout of github.com/aws-neuron/nki-library, with {_FOLDERS[0]}/nkilib"
        )
    aside = _forget()
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        _forget()
        sys.modules.update(aside)


def _forget() -> dict[str, ModuleType]:
    """Take the library's modules out of `sys.modules`."""
    names = [n for n in sys.modules if n.partition(".")[0] in ("nkilib", "nkilib_src")]
    return {n: sys.modules.pop(n) for n in names}
