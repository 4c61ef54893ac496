"""fluxrewrite: NKI kernels into traced diffusers transformers, and what each call costs the compiler's fusion."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis import Options, inspect
    from .dynamo.backend import Backend, backend
    from .errors import CheckFailed, FluxrewriteError, InputError, RewriteError
    from .report.model import Report
    from .site import Code, Miss, Reason, Site

__all__ = [
    "Backend",
    "CheckFailed",
    "Code",
    "FluxrewriteError",
    "InputError",
    "Miss",
    "Options",
    "Reason",
    "Report",
    "RewriteError",
    "Site",
    "backend",
    "inspect",
]

_HOMES = {
    "analysis": ("Options", "inspect"),
    "errors": ("CheckFailed", "FluxrewriteError", "InputError", "RewriteError"),
    "report.model": ("Report",),
    "site": ("Code", "Miss", "Reason", "Site"),
    "dynamo.backend": ("Backend", "backend"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: importing torch takes seconds, and `fluxrewrite --help` does not need it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
