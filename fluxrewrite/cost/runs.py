"""What a bench leaves behind, as a file: what was asked, on what machine, and the times of every run."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ..errors import InputError
from .data_files import DataRecord, read
from .evidence import Case
from .noise import median_noise, threshold

__all__ = [
    "ALIKE",
    "BUSY",
    "RESTLESS",
    "RUNS_SCHEMA",
    "MachineInfo",
    "Output",
    "Runs",
    "Setup",
    "Timed",
    "Variant",
    "Versions",
    "load_runs",
    "save_runs",
]

RUNS_SCHEMA: Final = "fluxrewrite.runs/1"

RESTLESS = 0.05
"""From this noise of the warm steps on figures are not to be trusted. On an idle machine steps repeat within some percent."""

BUSY = 0.1
"""From this share of the processors on that other programs used meanwhile, neither."""

ALIKE = 0.999
"""Cosine of the last latents to those of vanilla below which a variant computes something else.

The flash attention of the first experiments reached 0.9999 in bfloat16.
"""

REMEDY = "`fluxrewrite bench MODEL --save FILE` writes such a file"


class Setup(DataRecord):
    """What was asked for; all that a worker needs beside the variant.

    Attributes:
        model: as `fluxrewrite.models.find_model` takes it.
        image_tokens, text_tokens, batch: sizes of the inputs.
        dtype: torch's name, of weights and inputs that are generated.
        inner: name of the inner backend.
        provider, execution: as `fluxrewrite.backend` takes them.
        device: torch device that the model runs on.
        profile: name or file of the device profile that "auto" predicts with; None: the backend's default.
        evidence: files of measured runs that "auto" reads beside those that ship.
        seed: of weights and inputs.
        threads: of torch; as many as it uses when None.
        steps: of a denoising loop.
        runs: loops of a variant; the first one is cold.
    """

    model: str
    image_tokens: PositiveInt = 256
    text_tokens: PositiveInt = 512
    batch: PositiveInt = 1
    dtype: str = "bfloat16"
    inner: str = "inductor"
    provider: str = "reference"
    execution: str = "reference"
    device: str = "cpu"
    profile: str | None = None
    evidence: tuple[str, ...] = ()
    seed: NonNegativeInt = 0
    threads: PositiveInt | None = None
    steps: PositiveInt = 4
    runs: PositiveInt = 4


class Versions(DataRecord):
    """Of what decides on times."""

    fluxrewrite: str
    torch: str
    python: str
    diffusers: str | None = None


class MachineInfo(DataRecord):
    """Where it ran: processor, its cores, threads of torch; `device` is the name of an accelerator, or of the processor."""

    processor: str
    cores: PositiveInt
    threads: PositiveInt | None = None
    device: str | None = None


class Timed(DataRecord):
    """One denoising loop.

    Attributes:
        steps_s: seconds of each step.
        others: share of all processors that other programs used meanwhile, 0 to 1; None where that is not known.
    """

    steps_s: tuple[PositiveFloat, ...] = Field(min_length=1)
    others: float | None = Field(default=None, ge=0, le=1)


class Output(DataRecord):
    """The last latents of the latest run.

    Attributes:
        digest: SHA-256 of their bytes.
        finite: whether all are finite.
        cosine: to those of the variant "vanilla", computed in float64; None where there are none, or not all are finite.
    """

    digest: str
    finite: bool
    cosine: float | None = None


class Variant(DataRecord):
    """A variant and its finished runs.

    Attributes:
        name: as it was asked for: "qkv+attention".
        kernels: words that `fluxrewrite.backend` took as `kernels`; () for all of them, and where none is meant.
        calls: kernel calls that a step made, by kernel and form: {"qkv:triple": 2}.
        specialisations: different kernels among them (same kernel, shapes and dtype are one).
        inline: sites a step that were written as plain operations.
        runs: the first one is cold. On several ranks a step takes as long as on the slowest.
        beside: warm runs of vanilla that were taken in turn with those of this variant, where they are not vanilla's own ones.
        peak_rss_mb: peak resident memory of the worker, MB (10^6 bytes); compilers that it starts are not counted. On several
            ranks that of the largest.
        peak_rss_sum_mb: the sum over all ranks; None for one process.
        peak_device_mb: peak of the memory allocated on an accelerator, MB.
        output: what it computed.
        error: why it did not finish, in one line.
    """

    name: str = Field(min_length=1)
    kernels: tuple[str, ...] = ()
    calls: dict[str, PositiveInt] = Field(default_factory=dict)
    specialisations: dict[str, PositiveInt] = Field(default_factory=dict)
    inline: NonNegativeInt = 0
    runs: tuple[Timed, ...] = ()
    beside: tuple[Timed, ...] = ()
    peak_rss_mb: PositiveFloat | None = None
    peak_rss_sum_mb: PositiveFloat | None = None
    peak_device_mb: PositiveFloat | None = None
    output: Output | None = None
    error: str | None = None

    @property
    def warm(self) -> tuple[float, ...]:
        """Seconds of each step of each run after the first."""
        return tuple(s for run in self.runs[1:] for s in run.steps_s)

    @property
    def warm_s_per_step(self) -> float | None:
        """Median of the warm steps."""
        return statistics.median(self.warm) if self.warm else None

    @property
    def noise(self) -> float:
        """Share of a step that the median of the warm steps is uncertain by; 0 where there are fewer than two."""
        middle = self.warm_s_per_step
        return median_noise(self.warm) / middle if middle else 0.0

    @property
    def others(self) -> float:
        """Share of all processors that other programs used in the worst warm run, or the worst of vanilla beside it, as far as
        that is known."""
        return max((run.others or 0.0 for run in (*self.runs[1:], *self.beside)), default=0.0)

    @property
    def cold_first_step_s(self) -> float | None:
        """Seconds of the first step of the first run: the compile and a step."""
        return self.runs[0].steps_s[0] if self.runs else None

    @property
    def differs(self) -> bool:
        """Whether its latents are not those of vanilla."""
        o = self.output
        return o is not None and (not o.finite or (o.cosine is not None and o.cosine < ALIKE))


class Runs(DataRecord):
    """A bench: variants of one model at one size on one machine.

    Attributes:
        date: when it began, ISO 8601 with the offset from UTC.
        case: what was run, as evidence names it.
        in_turn: whether the warm runs were taken in turn: one of each variant, then the next of each; of some variants at a
            time, each time beside vanilla, where those of later ones have `beside`.
    """

    schema_: Literal["fluxrewrite.runs/1"] = Field(alias="schema")
    date: str
    versions: Versions
    machine: MachineInfo
    case: Case
    setup: Setup
    in_turn: bool = False
    variants: tuple[Variant, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [v.name for v in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants with the same name")
        for variant in self.variants:
            if len(variant.runs) > self.setup.runs:
                raise ValueError(f"variant {variant.name!r} has {len(variant.runs)} runs, setup says {self.setup.runs}")
            for run in (*variant.runs, *variant.beside):
                if len(run.steps_s) != self.setup.steps:
                    raise ValueError(
                        f"variant {variant.name!r} has a run of {len(run.steps_s)} steps, setup says {self.setup.steps}"
                    )
        return self

    @property
    def vanilla(self) -> Variant | None:
        """The variant that others are compared with, if it was run."""
        return next((v for v in self.variants if v.name == "vanilla"), None)

    def named(self, name: str) -> Variant:
        """The variant of a name, which must be there."""
        return next(v for v in self.variants if v.name == name)

    def ratio(self, variant: Variant) -> float | None:
        """Its warm seconds a step / vanilla's, in the runs that were taken beside it."""
        base = self.base(variant)
        return variant.warm_s_per_step / statistics.median(base) if base and variant.warm_s_per_step else None

    def base(self, variant: Variant) -> tuple[float, ...]:
        """Seconds of the warm steps of vanilla that a variant is compared with; none where vanilla has none."""
        if variant.beside:
            return tuple(s for run in variant.beside for s in run.steps_s)
        return self.vanilla.warm if self.vanilla else ()

    def noise(self, variant: Variant) -> float | None:
        """Share of a step below which its ratio is no difference; None where there is no ratio."""
        if self.ratio(variant) is None:
            return None
        base = self.base(variant)
        return threshold(variant.noise, median_noise(base) / statistics.median(base), self.drift)

    @property
    def drift(self) -> float:
        """By what share of a step variants differ whose program is the same, as "auto" that took no kernel and "vanilla"."""
        ratios: dict[frozenset[tuple[str, int]], list[float]] = {}
        for v in self.variants:
            ratio = self.ratio(v)
            if ratio is not None and v.name != "eager" and not v.inline and not v.differs:
                ratios.setdefault(frozenset(v.calls.items()), []).append(ratio)
        return max((max(found) / min(found) - 1 for found in ratios.values()), default=0.0)

    def growth(self, variant: Variant) -> float | None:
        """Its first cold step / vanilla's, less 1."""
        base = self.vanilla.cold_first_step_s if self.vanilla else None
        return variant.cold_first_step_s / base - 1 if base and variant.cold_first_step_s else None

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def load_runs(path: Path) -> Runs:
    """A file of runs. Raises InputError that names file, field and remedy."""
    return read(path, Runs, REMEDY)


def save_runs(runs: Runs, path: Path) -> None:
    """Put the file in place as a whole: whoever reads it finds these runs or those that were there before.

    A path that is no regular file, as a pipe, is written to as it is.

    Raises InputError when it cannot be written; then what was there before is left.
    """
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            path.write_text(runs.to_json(), encoding="utf-8")
            return
        try:
            _write_through(draft, runs.to_json())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: the runs cannot be kept ({error.strerror}); make room or give another file"
        ) from error


def _write_through(path: Path, text: str) -> None:
    """Write and wait for the disk: some file systems tell only then that they are full."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
