"""Providers: whose kernels stand behind the canonical ops, within which limits, and how one is called.

Found through the entry point group `fluxrewrite.providers`, so a third party brings kernels of its own for the known ops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import InputError, mark
from .kernel import Kernel, Limit, load_plugins

__all__ = ["EXECUTIONS", "Implementation", "Provider", "implementations", "launch", "load_provider", "provided"]

EXECUTIONS = ("reference", "emulate", "device")
"""What a call of an op runs: its reference body, the provider's kernel in an emulator, or that kernel on a device."""


@dataclass(frozen=True)
class Implementation:
    """One provider's kernel behind one canonical op.

    Attributes:
        launch: `launch(execution, *arguments of the op)` answers what the op answers; `execution` is "emulate" or "device".
        limits: beside those of the op.
        entry: where the kernel function is, as "module:function".
        efficiency: share of the device's peaks (memory bandwidth or matrix products, whichever takes longer) that the kernel is
            modelled to reach; 1 where nobody said.
    """

    launch: Callable[..., Any]
    limits: tuple[Limit, ...]
    entry: str
    efficiency: float = 1.0


@dataclass(frozen=True)
class Provider:
    """A source of kernels.

    Attributes:
        name: as in `--provider NAME`.
        versions: known versions, oldest first; empty when it has none of its own.
        implementations: kernels by name of the op, for one of `versions` ("" when there are none).
        check: `check(execution)` raises InputError when its kernels cannot run that way here.
    """

    name: str
    versions: tuple[str, ...]
    implementations: Callable[[str], Mapping[str, Implementation]]
    check: Callable[[str], None]


def load_provider(text: str) -> tuple[Provider, str]:
    """The provider that `text` names, "name" or "name@version", and the version (the newest if not given).

    Raises InputError for an unknown provider or version, with the known ones.
    """
    name, at, version = text.partition("@")
    provider: Provider = load_plugins("fluxrewrite.providers", (name,))[name]
    if not at:
        return provider, provider.versions[-1] if provider.versions else ""
    if version not in provider.versions:
        known = ", ".join(f"{name}@{v}" for v in provider.versions) or name
        raise InputError(f"unknown version {version!r} of provider {name!r}; known: {known}")
    return provider, version


@functools.cache
def implementations(text: str) -> Mapping[str, Implementation]:
    """The kernels of the provider that `text` names, by name of the op. Raises InputError as `load_provider` does."""
    provider, version = load_provider(text)
    return provider.implementations(version)


def provided(kernels: Iterable[Kernel], provider: str, execution: str) -> dict[str, Kernel]:
    """The kernels that `provider` has, by name, with its limits beside those of the op.

    "reference" stands for the ops' own bodies: every kernel, no further limit.

    Raises InputError for an unknown provider, version or execution, and for an execution that cannot be had here.
    """
    if execution not in EXECUTIONS:
        raise InputError(f"unknown execution {execution!r}; known: {', '.join(EXECUTIONS)}")
    if provider == "reference":
        if execution != "reference":
            raise InputError(f"provider 'reference' has nothing to {execution}; choose builtin or nkilib")
        return {k.name: k for k in kernels}
    if execution != "reference":
        load_provider(provider)[0].check(execution)
    found = implementations(provider)
    return {
        k.name: replace(
            k,
            limits=k.limits + found[k.name].limits,
            provider=provider,
            execution=execution,
            efficiency=found[k.name].efficiency,
        )
        for k in kernels
        if k.name in found
    }


def launch(kernel: str, provider: str, execution: str, *arguments: Any) -> Any:
    """Run the kernel of `provider` behind the op `kernel` on the op's arguments. Bodies of the ops call this.

    What the kernel raises goes on up, marked with the call, so that the backend knows which site to leave alone.
    """
    try:
        return implementations(provider)[kernel].launch(execution, *arguments)
    except Exception as error:
        mark(error, kernel, arguments)
        raise
