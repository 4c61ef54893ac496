"""Device profiles: how models run on a device, what one core moves and computes in a second, and what starting work costs.

A profile is a data file. Each figure in it has a unit, a basis and a source. "Core" is what one rank of a model runs on: on
Neuron a logical core, which on trn2 and trn3 consists of two physical ones by default (LNC=2).

Everything that depends on the kind of device is a field of the profile, so a profile is treated the same under any name. The
name identifies the device in reports, and evidence is looked up by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from ..errors import InputError
from .data_files import DataRecord, read, shipped

__all__ = [
    "DEVICE_SCHEMA",
    "CallTime",
    "Device",
    "Figure",
    "FigureBasis",
    "Regime",
    "device_names",
    "dtype_name",
    "emulated_names",
    "load_device",
]

DEVICE_SCHEMA: Final = "fluxrewrite.device/1"

Regime = Literal["compile", "lazy"]
"""compile: one executable, a kernel call is a barrier in it. lazy: a kernel call also splits the executable."""

FigureBasis = Literal["measured", "documented", "modelled", "assumed"]
"""measured on such a device; documented by its maker; modelled: derived from documented figures; assumed: without a source."""

_UNITS = {
    "memory": "GB/s",
    "vector": "Gelem/s",
    "kernel": "us",
    "call": "us",
    "launch": "us",
}
_REMEDY = (
    "`fluxrewrite calibrate -o FILE` writes a profile of this machine, `fluxrewrite devices` lists the shipped ones"
)
_HOW_RUN = (
    'add "compiler": "inductor" and "runs_kernels": false for a processor, "neuronx" and true for a Neuron device, '
    "or write the profile again with `fluxrewrite calibrate -o FILE`"
)
# Profiles written before these fields existed lack them. Guessing them from the name would predict an unknown device as a CPU.
_REMEDIES = {"compiler": _HOW_RUN, "runs_kernels": _HOW_RUN}


class Figure(DataRecord):
    """A number with its unit, its source, and its range.

    Attributes:
        value: greater than zero.
        unit: "GB/s" (10^9 bytes), "TFLOP/s", "Gelem/s" (10^9 elements) or "us".
        basis: see `FigureBasis`.
        source: document, command or arithmetic.
        low, high: the range that the true value is expected in; `value` where not given.
        spread: of a measured figure, (largest - smallest) / median of its samples.
    """

    value: PositiveFloat
    unit: str
    basis: FigureBasis
    source: str = Field(min_length=1)
    low: PositiveFloat | None = None
    high: PositiveFloat | None = None
    spread: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, high = self.range
        if not low <= self.value <= high:
            raise ValueError(f"value {self.value:g} is not between low {low:g} and high {high:g}")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """`low` and `high`, each `value` where not given."""
        return (self.low or self.value, self.high or self.value)


class CallTime(DataRecord):
    """The measured time of a kernel call instead of one kind of site.

    Attributes:
        kernel, form, dtype, shapes: of the site, as the report has them.
        us: microseconds of a call, all costs included.
    """

    kernel: str
    form: str
    dtype: str
    shapes: dict[str, int]
    us: Figure

    @model_validator(mode="after")
    def _unit(self) -> Self:
        if self.us.unit != "us":
            raise ValueError(f"us: unit {self.us.unit!r} where 'us' is meant")
        return self


class Device(DataRecord):
    """A device profile, per core.

    Attributes:
        name: as `--device` takes it.
        title: what the device is, in words.
        core: what a core is, in words.
        regimes: ways in which models are run on it.
        compiler: what fuses the operations around kernel calls, as `--compiler` takes it: "neuronx", "inductor", "xla", or a file.
        runs_kernels: whether a kernel call runs the provider's kernel. Where it does not, the call runs the body of the op, and
            each operation of that body is predicted as a kernel of its own.
        emulated_as: the device of `fluxrewrite.kernels.emulator` that models kernel calls on this one; None for no such model.
        physical_cores: physical cores of a core, 1 or 2, which an emulated kernel call takes.
        memory: GB/s between memory and the core.
        vector: 10^9 elements a second of elementwise work on data in on-chip memory or a cache.
        matmul: TFLOP/s of dense matrix products by dtype (torch's names).
        kernel: us that each compiled kernel or fused group costs beyond its work.
        call: us that each opaque kernel call costs beyond its work, inside one executable.
        launch: us that each further executable costs.
        calls: kernel calls that were timed one by one; all others are modelled from the figures above.
    """

    schema_: Literal["fluxrewrite.device/1"] = Field(alias="schema")
    name: str = Field(min_length=1)
    title: str
    core: str
    regimes: tuple[Regime, ...] = Field(min_length=1)
    compiler: str = Field(min_length=1)
    runs_kernels: bool
    emulated_as: str | None = None
    physical_cores: Literal[1, 2] = 1
    memory: Figure
    vector: Figure
    matmul: dict[str, Figure] = Field(min_length=1)
    kernel: Figure
    call: Figure
    launch: Figure
    calls: tuple[CallTime, ...] = ()

    @model_validator(mode="after")
    def _units(self) -> Self:
        figures = {name: (getattr(self, name), unit) for name, unit in _UNITS.items()}
        figures |= {f"matmul.{name}": (figure, "TFLOP/s") for name, figure in self.matmul.items()}
        for name, (figure, unit) in figures.items():
            if figure.unit != unit:
                raise ValueError(f"{name}: unit {figure.unit!r} where {unit!r} is meant")
        return self

    @property
    def figures(self) -> dict[str, Figure]:
        """All figures by name, in a fixed order; the rates of matrix products are named "matmul bfloat16"."""
        products = {f"matmul {name}": figure for name, figure in self.matmul.items()}
        before, after = ("memory", "vector"), ("kernel", "call", "launch")
        return {n: getattr(self, n) for n in before} | products | {n: getattr(self, n) for n in after}

    def rate(self, dtype: object) -> Figure:
        """TFLOP/s for a dtype, given as torch's or by name. Raises InputError where the profile has no rate for it."""
        name = dtype_name(dtype)
        if name not in self.matmul:
            known = ", ".join(self.matmul)
            raise InputError(
                f"device {self.name!r} has no matmul rate for {name}; it has {known}; add one to its profile"
            )
        return self.matmul[name]

    def call_us(self, kernel: str, form: str, dtype: object, shapes: Mapping[str, object]) -> Figure | None:
        """The measured time of a call with exactly these sizes, or None."""
        wanted = (kernel, form, dtype_name(dtype), dict(shapes))
        return next((c.us for c in self.calls if (c.kernel, c.form, c.dtype, c.shapes) == wanted), None)

    def check_regime(self, regime: str) -> None:
        """Raise InputError for a regime that the profile does not list."""
        if regime not in self.regimes:
            known = ", ".join(self.regimes)
            raise InputError(f"device {self.name!r} is not run in regime {regime!r}; it knows {known}")

    def emulated(self) -> str:
        """The emulator's device that models kernel calls on this one. Raises InputError if the profile names none that exists."""
        known = emulated_names()
        if self.emulated_as in known:
            return str(self.emulated_as)
        given = "" if self.emulated_as is None else f", not {self.emulated_as!r}"
        raise InputError(
            f"no model of kernel calls on {self.name}: the emulator models {', '.join(known)}; a profile names one of them as "
            f"emulated_as{given}"
        )


def dtype_name(dtype: object) -> str:
    """torch's name of a dtype: "bfloat16" for "bf16", "torch.bfloat16" and `torch.bfloat16`."""
    name = str(dtype).removeprefix("torch.")
    return {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(name, name)


def device_names() -> tuple[str, ...]:
    """Names of the shipped profiles."""
    return tuple(shipped("devices"))


def emulated_names() -> tuple[str, ...]:
    """Names of the shipped profiles whose kernel calls the emulator models."""
    return tuple(name for name in device_names() if load_device(name).emulated_as is not None)


def load_device(name: str | Path) -> Device:
    """A shipped profile by name, or one from a file.

    Raises InputError: an unknown name, or a file that is not a profile; the message names file, field and remedy.
    """
    known = shipped("devices")
    if str(name) in known:
        return read(known[str(name)], Device, _REMEDY, _REMEDIES)
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return read(path, Device, _REMEDY, _REMEDIES)
    raise InputError(f"unknown device {str(name)!r}; known: {', '.join(known)}, or a profile (*.json) of your own")
