"""What a call of a provider's kernel would cost on a device, by the emulator's model and without numbers."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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

__all__ = ["ModelledCall", "launcher", "model_call", "refuse_limits", "silenced"]

_BUSY = 0.6  # an engine below this share of the time is not what bounds a call


@dataclass(frozen=True)
class ModelledCall:
    """The modelled cost of one call of an op, and what the device could do at best.

    Attributes:
        kernel, provider: whose kernel for which op.
        sizes: of the arguments, as `samples.complete` answers them; `dtype` that of the activations.
        profiles: one for each NKI kernel that the call launches, in order.
        flops: floating-point operations the op asks for.
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
        """Modelled time in us, of all launches one after another, without what a launch itself costs."""
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
        """GB/s between HBM and the cores' memories: their share of HBM or their DMA engines, the lower."""
        return self.cores * DEVICES[self.device].dma_bytes_per_ns

    @property
    def roofline_us(self) -> float:
        """Time in us that the device's peaks allow: of the arithmetic or of the traffic, the longer."""
        return max(self.flops / self.peak_tflops / 1e6, self.traffic / self.peak_gbs / 1e3)

    def busy(self, engine: Engine) -> float:
        """Share of the time, 0 to 1, that an engine is busy, mean of the cores."""
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
    """The implementation of `kernel` by `provider`. Raises InputError for unknown ones, with those there are."""
    if provider == "reference":
        raise InputError("provider 'reference' has no NKI kernels; choose builtin")
    found = implementations(provider)
    if kernel not in found:
        load_kernels((kernel,))
        raise InputError(f"provider {provider!r} has no kernel {kernel!r}; it has {', '.join(sorted(found))}")
    return found[kernel]


def refuse_limits(kernel: str, provider: str, sizes: Mapping[str, int], dtype: torch.dtype) -> None:
    """Raise InputError when `sizes` are outside the limits of the provider's kernel, with all that they break."""
    record = provided(load_kernels((kernel,)).values(), provider, "reference")[kernel]
    broken = record.refusals(sample_inputs.facts(kernel, sizes), dtype)
    if broken:
        raise InputError(f"{kernel} of {provider}: {'; '.join(r.message for r in broken)}")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep what kernels print while they are traced (nkilib's do) out of the output of a command."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


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
    """Run the kernel of `provider` under the emulator without numbers.

    Args:
        kernel: name of the op.
        sizes: as `samples.complete` answers them.
        dtype: of the activations.
        provider: as `load_provider` takes it.
        device, cores: "trn1", "trn2" or "trn3", with 1 or 2 cores (trn1: 1).
        trace: keep the timeline.

    Raises InputError for unknown names, sizes beyond the kernel's limits, and what the emulated device refuses.
    """
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}; known: {', '.join(DEVICES)}")
    launch = launcher(kernel, provider).launch
    more = sample_inputs.options(kernel, sizes)
    missing = [name for name in more if name not in inspect.signature(launch).parameters]
    if missing:
        raise InputError(f"provider {provider!r} has no bounded mode of {kernel}; leave out bounded=1")
    refuse_limits(kernel, provider, sizes, dtype)
    profiler = Profiler(device, cores, trace)
    try:
        with silenced():
            launch(profiler, *sample_inputs.arguments(kernel, sizes, dtype), **more)
    except EmulationError as error:
        raise InputError(f"{kernel} of {provider} at these sizes on {device}, {cores} cores: {error}") from error
    return ModelledCall(
        kernel,
        provider,
        sizes,
        dtype,
        tuple(profiler.profiles),
        sample_inputs.flops(kernel, sizes),
        sample_inputs.traffic(kernel, sizes, dtype),
    )
