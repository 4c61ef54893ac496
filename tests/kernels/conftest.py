"""A provider made by a test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pytest

from fluxrewrite import kernel
from fluxrewrite.provider import Implementation, Provider, implementations


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`provide(kernels, versions)`: install the provider "mine"; kernels by name, a launch function or all of it."""

    def install(kernels: Mapping[str, Any], versions: tuple[str, ...] = (), group: str = "providers") -> None:
        module = ModuleType("provider_of_a_test")
        entry = EntryPoint("mine", f"{module.__name__}:PROVIDER", f"fluxrewrite.{group}")
        built = {k: v if isinstance(v, Implementation) else Implementation(v, (), "m:f") for k, v in kernels.items()}
        found = (lambda version: kernels[version]) if versions else (lambda _: built)
        module.PROVIDER = Provider("mine", versions, found, lambda _: None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(
            kernel,
            "entry_points",
            lambda group: [*entry_points(group=group), *([entry] if group == entry.group else [])],
        )
        implementations.cache_clear()

    yield install
    implementations.cache_clear()
