"""What fluxrewrite needs to know about a backend that compiles rewritten graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch.fx import GraphModule

__all__ = ["InnerAdapter", "InnerBackend"]


@dataclass(frozen=True)
class InnerAdapter:
    """What is done around an inner backend for one execution of kernel calls.

    Attributes:
        ready: prepares a rewritten graph for the backend. The key of a compiled artifact covers the source of this function.
        eager_fallback: returns whether the backend may silently run a graph eagerly; None where that is not known.
        fallback_warning: logged once where it may.
        cache_key: returns what a compiled artifact depends on besides the graph, the options and the source of `ready`, as lines
            of text such as "lnc 2".
    """

    ready: Callable[[GraphModule], GraphModule] = lambda gm: gm
    eager_fallback: Callable[[], bool | None] = lambda: None
    fallback_warning: str = ""
    cache_key: Callable[[], tuple[str, ...]] = tuple


@dataclass(frozen=True)
class InnerBackend:
    """An inner backend, registered under its torch name in the entry point group `fluxrewrite.inner_backends`.

    The defaults fit a backend that takes every graph as it is. They also apply to names that are not registered.

    Attributes:
        profile: the device profile that times are predicted with by default.
        accelerator: the type of torch device that it compiles for, as `torch.accelerator` reports it ("neuron"). Where torch sees
            such a device, this inner backend is the default.
        default_execution: returns what a kernel call runs by default, one of `fluxrewrite.provider.registry.EXECUTIONS`.
        takes_lnc: whether the caller may choose the physical cores of a kernel call.
        custom_calls: whether it compiles calls of the execution "custom_call".
        adapter: `adapter(execution, lnc)` returns what is done around the backend; `lnc` is the number of physical cores of a
            kernel call, or None for the runtime's. It raises InputError for an execution that the backend cannot compile, and for
            a missing package.
        settings: returns the compiler's own settings as text. Measured times are reused only under the same settings.
        caches: the compiler's caches, as environment variable -> name of a folder. `fluxrewrite bench` points each variable to an
            empty folder of that name, so that a cold run is cold.
    """

    profile: str = "cpu"
    accelerator: str | None = None
    default_execution: Callable[[], str] = lambda: "reference"
    takes_lnc: bool = False
    custom_calls: bool = False
    adapter: Callable[[str, int | None], InnerAdapter] = lambda execution, lnc: InnerAdapter()
    settings: Callable[[], str] = str
    caches: Mapping[str, str] = field(default_factory=dict)
