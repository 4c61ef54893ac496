"""What a kernel is, and where kernels and passes come from.

Kernels and passes are found through the entry point groups `fluxrewrite.kernels` and `fluxrewrite.passes`, so a third party
adds one without touching this repository.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch

from .errors import InputError
from .site import Code, Reason

__all__ = ["Kernel", "Limit", "load_kernels", "load_plugins"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limit:
    """One limit of a kernel on a size or dtype of its site.

    Attributes:
        dim: name of the size in `Site.shapes`, or "dtype".
        maximum: largest size allowed.
        multiple_of: sizes allowed are multiples of this.
        one_of: values allowed.
        source: document and version that state the limit.
    """

    dim: str
    maximum: int | None = None
    multiple_of: int | None = None
    one_of: tuple[int | str, ...] | None = None
    source: str = ""

    def __str__(self) -> str:
        """The limit as a short text: "head_size <= 128"."""
        if self.maximum is not None:
            return f"{self.dim} <= {self.maximum}"
        if self.multiple_of is not None:
            return f"{self.dim} multiple of {self.multiple_of}"
        return f"{self.dim} in {{{', '.join(map(str, self.one_of or ()))}}}"

    def check(self, sizes: Mapping[str, int | str]) -> Reason | None:
        """Why `sizes` break the limit, or None. A symbolic size (a text) breaks every limit on it: it cannot be proved."""
        size = sizes.get(self.dim)
        if size is None:
            return None
        if isinstance(size, int) or self.dim == "dtype":
            fits = (
                (self.maximum is None or int(size) <= self.maximum)
                and (self.multiple_of is None or int(size) % self.multiple_of == 0)
                and (self.one_of is None or size in self.one_of)
            )
            if fits:
                return None
        source = f" ({self.source})" if self.source else ""
        return Reason(Code.LIMIT, f"{self.dim} {size}: the kernel takes {self}{source}")


@dataclass(frozen=True)
class Kernel:
    """A kernel: the canonical op, the limits within which it may be used, and who provides it.

    Attributes:
        name: also the kind of site that it replaces.
        op: the custom op, `torch.ops.fluxrewrite.<name>.default`. Its body is the reference.
        limits: checked against every site.
        summary: one line for `fluxrewrite kernels`.
        provider: "builtin" for the kernels of this repository.
    """

    name: str
    op: Any
    limits: tuple[Limit, ...]
    summary: str
    provider: str = "builtin"

    def refusals(self, sizes: Mapping[str, int | str], dtype: torch.dtype) -> tuple[Reason, ...]:
        """The limits that a site of these sizes and dtype breaks, each with its numbers."""
        known = {**sizes, "dtype": str(dtype).removeprefix("torch.")}
        return tuple(reason for limit in self.limits if (reason := limit.check(known)) is not None)


def load_plugins(
    group: str, names: tuple[str, ...] | None = None, build: Callable[[Any], Any] = lambda loaded: loaded
) -> dict[str, Any]:
    """Load the entry points of `group`, by name, in name order; each as `build` makes it.

    An entry that cannot be loaded or built is left out with a warning, unless it is one of `names`. Raises InputError when
    none is found at all, or when one of `names` is not among them or cannot be loaded.
    """
    found: dict[str, EntryPoint] = {e.name: e for e in entry_points(group=group)}
    if not found:
        raise InputError(
            f"no entry points in group {group!r}: fluxrewrite is not installed; run: pip install -e . in its folder"
        )
    for name in names or ():
        if name not in found:
            raise InputError(f"unknown kernel {name!r}; known: {', '.join(sorted(found))}")
    loaded: dict[str, Any] = {}
    for name in sorted(names if names is not None else found):
        try:
            loaded[name] = build(found[name].load())
        except Exception as error:
            if names is not None:
                raise InputError(f"{group} {name!r} cannot be loaded ({type(error).__name__}: {error})") from error
            log.warning(
                "fluxrewrite: %s %r cannot be loaded (%s: %s); it is left out", group, name, type(error).__name__, error
            )
    return loaded


def load_kernels(
    names: tuple[str, ...] | None = None, load: Callable[..., dict[str, Any]] = load_plugins
) -> dict[str, Kernel]:
    """All kernels by name, or just `names`."""
    return load("fluxrewrite.kernels", names)
