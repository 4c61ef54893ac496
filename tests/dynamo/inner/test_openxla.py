"""What `inner="openxla"` refuses, and which execution it chooses. What it computes is tested in tests/xla."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

import fluxrewrite
from fluxrewrite.dynamo.inner import inner_backend, openxla, prepare
from fluxrewrite.errors import InputError


@pytest.fixture
def have(monkeypatch):
    """`have(*names)`: exactly these of torch_xla, torch_neuronx and nki can be found."""

    def run(*names, **attributes):
        for name in ("torch_xla", "torch_neuronx", "nki"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        real = importlib.util.find_spec
        known = ("torch_xla", "torch_neuronx", "nki")
        monkeypatch.setattr(importlib.util, "find_spec", lambda n: (n in names or None) if n in known else real(n))
        for name in names:
            module = ModuleType(name)
            vars(module).update(attributes.get(name, {}))
            monkeypatch.setitem(sys.modules, name, module)

    return run


NATIVE = {"torch_neuronx": {"wrap_nki": lambda kernel: kernel}}


def test_without_torch_xla(have):
    have()
    with pytest.raises(InputError, match=r"inner='openxla' needs torch-xla.*make xla"):
        fluxrewrite.backend(inner="openxla")


def test_the_reference_unless_neurons_packages_of_that_stack_are_there(have):
    have("torch_xla")
    assert inner_backend("openxla").default_execution() == "reference"
    have("torch_xla", "torch_neuronx", "nki", **NATIVE)
    assert inner_backend("openxla").default_execution() == "reference"
    have("torch_xla", "torch_neuronx", "nki")
    assert inner_backend("openxla").default_execution() == "device"
    assert inner_backend("inductor").default_execution() == "reference"


def test_a_package_that_cannot_be_imported_does_not_count(have, monkeypatch):
    have("torch_xla", "torch_neuronx", "nki")
    monkeypatch.setitem(sys.modules, "torch_neuronx", None)
    assert not openxla.has_neuron()


def test_executions_that_cannot_be_had(have):
    have("torch_xla", "torch_neuronx", "nki", **NATIVE)
    with pytest.raises(InputError, match=r"execution='device' needs torch_neuronx of the XLA stack.*inner='neuron'"):
        fluxrewrite.backend(inner="openxla", execution="device")
    with pytest.raises(InputError, match="the emulator reads numbers"):
        prepare("openxla", "emulate", None)
    with pytest.raises(InputError, match=r"execution='custom_call'.* needs inner='openxla'"):
        fluxrewrite.backend(inner="eager", execution="custom_call")


def test_a_custom_call_takes_lazy_tensors():
    x, table = torch.randn(1, 6, 2, 64), torch.randn(6, 64)
    with pytest.raises(InputError, match=r"execution='custom_call' of fluxrewrite\.rope.* not those on cpu"):
        torch.ops.fluxrewrite.rope(x, table, table, True, 1, execution="custom_call")
