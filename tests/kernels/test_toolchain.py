"""What runs an NKI kernel: the emulator, AWS's simulator, a device. AWS's packages are played by stand-ins."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from fluxrewrite.kernels import emulator, toolchain
from fluxrewrite.kernels.toolchain import Emulator, NeuronDevice, Profiler, Simulator

from fluxrewrite.errors import InputError

ROPE = "fluxrewrite.kernels.nki.rope:rope"


class Kernel:
    """Records how it is called; `kernel[cores]` as `nki.jit` makes it."""

    def __init__(self, cores=None):
        self.cores = cores

    def __getitem__(self, cores):
        return Kernel(cores)

    def __call__(self, *arguments, **options):
        return self.cores, arguments, options


@pytest.fixture
def packages(monkeypatch):
    """`nki`, `nki.language` and `torch_neuronx` as far as they are used, and a module `some_kernels` with a kernel."""
    nki, language, neuron, kernels = map(ModuleType, ("nki", "nki.language", "torch_neuronx", "some_kernels"))
    for module in (nki, language, neuron, kernels):
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    language.bfloat16 = "nl.bfloat16"
    kernels.kernel = Kernel()
    nki.simulate = lambda kernel: lambda *a, **o: ("simulated", *kernel(*a, **o))
    return SimpleNamespace(nki=nki, language=language, neuron=neuron, kernels=kernels)


def test_the_simulator_is_called_on_its_cores(packages):
    x = torch.randn(2)
    found = Simulator().run("some_kernels:kernel", x, torch.bfloat16, cores=2, flag=True)
    assert found == ("simulated", 2, (x, "nl.bfloat16"), {"flag": True})
    assert Simulator().run("some_kernels:kernel", x)[1] is None


def test_executions_choose_the_toolchain(packages):
    assert isinstance(toolchain.toolchain("device"), NeuronDevice)
    assert isinstance(toolchain.toolchain("emulate"), Simulator)
    del packages.nki.simulate
    assert isinstance(toolchain.toolchain("emulate"), Emulator)
    mine = Profiler()
    assert toolchain.toolchain(mine) is mine


def test_nki_that_cannot_be_imported_does_not_count(monkeypatch, tmp_path):
    for name in ("nki", "torch_neuronx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "nki.py").write_text("raise OSError('a wheel for another platform')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not toolchain.has_nki()
    assert isinstance(toolchain.toolchain("emulate"), Emulator)


def test_device_needs_its_packages(monkeypatch):
    for name in ("nki", "torch_neuronx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="torch_neuronx and nki"):
        toolchain.toolchain("device")
    toolchain.check("emulate")


@pytest.fixture
def arguments():
    return torch.randn(1, 6, 2, 64), torch.randn(6, 64), torch.randn(6, 64), True, 1, None


def test_our_sources_on_a_simulator_and_on_a_device(monkeypatch, arguments):
    """The sources themselves, imported as they are beside `nki`, whose part the emulator's stand-ins play."""
    expected = torch.ops.fluxrewrite.rope(*arguments)
    neuron, cores = ModuleType("torch_neuronx"), []

    class Caller:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, count):
            cores.append(count)
            return sys.modules["nki"].simulate(self.kernel[count])

    neuron.wrap_nki = Caller
    monkeypatch.setitem(sys.modules, "torch_neuronx", neuron)
    with emulator.installed():
        results = [
            Simulator().run(ROPE, *arguments),
            Simulator().run(ROPE, *arguments, cores=2),
            NeuronDevice().run(ROPE, *arguments, cores=2),
        ]
    for found in results:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert cores == [2]


def test_the_emulator_keeps_its_own_import_of_a_kernel(arguments):
    found = Emulator().run(ROPE, *arguments)
    torch.testing.assert_close(found, torch.ops.fluxrewrite.rope(*arguments), atol=1e-5, rtol=0)
    assert ROPE.partition(":")[0] not in sys.modules
    assert toolchain._emulated(ROPE) is toolchain._emulated(ROPE)


def test_a_kernel_that_is_there_on_nki_itself_is_left_alone(monkeypatch, arguments):
    """Where a device or AWS's simulator has imported the kernel before, the emulator still gets one of its own."""
    toolchain._imported.cache_clear()
    package, name = "fluxrewrite.kernels.nki", ROPE.partition(":")[0]
    parent = importlib.import_module("fluxrewrite.kernels")
    there = {n: ModuleType(n) for n in (package, name)}
    for n, module in there.items():
        monkeypatch.setitem(sys.modules, n, module)
    monkeypatch.setattr(parent, "nki", there[package], raising=False)
    found = Emulator().run(ROPE, *arguments)
    torch.testing.assert_close(found, torch.ops.fluxrewrite.rope(*arguments), atol=1e-5, rtol=0)
    assert {n: sys.modules[n] for n in there} == there
    assert parent.nki is there[package]
    assert there[package].rope is there[name]


def test_profiles_of_every_call_without_numbers(arguments):
    profiler = Profiler(cores=2)
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    for _ in range(2):
        profiler.run(ROPE, *meta)
    assert [p.lnc for p in profiler.profiles] == [2, 2]
    assert profiler.profiles[0].dma_bytes == profiler.profiles[1].dma_bytes > 0


def test_a_package_that_is_not_there():
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_kernels'"):
        Emulator().run("no_such_kernels.rope:rope")
