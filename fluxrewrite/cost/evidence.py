"""Evidence: tables of measured runs with and without kernels, as data files.

Costs of kernel calls are derived only from runs with one kind of kernel, compared with the run without kernels of the same table.
Runs with several kinds are held out: they show how well the single ones add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .data_files import DataRecord, read, shipped
from .devices import Regime
from .noise import median_noise

__all__ = [
    "EVIDENCE_SCHEMA",
    "Case",
    "Evidence",
    "MeasuredRun",
    "Table",
    "covers",
    "kind_of",
    "load_evidence",
    "same_form",
]

EVIDENCE_SCHEMA: Final = "fluxrewrite.evidence/1"

REMEDY = "`fluxrewrite calibrate --from TABLE -o FILE` writes such a file"


class Case(DataRecord):
    """What was run, or what a prediction is for. None means unknown, which never equals a value.

    Attributes:
        device: name of a profile: "trn2".
        regime: see `fluxrewrite.cost.devices.Regime`.
        model: name, as of a preset: "flux2-klein-4b".
        dtype: torch's name.
        tp: tensor-parallel ranks.
        batch, image_tokens, text_tokens: sizes.
    """

    device: str
    regime: Regime
    model: str | None = None
    dtype: str | None = None
    tp: PositiveInt | None = None
    batch: PositiveInt | None = None
    image_tokens: PositiveInt | None = None
    text_tokens: PositiveInt | None = None

    @property
    def known(self) -> bool:
        """Whether nothing is None."""
        return None not in self.model_dump().values()

    def same_place(self, other: Case) -> bool:
        """Whether both are on the same device in the same regime."""
        return (self.device, self.regime) == (other.device, other.regime)

    def __str__(self) -> str:
        """ "flux2-klein-4b, bfloat16, tp 4, batch 1, 256 + 512 tokens"."""
        tokens = f"{self.image_tokens} + {self.text_tokens} tokens" if self.image_tokens else None
        parts = (self.model, self.dtype, self.tp and f"tp {self.tp}", self.batch and f"batch {self.batch}", tokens)
        return ", ".join(str(p) for p in parts if p)


class MeasuredRun(DataRecord):
    """One variant of a model.

    Attributes:
        kernels: kinds of kernel used, each with its form if known: ("qkv:triple", "attention"); () for a run without kernels.
        calls: kernel calls a step, by kernel as named in `kernels`.
        specialisations: distinct kernels compiled, by kernel; calls with the same shapes and constants share one.
        warm_s_per_step: seconds a step once everything is compiled.
        warm_steps_s: the single warm steps, where published.
        beside_steps_s: warm steps without kernels that were taken in turn with these; () where those of the table were.
        cold_steps_s: steps of a first run; the first one includes the compile.
        note: which kernel it was, and what is uncertain.
    """

    kernels: tuple[str, ...]
    calls: dict[str, PositiveInt] = Field(default_factory=dict)
    specialisations: dict[str, PositiveInt] = Field(default_factory=dict)
    warm_s_per_step: PositiveFloat
    warm_steps_s: tuple[PositiveFloat, ...] = ()
    beside_steps_s: tuple[PositiveFloat, ...] = ()
    cold_steps_s: tuple[PositiveFloat, ...] = ()
    note: str = ""

    @model_validator(mode="after")
    def _named(self) -> Self:
        kinds = [kind_of(k) for k in self.kernels]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"a kind of kernel appears twice in {list(self.kernels)}")
        if set(self.calls) != set(self.kernels):
            raise ValueError(f"calls name {sorted(self.calls)} where kernels name {sorted(self.kernels)}")
        if not set(self.specialisations) <= set(self.kernels):
            raise ValueError(f"specialisations name {sorted(self.specialisations)} beyond {sorted(self.kernels)}")
        return self

    @property
    def noise(self) -> float:
        """Uncertainty of the median warm step, as a ratio to it; 0 where single steps were not published."""
        return median_noise(self.warm_steps_s) / self.warm_s_per_step

    @property
    def compile_s(self) -> float | None:
        """Seconds of the first step of the first run: the compile and a step."""
        return self.cold_steps_s[0] if self.cold_steps_s else None


class Table(DataRecord):
    """Runs that can be compared: same device, model, sizes and versions. One of them is without kernels.

    Attributes:
        case: what was run; nothing in it is unknown.
        stack: compiler or framework, with its version.
        steps: steps of a run.
        source: who published the figures.
        drift: fraction of a step by which runs of one program in two processes differed; 0 where none were made.
        runs: the variants.
    """

    case: Case
    stack: str = Field(min_length=1)
    source: str = Field(min_length=1)
    steps: PositiveInt | None = None
    note: str = ""
    drift: float = Field(default=0.0, ge=0)
    runs: tuple[MeasuredRun, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        missing = [name for name, value in self.case.model_dump().items() if value is None]
        if missing:
            raise ValueError(f"case: {', '.join(missing)} not given")
        sets = [frozenset(r.kernels) for r in self.runs]
        if frozenset() not in sets:
            raise ValueError('no run without kernels ("kernels": []) to compare with')
        if len(set(sets)) < len(sets):
            raise ValueError("two runs with the same kernels")
        return self

    @property
    def baseline(self) -> MeasuredRun:
        """The run without kernels."""
        return next(r for r in self.runs if not r.kernels)

    def run(self, kernels: Iterable[str]) -> MeasuredRun | None:
        """The run with exactly these kernels; a kind without a form matches every form of it."""
        wanted = tuple(kernels)
        return next((r for r in self.runs if covers(wanted, r.kernels) and covers(r.kernels, wanted)), None)


class Evidence(DataRecord):
    """All measured runs. Where two tables cover the same case, the later one counts."""

    schema_: Literal["fluxrewrite.evidence/1"] = Field(alias="schema")
    tables: tuple[Table, ...] = ()

    def tables_for(self, case: Case) -> tuple[Table, ...]:
        """Tables of this device and regime: those of this case first, then other models and sizes; among equals the latest first.

        A run of exactly this case needs no carrying over, so it comes before a newer one of another model. User files are read
        after the shipped ones, so they come first among equals.
        """
        found = [t for t in reversed(self.tables) if t.case.same_place(case)]
        return tuple(sorted(found, key=lambda t: t.case != case))  # stable: keeps the latest first

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(by_alias=True, indent=2, exclude_defaults=False) + "\n"


def kind_of(kernel: str) -> str:
    """ "qkv" of "qkv:triple"."""
    return kernel.partition(":")[0]


def covers(wanted: Iterable[str], used: Iterable[str]) -> bool:
    """Whether each wanted kernel is among those used: of the same kind, and of the same form where both name one."""
    there = tuple(used)
    return all(any(kind_of(w) == kind_of(u) and same_form(w, u) for u in there) for w in wanted)


def same_form(a: str, b: str) -> bool:
    """Whether two kernels of one kind have the same form, or one of them names no form."""
    return a == b or ":" not in a or ":" not in b


def load_evidence(paths: Iterable[str | Path] = (), *, shipped_too: bool = True) -> Evidence:
    """The shipped evidence and that of user files, joined; on the same case, a later file counts before earlier ones.

    Raises InputError: a file that is not evidence; the message names file, field and remedy.
    """
    files = [*(shipped("evidence").values() if shipped_too else ()), *map(Path, paths)]
    return Evidence(schema=EVIDENCE_SCHEMA, tables=tuple(t for f in files for t in read(f, Evidence, REMEDY).tables))
