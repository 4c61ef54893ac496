"""Kernels and their limits, and the entry points that kernels and passes are loaded from.

Kernels and passes are found through the entry point groups `fluxrewrite.kernels` and `fluxrewrite.passes`. A third party adds one
without changing this repository.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch

from .errors import InputError
from .site import Code, Reason

__all__ = ["Kernel", "Limit", "load_kernels", "load_plugins", "plugin_names"]

log = logging.getLogger(__name__)


Sizes = Mapping[str, int | float | str | None]


@dataclass(frozen=True)
class Limit:
    """One limit of a kernel on its site.

    Attributes:
        dim: what is limited: a size of `Site.facts` ("head_size"), a product of sizes ("batch*heads*sequence"), or "dtype",
            "mask", "scale" and the like.
        maximum: largest value allowed.
        multiple_of: the value must be a multiple of this.
        one_of: values allowed.
        source: document and version that state the limit.
        above: the value must be greater than this.
        dtypes: the limit holds for sites of these dtypes only; for all if empty.
    """

    dim: str
    maximum: int | None = None
    multiple_of: int | None = None
    one_of: tuple[int | str, ...] | None = None
    source: str = ""
    above: float | None = None
    dtypes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The limit as a short text: "head_size <= 128"."""
        what = f"{self.dim} ({' '.join(self.dtypes)})" if self.dtypes else self.dim
        if self.maximum is not None:
            return f"{what} <= {self.maximum}"
        if self.above is not None:
            return f"{what} > {self.above:g}"
        if self.multiple_of is not None:
            return f"{what} multiple of {self.multiple_of}"
        return f"{what} in {{{', '.join(map(str, self.one_of or ()))}}}"

    def check(self, sizes: Sizes) -> Reason | None:
        """Why `sizes` violate the limit, or None. A symbolic size (a text) violates every limit on it."""
        # The model may run later at any size of the symbol. That all of them are allowed cannot be proved here.
        if self.dtypes and sizes.get("dtype") not in self.dtypes:
            return None
        factors = [sizes.get(name) for name in self.dim.split("*")]
        if any(f is None for f in factors):
            return None
        numbers = [f for f in factors if isinstance(f, (int, float))]
        value: float | str = math.prod(numbers)
        if len(numbers) == len(factors):
            fits = self._fits(math.prod(numbers))
        else:
            # A text is a kind, such as that of a mask, which `one_of` may allow, or a symbolic size, which nothing allows.
            value = "*".join(map(str, factors))
            fits = self.one_of is not None and value in self.one_of
        if fits:
            return None
        source = f" ({self.source})" if self.source else ""
        return Reason(Code.LIMIT, f"{self.dim} {value}: the kernel takes {self}{source}")

    def _fits(self, value: float) -> bool:
        return (
            (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.multiple_of is None or value % self.multiple_of == 0)
            and (self.one_of is None or value in self.one_of)
        )


@dataclass(frozen=True)
class Kernel:
    """A kernel: the canonical op, the limits within which it may be used, and who provides it.

    Attributes:
        name: name of the kernel and of the kind of site that it replaces.
        op: the custom op, `torch.ops.fluxrewrite.<name>.default`. Its body is the reference.
        limits: checked against every site.
        summary: one line for `fluxrewrite kernels`.
        provider: "reference" for the op's own body, which runs anywhere; otherwise the provider whose kernel is used, as
            `fluxrewrite.provider.registry.load_provider` takes it ("builtin", `nkilib@2.29`).
        execution: what runs when the op is called, one of `fluxrewrite.provider.registry.EXECUTIONS`.
        efficiency: as in `fluxrewrite.provider.Implementation`.
    """

    name: str
    op: Any
    limits: tuple[Limit, ...]
    summary: str
    provider: str = "reference"
    execution: str = "reference"
    efficiency: float = 1.0

    def symbolic(self, shapes: Mapping[str, int | str]) -> Reason | None:
        """Why a site with a symbolic size (a text) is refused, or None. On a device, a kernel is compiled for fixed sizes."""
        found = [f"{name} {size}" for name, size in shapes.items() if isinstance(size, str)]
        if self.execution not in ("device", "custom_call") or not found:
            return None
        remedy = "kernels are compiled for static shapes (TorchNeuron refuses dynamic ones); compile with dynamic=False"
        return Reason(Code.LIMIT, f"{', '.join(found)}: {remedy}")

    def refusals(self, sizes: Sizes, dtype: torch.dtype) -> tuple[Reason, ...]:
        """One reason for each limit that a site of these sizes and dtype violates, with the numbers."""
        known = {**sizes, "dtype": str(dtype).removeprefix("torch.")}
        return tuple(reason for limit in self.limits if (reason := limit.check(known)) is not None)

    @property
    def options(self) -> dict[str, str]:
        """Keyword arguments of the op that choose what runs; none for the reference."""
        return {} if self.execution == "reference" else {"execution": self.execution, "provider": self.provider}


def load_plugins(
    group: str, names: tuple[str, ...] | None = None, build: Callable[[Any], Any] = lambda loaded: loaded
) -> dict[str, Any]:
    """Load the entry points of a group.

    Args:
        group: "fluxrewrite.kernels", for example.
        names: the entries to load; all if None.
        build: makes the result for an entry from the object that it names.

    Returns:
        The results by name, in the order of names. An entry that cannot be loaded or built is left out with a warning, unless
        it was requested in `names`.

    Raises:
        InputError: the group is empty, or an entry of `names` does not exist or cannot be loaded.
    """
    found = _entries(group)
    for name in names or ():
        if name not in found:
            what = "provider" if group.endswith(".providers") else "kernel"
            raise InputError(f"unknown {what} {name!r}; known: {', '.join(sorted(found))}")
    loaded: dict[str, Any] = {}
    for name in sorted(names if names is not None else found):
        try:
            loaded[name] = build(found[name].load())
        except Exception as error:
            # A broken package of a third party must not stop a compile that does not need it. One that was requested must.
            if names is not None:
                raise InputError(f"{group} {name!r} cannot be loaded ({type(error).__name__}: {error})") from error
            log.warning(
                "fluxrewrite: %s %r cannot be loaded (%s: %s); it is left out", group, name, type(error).__name__, error
            )
    return loaded


def plugin_names(group: str) -> tuple[str, ...]:
    """Names of the entry points of `group`, none of which is loaded. Raises InputError when there is none at all."""
    return tuple(sorted(_entries(group)))


def _entries(group: str) -> dict[str, EntryPoint]:
    found = {e.name: e for e in entry_points(group=group)}
    if not found:
        raise InputError(
            f"no entry points in group {group!r}: fluxrewrite is not installed; run: pip install -e . in its folder"
        )
    return found


def load_kernels(
    names: tuple[str, ...] | None = None, load: Callable[..., dict[str, Any]] = load_plugins
) -> dict[str, Kernel]:
    """All kernels by name, or only `names`. Raises InputError as `load_plugins` does."""
    return load("fluxrewrite.kernels", names)
