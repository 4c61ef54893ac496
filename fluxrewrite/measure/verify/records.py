"""The result of a verification as data: the JSON of `fluxrewrite verify MODEL`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, computed_field

from ...cost.data_files import DataRecord

__all__ = ["SCHEMA", "LoopResult", "Moments", "Setting", "SiteResult", "StepResult", "Verification"]

SCHEMA: Literal["fluxrewrite.verify/1"] = "fluxrewrite.verify/1"


class Setting(DataRecord):
    """What was verified, and how.

    `kernels`, `policy`, `provider`, `execution` and `inner` are as `fluxrewrite.backend` takes them. Sizes are those of the
    inputs, None for a model that brings its own. `tp` is the number of ranks. `seed` is that of weights, inputs and noise.
    """

    model: str
    dtype: str
    batch: int | None = None
    image_tokens: int | None = None
    text_tokens: int | None = None
    tp: int = 1
    kernels: tuple[str, ...]
    policy: str
    provider: str
    execution: str
    inner: str
    steps: int
    seed: int
    versions: dict[str, str]


class SiteResult(DataRecord):
    """One rewritten site: its original operations compared with their replacement, on the same operands.

    `node` is the first node of the graph that the site replaces. Of all results of the site, `max_abs` is the largest absolute
    error, `relative` the largest error over the largest absolute value expected of its result, `norm` the largest norm of the
    error over the expected norm, and `cosine` the smallest. If there are no figures, all are None and `note` says why. `rank` is
    the rank where the site is worst, None for a single process; shapes and figures are those of its local shards.
    """

    graph: int
    kind: str
    form: str
    path: str
    node: str
    choice: Literal["kernel", "inline"]
    shapes: dict[str, int | str]
    dtype: str
    max_abs: float | None
    relative: float | None
    norm: float | None
    cosine: float | None
    tolerance: float
    norm_tolerance: float
    least_cosine: float
    note: str = ""
    rank: int | None = None

    @property
    def name(self) -> str:
        """A name such as "qkv:triple at transformer_blocks.0.attn (query_3)", with the node that the first result replaces."""
        place = f"{self.kind}:{self.form} at {self.path or 'the model'} ({self.node})"
        return place if self.rank is None else f"{place} on rank {self.rank}"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether there are figures and all are within their limits."""
        return self.excess <= 1

    @property
    def excess(self) -> float:
        """The largest ratio of a figure (1 - cosine for the cosine) to its limit; inf without figures. Above 1 the site fails."""
        if self.relative is None or self.norm is None or self.cosine is None:
            return float("inf")
        errors = _share(self.relative, self.tolerance), _share(self.norm, self.norm_tolerance)
        return max(*errors, _share(1 - self.cosine, 1 - self.least_cosine))


def _share(value: float, limit: float) -> float:
    return value / limit if limit > 0 else 0.0 if value <= 0 else float("inf")


class Moments(DataRecord):
    """Range, mean and standard deviation of a tensor; None if a value is NaN or inf."""

    min: float | None
    max: float | None
    mean: float | None
    std: float | None


class StepResult(DataRecord):
    """The latents of both loops after a step; for a model that does not denoise, its first result."""

    step: int
    original: Moments
    rewritten: Moments
    max_abs: float | None
    relative: float | None
    cosine: float | None
    least_cosine: float
    note: str = ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether all values are finite and the cosine is within its limit."""
        return self.cosine is not None and self.cosine >= self.least_cosine


class LoopResult(DataRecord):
    """The steps that ran; `note` says why some did not, or what is wrong with the loop as a whole."""

    steps: tuple[StepResult, ...]
    note: str = ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether all steps ran and passed."""
        return not self.note and all(s.passed for s in self.steps)


class Verification(DataRecord):
    """The whole result."""

    schema_: Literal["fluxrewrite.verify/1"] = Field(default=SCHEMA, alias="schema")
    setting: Setting
    sites: tuple[SiteResult, ...]
    loop: LoopResult
    seconds: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether every site and the loop passed."""
        return all(s.passed for s in self.sites) and self.loop.passed

    def to_json(self) -> str:
        """The record as JSON, with a newline at the end."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"
