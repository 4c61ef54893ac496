"""The modelled cost of a call of a provider's kernel on a device: the emulator runs it without computing values."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fluxrewrite.errors import InputError
from fluxrewrite.kernel import load_kernels
from fluxrewrite.provider import Implementation
from fluxrewrite.provider.registry import implementations, provided

from ..emulator import EmulationError, Profile
from ..emulator.costs import passes
from ..emulator.specs import DEVICES, PARTITIONS, STATIONARY_FREE_MAX
from ..emulator.timeline import Engine
from ..toolchain import Profiler
from . import sample_inputs

__all__ = ["ModelledCall", "lacks_mode", "launcher", "model_call", "refuse_limits", "silenced"]

_BUSY = 0.6  # an engine that is busy for less of the time does not bound a call


@dataclass(frozen=True)
class ModelledCall:
    """The modelled cost of one call of an op, and the least that the device's peaks allow.

    Attributes:
        kernel, provider: the op, and whose kernel implements it.
        sizes: of the arguments, as `sample_inputs.complete` returns them; `dtype` is that of the activations.
        profiles: one for each NKI kernel that the call launches, in order.
        flops: floating-point operations that the op is defined by.
        traffic: bytes of its operands and results.
    """

    kernel: str
    provider: str
    sizes: Mapping[str, int]
    dtype: torch.dtype
    profiles: tuple[Profile, ...]
    flops: float
    traffic: int

    @property
    def latency_us(self) -> float:
        """Modelled time in us of all launches one after another, without the overhead of a launch."""
        return sum(p.latency_us for p in self.profiles)

    @property
    def device(self) -> str:
        """Name of the device."""
        return self.profiles[0].device

    @property
    def cores(self) -> int:
        """Physical cores used."""
        return self.profiles[0].lnc

    @property
    def peak_tflops(self) -> float:
        """TFLOP/s of the Tensor engines at this dtype: 2 * 128 * 128 a cycle; float32 takes four passes."""
        per_cycle = 2 * PARTITIONS * STATIONARY_FREE_MAX
        clock = DEVICES[self.device].clock_ghz["tensor"]
        return self.cores * per_cycle * clock / 1e3 / passes(str(self.dtype).removeprefix("torch."))

    @property
    def peak_gbs(self) -> float:
        """GB/s between HBM and the cores' memories: the lower of their HBM share and the rate of their DMA engines."""
        return self.cores * DEVICES[self.device].dma_bytes_per_ns

    @property
    def roofline_us(self) -> float:
        """Time in us at the device's peaks: the longer of the arithmetic and the traffic."""
        return max(self.flops / self.peak_tflops / 1e6, self.traffic / self.peak_gbs / 1e3)

    def busy(self, engine: Engine) -> float:
        """Fraction of the time that an engine is busy, 0 to 1, averaged over the cores."""
        return sum(r.busy_us for p in self.profiles for r in p.engines if r.engine is engine) / (
            self.latency_us * self.cores
        )

    @property
    def bound(self) -> str:
        """What bounds the call: the busiest engine, or dependences when none is busy most of the time."""
        top = max(Engine, key=self.busy)
        if self.busy(top) < _BUSY:
            return f"dependences between engines; {top.value}, the busiest, is busy {self.busy(top):.0%} of the time"
        near = [e.value for e in Engine if e is not top and self.busy(e) > 0.9 * self.busy(top)]
        also = f", {' and '.join(near)} close to it" if near else ""
        return f"{top.value}, busy {self.busy(top):.0%} of the time{also}"


def launcher(kernel: str, provider: str) -> Implementation:
    """The implementation of `kernel` by `provider`. Raises InputError for unknown ones, with the known ones."""
    if provider == "reference":
        raise InputError("provider 'reference' has no NKI kernels; choose builtin")
    found = implementations(provider)
    if kernel not in found:
        load_kernels((kernel,))
        raise InputError(f"provider {provider!r} has no kernel {kernel!r}; it has {', '.join(sorted(found))}")
    return found[kernel]


def refuse_limits(kernel: str, provider: str, sizes: Mapping[str, int], dtype: torch.dtype) -> None:
    """Raise InputError when `sizes` break limits of the provider's kernel, naming all of them."""
    record = provided(load_kernels((kernel,)).values(), provider, "reference")[kernel]
    broken = record.refusals(sample_inputs.facts(kernel, sizes), dtype)
    if broken:
        raise InputError(f"{kernel} of {provider}: {'; '.join(r.message for r in broken)}")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep what kernels print while they are traced, as nkilib's do, out of the output of a command."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def lacks_mode(launch: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    """Whether a provider's launcher does not know one of the `options` of a launch, as `is_bounded`."""
    return any(name not in inspect.signature(launch).parameters for name in options)


def _launched(profiler: Profiler, kernel: str, provider: str) -> tuple[Profile, ...]:
    if not profiler.profiles:
        raise InputError(
            f"{kernel} of {provider}: the call launched no NKI kernel in the emulator, so there is nothing to model"
        )
    return tuple(profiler.profiles)


def model_call(
    kernel: str,
    sizes: Mapping[str, int],
    dtype: torch.dtype,
    *,
    provider: str = "builtin",
    device: str = "trn2",
    cores: int = 1,
    trace: bool = True,
) -> ModelledCall:
    """Run the kernel of `provider` under the emulator without computing values.

    Args:
        kernel: name of the op.
        sizes: as `sample_inputs.complete` returns them.
        dtype: of the activations.
        provider: as `load_provider` takes it.
        device, cores: "trn1", "trn2" or "trn3", with 1 or 2 cores (trn1: 1).
        trace: keep the timeline.

    Raises InputError for unknown names, sizes beyond the kernel's limits, and what the emulated device refuses.
    """
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}; known: {', '.join(DEVICES)}")
    launch = launcher(kernel, provider).launch
    options = sample_inputs.options(kernel, sizes)
    if lacks_mode(launch, options):
        raise InputError(f"provider {provider!r} has no bounded mode of {kernel}; leave out bounded=1")
    refuse_limits(kernel, provider, sizes, dtype)
    profiler = Profiler(device, cores, trace)
    try:
        with silenced():
            launch(profiler, *sample_inputs.arguments(kernel, sizes, dtype), **options)
    except EmulationError as error:
        raise InputError(f"{kernel} of {provider} at these sizes on {device}, {cores} cores: {error}") from error
    flops, traffic = sample_inputs.flops(kernel, sizes), sample_inputs.traffic(kernel, sizes, dtype)
    profiles = _launched(profiler, kernel, provider)
    return ModelledCall(kernel, provider, sizes, dtype, profiles=profiles, flops=flops, traffic=traffic)
