"""fluxrewrite: NKI kernels into traced diffusers transformers, and what each call costs the compiler's fusion."""

from .analysis import Options, inspect
from .errors import CheckFailed, FluxrewriteError, InputError, RewriteError
from .report.model import Report
from .site import Code, Miss, Reason, Site
from .torch_backend import Backend, backend

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
