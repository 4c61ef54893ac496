"""Reads a published table of runs, in the format of the first experiments with NKI kernels in FLUX.2, as evidence."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from ..errors import InputError
from .data_files import read
from .devices import device_names
from .evidence import EVIDENCE_SCHEMA, Case, Evidence, MeasuredRun, Table

__all__ = ["from_table"]

_REMEDY = "a table has model, dtype, tensor_parallel, sizes, block counts, and lazy and compile with hardware and warm_s_per_step"
_KERNELS = {"flash": "attention", "attention": "attention", "qkv": "qkv:triple", "rope": "rope"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Variant(_Part):
    cold_steps_s: tuple[PositiveFloat, ...] = ()
    warm_steps_s: tuple[PositiveFloat, ...] = ()
    warm_s_per_step: PositiveFloat


class _Lazy(_Part):
    hardware: str
    steps: PositiveInt | None = None
    average_over: str = ""
    warm_s_per_step: dict[str, PositiveFloat]


class _Compile(_Part):
    hardware: str
    steps: PositiveInt | None = None
    runs: str = ""
    compiler: str = "unknown compiler"
    variants: dict[str, _Variant]
    eager_reference: _Variant | None = None


class _Published(_Part):
    model: str
    dtype: str
    tensor_parallel: PositiveInt
    batch: PositiveInt
    image_tokens: PositiveInt
    text_tokens: PositiveInt
    double_blocks: int = Field(ge=0)
    single_blocks: int = Field(ge=0)
    lazy: _Lazy | None = None
    compile: _Compile | None = None


def from_table(path: Path, source: str | None = None) -> Evidence:
    """A published table as evidence; `source` names its publisher, by default the file's name.

    "flash" is the kernel `attention`, called once a block; "qkv" is `qkv:triple`, called once for each stream of a
    double-stream block; "rope" would be called for query and key in every block. Calls a step follow from the block counts.

    Raises:
        InputError: a file that is not such a table, an unknown device or variant; the message names file and field.
    """
    given = read(path, _Published, _REMEDY)
    source = source or path.name
    tables = []
    if given.lazy:
        runs = {name: _Variant(warm_s_per_step=s) for name, s in given.lazy.warm_s_per_step.items()}
        note = f"average over {given.lazy.average_over}" if given.lazy.average_over else ""
        lazy = _case(path, given, "lazy", given.lazy.hardware)
        tables.append(
            _table(path, given, lazy, runs, stack="lazy PyTorch/XLA", source=source, steps=given.lazy.steps, note=note)
        )
    if given.compile:
        c, case = given.compile, _case(path, given, "compile", given.compile.hardware)
        if c.eager_reference:
            eager, only = case.model_copy(update={"regime": "lazy"}), {"vanilla": c.eager_reference}
            note = "eager reference of the compiled runs"
            tables.append(_table(path, given, eager, only, stack="eager", source=source, note=note))
        stack = f"Dynamo, {c.compiler}"
        tables.append(_table(path, given, case, c.variants, stack=stack, source=source, steps=c.steps, note=c.runs))
    if not tables:
        raise InputError(f"{path}: neither lazy nor compile given; {_REMEDY}")
    return Evidence(schema=EVIDENCE_SCHEMA, tables=tuple(tables))


def _case(path: Path, given: _Published, regime: str, hardware: str) -> Case:
    """The case of a part of the table. `hardware` is an instance type, "trn2.3xlarge": the device is the part before the dot."""
    device = hardware.partition(".")[0]
    if device not in device_names():
        known = ", ".join(device_names())
        raise InputError(f"{path}: {regime}.hardware: {hardware!r} is no instance of a known device ({known})")
    return Case.model_validate(
        {
            "device": device,
            "regime": regime,
            "model": re.sub(r"[^a-z0-9-]", "", given.model.lower()),
            "dtype": given.dtype,
            "tp": given.tensor_parallel,
            "batch": given.batch,
            "image_tokens": given.image_tokens,
            "text_tokens": given.text_tokens,
        }
    )


def _table(
    path: Path,
    given: _Published,
    case: Case,
    variants: dict[str, _Variant],
    *,
    stack: str,
    source: str,
    steps: int | None = None,
    note: str,
) -> Table:
    if "vanilla" not in variants:
        raise InputError(f"{path}: {case.regime}: no variant 'vanilla' to compare with; {_REMEDY}")
    runs = []
    for name, variant in variants.items():
        kernels = _kernels(path, case, name)
        calls = {k: _calls(k, given) for k in kernels}
        runs.append(
            MeasuredRun(
                kernels=kernels,
                calls={k: n for k, (n, _) in calls.items()},
                specialisations={k: n for k, (_, n) in calls.items()},
                warm_s_per_step=variant.warm_s_per_step,
                warm_steps_s=variant.warm_steps_s,
                cold_steps_s=variant.cold_steps_s,
                note="calls counted from the blocks: both streams" if "qkv:triple" in kernels else "",
            )
        )
    return Table(case=case, stack=stack, source=source, steps=steps, note=note, runs=tuple(runs))


def _kernels(path: Path, case: Case, variant: str) -> tuple[str, ...]:
    names = [] if variant == "vanilla" else variant.split("+")
    for name in names:
        if name not in _KERNELS:
            raise InputError(
                f"{path}: {case.regime}: unknown variant {variant!r}; known: vanilla, {', '.join(_KERNELS)}, joined by +"
            )
    return tuple(_KERNELS[name] for name in names)


def _calls(kernel: str, given: _Published) -> tuple[int, int]:
    """Calls a step, and kernels that differ in shape."""
    blocks = given.double_blocks + given.single_blocks
    if kernel == "qkv:triple":
        return 2 * given.double_blocks, 1 if given.image_tokens == given.text_tokens else 2
    return (blocks, 1) if kernel == "attention" else (2 * blocks, 1)
