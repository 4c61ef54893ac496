"""What a compiled artifact depends on besides the model's graph: passes, kernels, limits, options, target and versions."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch

from ..fusion.boundary.target import Target
from ..provider.digests import (
    core_files,
    files_digest,
    function_digest,
    kernel_text,
    module_digest,
    source_digest,
)
from ..rewrite.plan import Policy
from ..rewrite.selection import Selection
from .inner import InnerAdapter

__all__ = ["cache_key"]

_PLAIN = InnerAdapter()


def cache_key(
    selection: Selection,
    policy: Policy,
    target: Target | None,
    inner: Callable[..., Any],
    options: Mapping[str, Any] | None = None,
    adapter: InnerAdapter = _PLAIN,
) -> str:
    """A UUID of the rules, kernels, parameters, device profile and versions; it does not depend on the model.

    Compilers add it to the keys of their caches (`torch.compiler.config.cache_key_tag`), so that an artifact compiled with
    another kernel source or limit is never reused.

    Args:
        selection, policy, target: as the backend has them.
        inner, options: the inner backend and its options.
        adapter: what is done around the inner backend. The core's digest does not cover that of a third party.
    """
    lines = [*_lines(selection, policy, target, inner, options), *_of_adapter(adapter)]
    return str(uuid.UUID(hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]))


def _of_adapter(adapter: InnerAdapter) -> Iterator[str]:
    yield source_digest(adapter.ready) or function_digest(adapter.ready)
    yield from adapter.cache_key()


def _lines(
    selection: Selection,
    policy: Policy,
    target: Target | None,
    inner: Callable[..., Any],
    options: Mapping[str, Any] | None,
) -> Iterator[str]:
    yield from (torch.__version__, version("fluxrewrite"), files_digest(core_files()))
    yield f"{selection.names()} {selection.provider}"
    yield policy if isinstance(policy, str) else f"{policy.__module__}.{function_digest(policy)}"
    for kind, rewriter in sorted(selection.passes.items()):
        yield f"{kind} {module_digest(type(rewriter).__module__)}"
    for name, kernel in sorted(selection.kernels.items()):
        yield f"{name} {kernel_text(kernel)} {kernel.limits} {kernel.efficiency}"
    yield f"{function_digest(inner)} {sorted((options or {}).items())}"
    if target is not None:
        yield from (target.device.model_dump_json(), target.regime, target.rules.model_dump_json())
        yield from (target.evidence.model_dump_json(), str(target.calls_reference))
