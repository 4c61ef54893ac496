"""The provider `nkilib`: kernels of AWS's NKI library behind the canonical ops.

The library comes with AWS's compiler, or as a checkout of its public repository (`checkout`); no part of it is in this package.
It has no kernel for `norm_rope_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fluxrewrite.provider import Implementation, Provider

from .. import toolchain
from ..harness.hooks import profile, suite
from . import adapters, limits
from .library import checkout, package

__all__ = ["PROVIDER", "checkout"]


def _check(execution: str) -> None:
    """Raise InputError when kernels cannot run that way here, or the library is missing."""
    toolchain.check(execution)
    package(execution)


def _implementations(version: str) -> Mapping[str, Implementation]:
    launchers: dict[str, Callable[..., Any]] = {
        "rope": partial(adapters.rope, version not in limits.UNTILED_ROPE),
        "qkv": adapters.qkv,
        "attention": adapters.attention,
    }
    return {
        name: Implementation(launchers[name], limits.LIMITS[name][version], f"nkilib.{entry}", _EFFICIENCY[name])
        for name, entry in adapters.ENTRIES.items()
    }


_EFFICIENCY = {"rope": 0.10, "qkv": 0.53, "attention": 0.20}
"""Fraction of trn2's peaks reached under the emulator: tools/bench_kernels.py --nkilib, sources of 2.29, bf16, two
cores, 768 tokens."""

PROVIDER = Provider("nkilib", limits.VERSIONS, _implementations, _check, profile=profile, suite=suite)
