"""A FLUX.2 of 1 + 1 blocks, compiled by this backend and compared with itself uncompiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fluxrewrite


def inlined(site: Any) -> bool | str:
    """Weights are joined where a site can be written inline; a kernel takes the rest."""
    return "inline" if site.kind == "qkv" and site.form != "packed" else True


@pytest.fixture
def small(flux2: Any) -> Callable[..., tuple[torch.nn.Module, dict[str, Any]]]:
    """`small(dtype)`: the model and its inputs."""

    def build(dtype: torch.dtype = torch.float32, **config: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
        return flux2(dtype, **{"num_layers": 1, "num_single_layers": 1, **config})

    return build


@pytest.fixture
def plugin() -> Callable[..., fluxrewrite.dynamo.backend.Backend]:
    """`plugin(policy)`: a backend that raises what it would only warn of; "inline" is a policy here."""

    def make(policy: Any = "all", inner: Any = "eager", strict: bool = True, **options: Any) -> Any:
        policy = inlined if policy == "inline" else policy
        return fluxrewrite.backend(inner, policy=policy, strict=strict, provider="reference", **options)

    return make


@pytest.fixture
def same() -> Callable[..., torch.Tensor]:
    """`same(run, model, inputs)`: both give the same; that result."""

    def check(run: Any, model: Any, inputs: Any, tolerance: float = 1e-4, grad: bool = False) -> torch.Tensor:
        with torch.set_grad_enabled(grad):
            expected = model(**copy.deepcopy(inputs))[0]
            found = run(**copy.deepcopy(inputs))[0]
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
        return expected

    return check


@pytest.fixture
def taken() -> Callable[..., dict[str, int]]:
    """`taken(backend)`: how many sites of each kind its reports say were rewritten."""

    def count(backend: Any) -> dict[str, int]:
        found: dict[str, int] = {}
        for site in (s for r in backend.reports for s in r.sites if s.choice != "keep"):
            found[site.kind] = found.get(site.kind, 0) + 1
        return found

    return count


@pytest.fixture
def reasons() -> Callable[..., set[str]]:
    """`reasons(backend)`: the reason codes of everything that was left alone."""

    def collect(backend: Any) -> set[str]:
        return {r.code for report in backend.reports for s in report.sites for r in s.reasons}

    return collect
