"""The grid of a kernel call, and how its arguments are given. AWS's packages are played by recorders."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fluxrewrite
from fluxrewrite.dynamo.inner.neuron import eager_fallback
from fluxrewrite.errors import InputError
from fluxrewrite.provider.neuron_device import NeuronDevice, runtime_lnc


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 2),
        ({"NEURON_LOGICAL_NC_CONFIG": "1"}, 1),
        ({"NEURON_LOGICAL_NC_CONFIG": "2", "NEURON_PLATFORM_TARGET_OVERRIDE": "trn1"}, 2),
        ({"NEURON_PLATFORM_TARGET_OVERRIDE": "trn1"}, 1),
        ({"NEURON_PLATFORM_TARGET_OVERRIDE": "gen2"}, 1),
        ({"NEURON_PLATFORM_TARGET_OVERRIDE": "trn3"}, 2),
    ],
)
def test_lnc_of_the_runtime(environment, expected, monkeypatch):
    assert runtime_lnc(environment) == expected
    for name in ("NEURON_LOGICAL_NC_CONFIG", "NEURON_PLATFORM_TARGET_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert runtime_lnc() == expected


@pytest.mark.parametrize("setting", ["3", "", "two"])
def test_a_setting_that_is_none(setting):
    with pytest.raises(InputError, match=f"NEURON_LOGICAL_NC_CONFIG='{setting}': .* 1 or 2"):
        runtime_lnc({"NEURON_LOGICAL_NC_CONFIG": setting})


def test_an_lnc_that_is_none():
    with pytest.raises(InputError, match=r"lnc=4: .* 1 or 2"):
        NeuronDevice(4)
    with pytest.raises(InputError, match=r"lnc=0: .* 1 or 2"):
        fluxrewrite.backend(inner="eager", lnc=0)
    with pytest.raises(InputError, match="lnc=2 is for inner='neuron'"):
        fluxrewrite.backend(inner="eager", lnc=2)


@pytest.mark.parametrize(("setting", "expected"), [({}, True), ({"1": "0"}, True), ("0", True), ("1", False)])
def test_the_eager_fallback(setting, expected):
    variables = setting if isinstance(setting, dict) else {"TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION": setting}
    assert eager_fallback(variables) is expected


class Recorder:
    """A kernel and its caller at once: answers how it was called."""

    def __init__(self, function, grid=None, by=""):
        self.func, self.grid, self.by = function, grid, by

    def __getitem__(self, grid):
        return Recorder(self.func, grid, self.by)

    def __call__(self, *arguments, **options):
        return SimpleNamespace(by=self.by, grid=self.grid, arguments=arguments, options=options)


def kernel(a, b=None, c=None, flag: bool = False, number: int = 1, dtype=None):
    """Stands for a kernel."""


@pytest.fixture
def recorded(monkeypatch):
    """Packages that record; `run(*arguments, lnc=None, **options)` is `Device(lnc).run` of `kernel`."""
    names = ("torch_neuronx", "nki", "nki.language", "recorded")
    modules = {n: ModuleType(n) for n in names}
    for name, module in modules.items():
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    modules["nki.language"].bfloat16 = "nl.bfloat16"
    modules["torch_neuronx"].wrap_nki = lambda k: Recorder(k.func, None, "wrap_nki")
    modules["recorded"].kernel = Recorder(kernel, None, "jit")
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", "1")
    return lambda *arguments, lnc=None, **options: NeuronDevice(lnc).run("recorded:kernel", *arguments, **options)


X, Y = torch.zeros(2), torch.ones(2)


def test_tensors_by_place_and_constants_by_name(recorded):
    call = recorded(X, Y, None, True, 3, torch.bfloat16)
    assert (call.by, call.arguments) == ("wrap_nki", (X, Y))
    assert call.options == {"flag": True, "number": 3, "dtype": "nl.bfloat16"}


def test_what_is_absent_or_the_default_is_left_out(recorded):
    call = recorded(X, None, Y, False, 1, None)
    assert (call.arguments, call.options) == ((X,), {"c": Y})
    call = recorded(X, number=True)
    assert call.options == {"number": True}


def test_the_grid(recorded):
    assert recorded(X).grid == 1
    assert recorded(X, lnc=2).grid == 2
    assert recorded(X, cores=2).grid == 2


def test_on_xla_the_kernel_is_called_directly(recorded):
    class Lazy(torch.Tensor):
        device = torch.device("xla")

    lazy = torch.zeros(2).as_subclass(Lazy)
    call = recorded(lazy, None, None, True)
    assert (call.by, call.grid, call.options) == ("jit", None, {"flag": True})
    assert recorded(lazy, lnc=2).grid == 2
