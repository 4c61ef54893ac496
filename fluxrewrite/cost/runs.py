"""The file that a bench saves: its options, the machine, and the times of every run."""

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
"""Noise of the warm steps from which figures are not to be trusted. On an idle machine, steps repeat within some percent."""

BUSY = 0.1
"""Share of the processors that other programs used meanwhile, from which figures are not to be trusted either."""

ALIKE = 0.999
"""Cosine of the last latents to those of vanilla below which a variant counts as computing something else.

The flash attention of the first experiments reached 0.9999 in bfloat16.
"""

REMEDY = "`fluxrewrite bench MODEL --save FILE` writes such a file"


class Setup(DataRecord):
    """The options of a bench: all that a worker needs besides the variant.

    Attributes:
        model: as `fluxrewrite.models.find_model` takes it.
        image_tokens, text_tokens, batch: sizes of the inputs.
        dtype: torch's name, of weights and inputs that are generated.
        inner: name of the inner backend.
        provider, execution: as `fluxrewrite.backend` takes them.
        device: torch device that the model runs on.
        profile: name or file of the device profile that "auto" predicts with; None for the backend's default.
        evidence: files of measured runs that "auto" reads in addition to the shipped ones.
        seed: of weights and inputs.
        threads: of torch; None for as many as torch uses by default.
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
    """Versions of what times depend on."""

    fluxrewrite: str
    torch: str
    python: str
    diffusers: str | None = None


class MachineInfo(DataRecord):
    """Where the bench ran: the processor, its cores and torch's threads; `device` names the accelerator, or the processor."""

    processor: str
    cores: PositiveInt
    threads: PositiveInt | None = None
    device: str | None = None


class Timed(DataRecord):
    """One denoising loop.

    Attributes:
        steps_s: seconds of each step.
        others: share of all processors that other programs used meanwhile, 0 to 1; None where unknown.
    """

    steps_s: tuple[PositiveFloat, ...] = Field(min_length=1)
    others: float | None = Field(default=None, ge=0, le=1)


class Output(DataRecord):
    """The last latents of the latest run.

    Attributes:
        digest: SHA-256 of their bytes.
        finite: whether all are finite.
        cosine: to those of the variant "vanilla", computed in float64; None without vanilla's, and where not all are finite.
    """

    digest: str
    finite: bool
    cosine: float | None = None


class Variant(DataRecord):
    """A variant and its finished runs.

    Attributes:
        name: as `--variants` has it: "qkv+attention".
        kernels: words that `fluxrewrite.backend` took as `kernels`; () for all kernels, and for a variant without any.
        calls: kernel calls that a step made, by kernel and form: {"qkv:triple": 2}.
        specialisations: distinct kernels among the calls; those with the same shapes and dtype count once.
        inline: sites a step that were written as plain operations.
        runs: the first one is cold. On several ranks, a step takes as long as on the slowest one.
        beside: warm runs of vanilla that were taken in turn with this variant's; () where those are in vanilla's own `runs`.
        peak_rss_mb: peak resident memory of the worker in MB (10^6 bytes), without the compilers that it starts; on several
            ranks, that of the largest.
        peak_rss_sum_mb: the sum over all ranks; None for one process.
        peak_device_mb: peak memory allocated on an accelerator, in MB.
        output: what the variant computed.
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
        """Uncertainty of the median warm step, as a ratio to it; 0 for fewer than two steps."""
        middle = self.warm_s_per_step
        return median_noise(self.warm) / middle if middle else 0.0

    @property
    def others(self) -> float:
        """Share of all processors that other programs used in the worst warm run of this variant, or of vanilla's in `beside`.

        Runs without that figure count as 0.
        """
        return max((run.others or 0.0 for run in (*self.runs[1:], *self.beside)), default=0.0)

    @property
    def cold_first_step_s(self) -> float | None:
        """Seconds of the first step of the first run, which includes the compile."""
        return self.runs[0].steps_s[0] if self.runs else None

    @property
    def differs(self) -> bool:
        """Whether its latents differ from vanilla's: not finite, or a cosine below `ALIKE`."""
        o = self.output
        return o is not None and (not o.finite or (o.cosine is not None and o.cosine < ALIKE))


class Runs(DataRecord):
    """A bench: variants of one model at one size on one machine.

    Attributes:
        date: start of the bench, ISO 8601 with the offset from UTC.
        case: what was run, as evidence names it.
        in_turn: whether the warm runs were taken in turn: the first of each variant, then the second of each, and so on. Where
            not all workers fit into memory, some variants at a time, each time together with vanilla; later variants then have
            `beside`.
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
        """The variant that all others are compared with; None where it did not run."""
        return next((v for v in self.variants if v.name == "vanilla"), None)

    def named(self, name: str) -> Variant:
        """The variant of that name. Raises StopIteration where there is no such variant."""
        return next(v for v in self.variants if v.name == name)

    def ratio(self, variant: Variant) -> float | None:
        """Its warm seconds a step / vanilla's in the runs that were taken in turn with it; None without warm runs of both."""
        base = self.base(variant)
        return variant.warm_s_per_step / statistics.median(base) if base and variant.warm_s_per_step else None

    def base(self, variant: Variant) -> tuple[float, ...]:
        """Seconds of the warm steps of vanilla that a variant is compared with; () where vanilla has no warm run."""
        if variant.beside:
            return tuple(s for run in variant.beside for s in run.steps_s)
        return self.vanilla.warm if self.vanilla else ()

    def noise(self, variant: Variant) -> float | None:
        """How far its ratio may be from 1 and still be noise; None where there is no ratio."""
        if self.ratio(variant) is None:
            return None
        base = self.base(variant)
        return threshold(variant.noise, median_noise(base) / statistics.median(base), self.drift)

    @property
    def drift(self) -> float:
        """The largest difference between variants that ran the same program, such as "vanilla" and an "auto" without kernels.

        As a fraction of a step. It bounds what two processes differ by, which the steps of one process cannot show.
        """
        ratios: dict[frozenset[tuple[str, int]], list[float]] = {}
        for v in self.variants:
            ratio = self.ratio(v)
            if ratio is not None and v.name != "eager" and not v.inline and not v.differs:
                ratios.setdefault(frozenset(v.calls.items()), []).append(ratio)
        return max((max(found) / min(found) - 1 for found in ratios.values()), default=0.0)

    def growth(self, variant: Variant) -> float | None:
        """Its first cold step / vanilla's - 1; None without both."""
        base = self.vanilla.cold_first_step_s if self.vanilla else None
        return variant.cold_first_step_s / base - 1 if base and variant.cold_first_step_s else None

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def load_runs(path: Path) -> Runs:
    """A file of runs. Raises InputError that names file, field and remedy."""
    return read(path, Runs, REMEDY)


def save_runs(runs: Runs, path: Path) -> None:
    """Replace the file atomically: readers find these runs or the former ones, never a part.

    A path that is not a regular file, such as a pipe, is written to directly.

    Raises InputError where it cannot be written; the former file is then unchanged.
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
    """Write and wait for the disk: some file systems report only then that they are full."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
