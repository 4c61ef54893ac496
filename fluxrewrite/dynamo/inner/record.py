"""What fluxrewrite has to know of the backend that compiles a rewritten graph, as one record for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch.fx import GraphModule

__all__ = ["InnerAdapter", "InnerBackend"]


@dataclass(frozen=True)
class InnerAdapter:
    """What is done around an inner backend for one execution of kernel calls.

    Attributes:
        ready: makes a rewritten graph ready for it. The key of a compiled artifact covers the source of this function.
        eager_fallback: whether it may run a graph eagerly without a word; None where that is not known.
        fallback_warning: logged once where it may.
        cache_key: returns further lines for the key of a compiled artifact, such as "lnc 2": what the artifact depends on
            beside the graph, the options and the source of `ready`.
    """

    ready: Callable[[GraphModule], GraphModule] = lambda gm: gm
    eager_fallback: Callable[[], bool | None] = lambda: None
    fallback_warning: str = ""
    cache_key: Callable[[], tuple[str, ...]] = tuple


@dataclass(frozen=True)
class InnerBackend:
    """An inner backend, registered under its torch name in the entry point group `fluxrewrite.inner_backends`.

    The defaults are those of a backend that takes every graph as it is, and of every name that is not registered.

    Attributes:
        profile: device profile that times are predicted with unless the user names one.
        accelerator: type of the torch device that it compiles for, as `torch.accelerator` reports it ("neuron"). Where torch sees
            that device, this is the inner backend by default.
        default_execution: returns what a kernel call runs by default, one of `fluxrewrite.provider.registry.EXECUTIONS`.
        takes_lnc: whether the caller may choose the physical cores of a kernel call.
        custom_calls: whether it compiles calls of the execution "custom_call".
        adapter: `adapter(execution, lnc)` returns what is done around it. `lnc` is the number of physical cores of a kernel call,
            None for that of the runtime. Raises InputError for an execution that it cannot compile, or a package that is missing.
        settings: returns the compiler's own settings as text. Measured times are reused under the same settings only.
        caches: folders that it keeps compiled code in: environment variable -> a name for the folder. `fluxrewrite bench` points
            each variable to an empty folder, so that a cold run is cold.
    """

    profile: str = "cpu"
    accelerator: str | None = None
    default_execution: Callable[[], str] = lambda: "reference"
    takes_lnc: bool = False
    custom_calls: bool = False
    adapter: Callable[[str, int | None], InnerAdapter] = lambda execution, lnc: InnerAdapter()
    settings: Callable[[], str] = str
    caches: Mapping[str, str] = field(default_factory=dict)
