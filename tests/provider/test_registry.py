"""Providers: names, versions and executions, what is offered, and what is called."""

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch

from fluxrewrite.errors import InputError
from fluxrewrite.kernel import Kernel, Limit, load_kernels
from fluxrewrite.provider import Implementation, Provider, launch, registry
from fluxrewrite.provider.profile import ProfileRequest
from fluxrewrite.provider.registry import load_provider, profile, provided, suite_of
from fluxrewrite.rewrite.selection import Selection

KERNELS = tuple(load_kernels().values())


@pytest.mark.parametrize(
    ("text", "execution", "message"),
    [
        ("neuron", "reference", r"unknown provider 'neuron'; known: builtin, nkilib"),
        ("", "reference", r"unknown provider ''; known: builtin, nkilib"),
        ("nkilib@1.0", "reference", r"unknown version '1.0' of provider 'nkilib'; known: nkilib@2.27, .*, nkilib@2.32"),
        ("nkilib@", "reference", r"unknown version '' of provider 'nkilib'"),
        ("builtin@2.29", "reference", r"unknown version '2.29' of provider 'builtin'; known: builtin"),
        ("builtin", "simulate", r"unknown execution 'simulate'; known: reference, emulate, device"),
        ("reference", "emulate", r"provider 'reference' has nothing to emulate; choose builtin or nkilib"),
        ("reference", "device", r"provider 'reference' has nothing to device"),
        ("neuron", "emulate", r"unknown provider 'neuron'"),
    ],
)
def test_bad_names_are_told_with_the_known_ones(text, execution, message):
    with pytest.raises(InputError, match=message):
        Selection.of(None, text, execution)


def test_device_without_its_packages(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n in ("nki", "torch_neuronx") else found(n, *a)
    )
    with pytest.raises(
        InputError, match=r"needs torch_neuronx and nki.*execution='emulate' runs the kernels on the CPU"
    ):
        Selection.of(None, "builtin", "device")
    x, table = torch.randn(1, 4, 2, 8), torch.randn(4, 8)
    with pytest.raises(InputError, match="needs torch_neuronx and nki"):
        torch.ops.fluxrewrite.rope(x, table, table, True, 1, None, "device", "builtin")


def test_device_names_only_what_is_missing(monkeypatch):
    found = importlib.util.find_spec
    spec = importlib.util.spec_from_loader("torch_neuronx", None)
    fakes = {"nki": None, "torch_neuronx": spec}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: fakes[n] if n in fakes else found(n, *a))
    with pytest.raises(InputError, match=r"needs nki, installed"):
        Selection.of(None, "builtin", "device")


def test_versions():
    assert load_provider("builtin")[1] == ""
    assert load_provider("nkilib")[1] == "2.32"
    assert load_provider("nkilib@2.28")[1] == "2.28"


def test_the_reference_has_every_kernel_without_further_limits():
    assert provided(KERNELS, "reference", "reference") == {k.name: k for k in KERNELS}


def test_limits_of_the_provider_come_beside_those_of_the_op():
    for kernel in KERNELS:
        offered = provided(KERNELS, "builtin", "emulate")[kernel.name]
        assert offered.limits[: len(kernel.limits)] == kernel.limits
        assert len(offered.limits) > len(kernel.limits)
        assert (offered.provider, offered.execution) == ("builtin", "emulate")
        assert offered.options == {"execution": "emulate", "provider": "builtin"}


@pytest.fixture
def third(monkeypatch):
    """A third party's provider with two versions and one kernel."""
    calls, checks = [], []

    def implementations(version):
        def triple(execution, x, *arguments):
            calls.append((version, execution, x, *arguments))
            return 3 * x

        return {"rope": Implementation(triple, (Limit("heads", maximum=1),), "mylib:rope")}

    made = Provider("mylib", ("1", "2"), implementations, checks.append)
    monkeypatch.setattr(registry, "load_plugins", lambda group, names: {"mylib": made})
    registry.implementations.cache_clear()
    yield calls, checks
    registry.implementations.cache_clear()


def test_a_third_partys_provider_offers_what_it_has(third):
    calls, checks = third
    offered = provided(KERNELS, "mylib", "emulate")
    assert checks == ["emulate"]
    assert set(offered) == {"rope"}
    assert offered["rope"].limits[-1] == Limit("heads", maximum=1)
    assert launch("rope", "mylib@1", "emulate", 7) == 21
    assert launch("rope", "mylib", "device", 8) == 24
    assert calls == [("1", "emulate", 7), ("2", "device", 8)]


def test_nothing_is_checked_for_the_reference_execution(third):
    provided(KERNELS, "mylib", "reference")
    assert third[1] == []


def test_the_ops_call_their_provider(third):
    kernel = Kernel("rope", torch.ops.fluxrewrite.rope.default, (), "", "mylib@2", "emulate")
    x, table = torch.randn(1, 4, 2, 8), torch.randn(4, 8)
    assert kernel.op(x, table, table, True, 1, None, **kernel.options).tolist() == (3 * x).tolist()
    ((version, execution, *arguments),) = third[0]
    assert (version, execution) == ("2", "emulate")
    assert arguments[3:] == [True, 1, None]


def test_a_provider_without_a_model_or_cases_says_so(provide):
    provide({"rope": lambda *a: None})
    module = sys.modules["provider_of_a_test"]
    module.PROVIDER = replace(module.PROVIDER, profile=None, suite=None)
    with pytest.raises(InputError, match="provider 'mine' has no model of what its kernels cost"):
        profile("mine", ProfileRequest("rope", {}, torch.bfloat16))
    with pytest.raises(InputError, match="provider 'mine' has no cases to check its kernels by"):
        suite_of("mine")
    with pytest.raises(InputError, match="provider 'mine' has no kernel 'qkv'; it has rope"):
        profile("mine", ProfileRequest("qkv", {}, torch.bfloat16))
