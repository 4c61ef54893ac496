"""The inner backend, called under a cache key of everything that a compiled artifact depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch._dynamo.convert_frame import compile_lock
from torch.fx import GraphModule

from .cache_key import cache_key
from .inner import InnerAdapter
from .machine import machine_text
from .settings import Settings

__all__ = ["InnerCompiler"]


@dataclass(frozen=True)
class InnerCompiler:
    """Compiles graphs with the inner backend.

    Attributes:
        name: of the inner backend.
        function: `(gm, example_inputs, **options) -> callable`.
        options: passed on as `options=`; None passes nothing.
        adapter: what the inner backend needs besides the graph.
        settings: what a compiled artifact depends on besides the graph.
    """

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any] | None
    adapter: InnerAdapter
    settings: Settings

    def compile(self, gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """The compiled graph. Whatever the inner backend raises goes up."""
        extra = {} if self.options is None else {"options": dict(self.options)}
        tags = [t for t in (torch.compiler.config.cache_key_tag, f"fluxrewrite {self.cache_key}") if t]
        config: Any = torch.compiler.config
        # Dynamo holds this lock when it compiles. A recompile after a failed first run happens outside Dynamo and must take it,
        # because the tag is global: without the lock another thread's graph could be compiled under it.
        with compile_lock, config.patch(cache_key_tag=" ".join(tags)):
            result: Callable[..., Any] = self.function(self.adapter.ready(gm), inputs, **extra)
        return result

    @cached_property
    def cache_key(self) -> str:
        """See `fluxrewrite.dynamo.cache_key.cache_key`; it is part of the keys of Inductor's caches."""
        s = self.settings
        return cache_key(
            s.selection, s.policy, s.target, inner=self.function, options=self.options, adapter=self.adapter
        )

    def machine(self, device: torch.device) -> str:
        """What measured times depend on besides graph and kernels: see `machine_text`."""
        return machine_text(device, inner=self.function, name=self.name, options=self.options)
