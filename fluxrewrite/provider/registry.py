"""Providers: whose kernels stand behind the canonical ops, within which limits, and how one is called.

Found through the entry point group `fluxrewrite.providers`, so a third party brings kernels of its own for the known ops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError, mark
from ..kernel import Kernel, Limit, load_kernels, load_plugins
from .check_suite import Suite
from .custom_call import custom_call_of
from .profile import Profiled, ProfileRequest

__all__ = [
    "EXECUTIONS",
    "Implementation",
    "Provider",
    "implementations",
    "launch",
    "load_provider",
    "profile",
    "provided",
    "suite_of",
]

EXECUTIONS = ("reference", "emulate", "device", "custom_call")
"""What a call of an op runs: its reference body, the provider's kernel in an emulator, that kernel on a device, or nothing:
a bare custom call that XLA compiles, for analysis."""


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
        profile: `profile(name, asked)` models what one call costs on a device, without that device; `name` is the provider with
            its version. It raises InputError for what it does not know and what the device would refuse. None: it has no model.
        suite: answers the cases that its kernels are checked by. None: there are none.
    """

    name: str
    versions: tuple[str, ...]
    implementations: Callable[[str], Mapping[str, Implementation]]
    check: Callable[[str], None]
    profile: Callable[[str, ProfileRequest], Profiled] | None = None
    suite: Callable[[], Suite] | None = None


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
    if execution in ("emulate", "device"):
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


def profile(provider: str, request: ProfileRequest) -> Profiled:
    """What one call of a kernel of `provider` costs by the provider's own model; no hardware runs.

    Raises InputError for an unknown provider or kernel, one that has no model, and what the provider refuses.
    """
    if provider == "reference":
        raise InputError("provider 'reference' has no NKI kernels; choose builtin")
    found = implementations(provider)
    if request.kernel not in found:
        load_kernels((request.kernel,))
        raise InputError(f"provider {provider!r} has no kernel {request.kernel!r}; it has {', '.join(sorted(found))}")
    model = load_provider(provider)[0].profile
    if model is None:
        raise InputError(f"provider {provider!r} has no model of what its kernels cost")
    return model(provider, request)


def suite_of(provider: str) -> Suite:
    """The cases that the kernels of `provider` are checked by. Raises InputError for an unknown provider, and one without any."""
    if provider == "reference":
        raise InputError("provider 'reference' has no kernels to verify; choose builtin")
    suite = load_provider(provider)[0].suite
    if suite is None:
        raise InputError(f"provider {provider!r} has no cases to check its kernels by")
    return suite()


def launch(kernel: str, provider: str, execution: Any, *arguments: Any) -> Any:
    """Run the kernel of `provider` behind the op `kernel` on the op's arguments. Bodies of the ops call this.

    `execution` is one of `EXECUTIONS`, or what runs the kernel itself, as `fluxrewrite.dynamo.inner.NeuronDevice`.
    What the kernel raises goes on up, marked with the call, so that the backend knows which site to leave alone.
    """
    try:
        if execution == "custom_call":
            return custom_call_of(load_kernels((kernel,))[kernel].op, arguments)
        return implementations(provider)[kernel].launch(execution, *arguments)
    except Exception as error:
        mark(error, kernel, arguments)
        raise
