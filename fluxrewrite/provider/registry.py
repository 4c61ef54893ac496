"""Providers of the kernels behind the canonical ops: their limits, and how a kernel is called.

Providers are found through the entry point group `fluxrewrite.providers`, so a third party can add kernels for the known ops.
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
"""What a call of an op runs: its reference body, the provider's kernel in an emulator, or that kernel on a device.

A "custom_call" runs nothing: XLA compiles it, for analysis."""


@dataclass(frozen=True)
class Implementation:
    """One provider's kernel behind one canonical op.

    Attributes:
        launch: `launch(execution, *arguments of the op)` returns what the op returns; `execution` is "emulate" or "device".
        limits: in addition to those of the op.
        entry: the kernel function, as "module:function".
        efficiency: fraction of the device's peaks (memory bandwidth or matrix products, whichever takes longer) that the kernel
            is modelled to reach; 1 where it is not known.
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
        versions: known versions, oldest first; () for a provider without versions.
        implementations: returns the kernels of one of `versions` ("" without versions), by name of the op.
        check: `check(execution)` raises InputError where its kernels cannot run that way here.
        profile: `profile(name, request)` models what one call costs on a device, without that device; `name` is the provider with
            its version. It raises InputError for unknown requests and for those that the device would refuse. None for a provider
            without a model.
        suite: returns the cases that its kernels are checked by; None for a provider without cases.
    """

    name: str
    versions: tuple[str, ...]
    implementations: Callable[[str], Mapping[str, Implementation]]
    check: Callable[[str], None]
    profile: Callable[[str, ProfileRequest], Profiled] | None = None
    suite: Callable[[], Suite] | None = None


def load_provider(text: str) -> tuple[Provider, str]:
    """The provider that `text` names, as "name" or "name@version", and the version, by default the newest.

    Raises InputError for an unknown provider or version; the message lists the known ones.
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
    """The kernels of `provider` by name, each with the provider's limits in addition to those of the op.

    The provider "reference" means the bodies of the ops: it has every kernel, and no further limit.

    Raises InputError for an unknown provider, version or execution, and for an execution that is not available here.
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
    """The cost of one kernel call by the provider's own model; no hardware runs.

    Raises InputError for an unknown provider or kernel, a provider without a model, and a request that the provider refuses.
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
    """The cases that the kernels of `provider` are checked by. Raises InputError for an unknown provider, or one without cases."""
    if provider == "reference":
        raise InputError("provider 'reference' has no kernels to verify; choose builtin")
    suite = load_provider(provider)[0].suite
    if suite is None:
        raise InputError(f"provider {provider!r} has no cases to check its kernels by")
    return suite()


def launch(kernel: str, provider: str, execution: Any, *arguments: Any) -> Any:
    """Run the kernel of `provider` behind the op `kernel` on the op's arguments. The bodies of the ops call this.

    `execution` is one of `EXECUTIONS`, or an object that runs the kernel, such as `fluxrewrite.dynamo.inner.NeuronDevice`.
    Errors of the kernel are marked with the call and raised again, so that the backend knows which site to leave alone.
    """
    try:
        if execution == "custom_call":
            return custom_call_of(load_kernels((kernel,))[kernel].op, arguments)
        return implementations(provider)[kernel].launch(execution, *arguments)
    except Exception as error:
        mark(error, kernel, arguments)
        raise
