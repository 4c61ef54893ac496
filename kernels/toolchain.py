"""What runs an NKI kernel: an emulator on the CPU, or a device."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from fluxrewrite.errors import InputError
from fluxrewrite.provider.neuron_device import NeuronDevice, imported, typed

from . import emulator

__all__ = ["Emulator", "NeuronDevice", "Profiler", "Simulator", "Toolchain", "check", "has_nki", "toolchain"]

_IMPORTING = threading.Lock()


class Toolchain(Protocol):
    """Runs kernels named as "module:function" on torch tensors."""

    def run(self, entry: str, *arguments: Any, cores: int = 1, **options: Any) -> Any:
        """Call the kernel on `cores` cores and return torch tensors."""


def _emulated(entry: str) -> Callable[..., Any]:
    """The kernel, from a module imported with the emulator in place of nki, separate from the module on nki itself."""
    return _imported(entry, _home(entry.partition(".")[0]))


@functools.cache
def _imported(entry: str, _: str) -> Callable[..., Any]:
    """The kernel; the second argument is the file of its package, so that another version elsewhere is another kernel."""
    with _IMPORTING, _set_aside(entry), emulator.installed():
        return imported(entry)


@contextlib.contextmanager
def _set_aside(entry: str) -> Iterator[None]:
    """Take already imported modules of the kernel's package, which use nki itself, out of `sys.modules` for the duration."""
    package, _, _ = entry.partition(":")[0].rpartition(".")
    prefix = package if package.startswith(__package__) else package.partition(".")[0]
    aside = {n: sys.modules.pop(n) for n in list(sys.modules) if prefix and f"{n}.".startswith(f"{prefix}.")}
    try:
        yield
    finally:
        sys.modules.update(aside)
        for name, module in aside.items():
            parent, _, attribute = name.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], attribute, module)


def _home(package: str) -> str:
    """The file of a package. Raises ModuleNotFoundError when there is none."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return spec.origin or ""


def _typed(language: Any, values: Iterable[Any]) -> list[Any]:
    """Dtypes of torch as those of `nki.language`; everything else as it is."""
    return [typed(language, v) for v in values]


class Emulator:
    """This repository's emulator; `cores` is the least number that a call runs on."""

    def __init__(self, device: str = "trn2", cores: int = 1) -> None:
        self.device, self.cores = device, cores

    def run(self, entry: str, *arguments: Any, cores: int = 1, **options: Any) -> Any:
        """See `Toolchain`. Raises `emulator.EmulationError` for what the device would refuse."""
        run = emulator.simulate(_emulated(entry), self.device, lnc=max(cores, self.cores), trace=False)
        return run(*_typed(emulator.language, arguments), **options).outputs


class Profiler:
    """The emulator without computed values: arguments may be meta tensors; `profiles` collects the profile of every call."""

    def __init__(self, device: str = "trn2", cores: int = 1, trace: bool = True) -> None:
        self.device, self.cores, self.trace = device, cores, trace
        self.profiles: list[emulator.Profile] = []

    def run(self, entry: str, *arguments: Any, cores: int = 1, **options: Any) -> Any:
        """See `Toolchain`; `cores` of the profiler is used."""
        run = emulator.simulate(_emulated(entry), self.device, lnc=self.cores, numerics=False, trace=self.trace)
        result = run(*_typed(emulator.language, arguments), **options)
        self.profiles.append(result.profile)
        return result.outputs


class Simulator:
    """AWS's CPU simulator, `nki.simulate`; `cores` is the least number that a call runs on."""

    def __init__(self, cores: int = 1) -> None:
        self.cores = cores

    def run(self, entry: str, *arguments: Any, cores: int = 1, **options: Any) -> Any:
        """See `Toolchain`."""
        kernel, cores = imported(entry), max(cores, self.cores)
        simulate = importlib.import_module("nki").simulate
        typed = _typed(importlib.import_module("nki.language"), arguments)
        return simulate(kernel[cores] if cores > 1 else kernel)(*typed, **options)  # type: ignore[index]


def has_nki() -> bool:
    """Whether the `nki` package is installed with its simulator; a package of that name without one does not count."""
    if importlib.util.find_spec("nki") is None:
        return False
    try:
        return hasattr(importlib.import_module("nki"), "simulate")
    except Exception:  # a placeholder, or a wheel for another platform
        return False


def check(execution: str) -> None:
    """Raise InputError when kernels cannot run that way here."""
    if execution != "device":
        return
    missing = [name for name in ("torch_neuronx", "nki") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"execution='device' needs {' and '.join(missing)}, installed from AWS's package index on a Neuron instance; "
            "execution='emulate' runs the kernels on the CPU"
        )


def toolchain(execution: str | Toolchain) -> Toolchain:
    """What runs kernels for "emulate" (`nki.simulate` where nki is installed, else our emulator) or "device".

    A toolchain is returned unchanged, so that a caller may pass one, such as a `Profiler`.
    """
    if not isinstance(execution, str):
        return execution
    check(execution)
    if execution == "device":
        return NeuronDevice()
    return Simulator() if has_nki() else Emulator()
