"""The report as data: pydantic models, and the JSON Schema that ships beside this file as `schema.json`."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "SCHEMA", "Boundary", "BreakInfo", "KernelInfo", "KindSummary", "LostFusion", "ModelInfo", "ReasonInfo", "Report",
    "Segments", "SiteInfo", "Summary", "TensorInfo", "Timing", "Verdict", "schema_text",
]  # fmt: skip

SCHEMA = "fluxrewrite.report/1"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class BreakInfo(_Record):
    """A graph break: why Dynamo stopped, and the line of the model where it did."""

    reason: str
    location: str


class ModelInfo(_Record):
    """What was traced. `graph_nodes` counts the nodes of all graphs."""

    name: str
    parameters: int
    dtype: str
    tp: int = 1
    batch: int | None = None
    image_tokens: int | None = None
    text_tokens: int | None = None
    graphs: int
    graph_nodes: int
    graph_breaks: tuple[BreakInfo, ...] = ()
    dynamic_sizes: tuple[str, ...] = ()


class Timing(_Record):
    """Seconds of each stage and peak resident memory in MB (10^6 bytes); the only part that differs between equal runs."""

    capture_s: float
    match_s: float
    analyse_s: float
    total_s: float
    peak_rss_mb: float


class ReasonInfo(_Record):
    """Why a site is not rewritten: a reason code, a sentence with the numbers, the node it is about."""

    code: str
    message: str
    node: str = ""


class KernelInfo(_Record):
    """The kernel that takes a site, and who provides it."""

    name: str
    provider: str


class SiteInfo(_Record):
    """A site or near miss, and what is done with it."""

    id: str
    kind: str
    form: str
    path: str
    graph: int
    status: Literal["eligible", "ineligible", "missed"]
    reasons: tuple[ReasonInfo, ...]
    shapes: dict[str, int | str]
    choice: Literal["keep", "inline", "kernel"]
    kernel: KernelInfo | None
    details: dict[str, Any] = Field(default_factory=dict)


class TensorInfo(_Record):
    """A tensor that goes through memory; `bytes` is its size."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    bytes: int


class LostFusion(_Record):
    """Two operations that the compiler would have fused."""

    producer: str
    consumer: str


class Boundary(_Record):
    """Where a kernel call stands between operations, and what that costs, in microseconds, on the basis named."""

    site: str
    kind: Literal["split", "barrier", "layout"]
    bytes: int
    tensors: tuple[TensorInfo, ...]
    lost_fusions: tuple[LostFusion, ...]
    cost_us: float | None
    basis: Literal["measured", "modelled", "assumed"]


class Segments(_Record):
    """Executables before and after the rewrite."""

    before: int
    after: int


class Verdict(_Record):
    """Whether a kernel pays in a regime, why, and on what basis that is said.

    `kernel` joins several kernels by "+". `ratio` is the step with the kernel over the step without; `predicted_s` is seconds
    a step with it, where a step without it is known.
    """

    kernel: str
    regime: Literal["compile", "lazy"]
    verdict: Literal["faster", "neutral", "slower", "not_applicable"]
    why: str
    basis: Literal["measured", "modelled", "assumed"]
    ratio: float | None = None
    predicted_s: float | None = None


class KindSummary(_Record):
    """Counts for one kind of site, and what was looked for. `covered` sites are part of a larger one that a kernel takes."""

    found: int
    eligible: int
    rewritten: int
    covered: int
    missed: int
    forms: dict[str, int]
    looks_for: str


class Summary(_Record):
    """Counts by kind, and the selection and policy that led to them."""

    kernels: tuple[str, ...]
    policy: str
    kinds: dict[str, KindSummary]


class Report(_Record):
    """Everything that fluxrewrite knows about one model or one compile."""

    schema_: Literal["fluxrewrite.report/1"] = Field(default="fluxrewrite.report/1", alias="schema")
    model: ModelInfo
    timing: Timing
    inventory: dict[str, int]
    sites: tuple[SiteInfo, ...]
    boundaries: tuple[Boundary, ...] = ()
    segments: Segments | None = None
    summary: Summary
    verdicts: tuple[Verdict, ...] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), populate_by_name=True)

    def to_json(self) -> str:
        """The report as JSON text, two spaces of indent, the same bytes for the same input but for `timing`."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def schema_text() -> str:
    """The JSON Schema of the report, as it ships in `schema.json`."""
    schema = Report.model_json_schema(by_alias=True, mode="serialization")
    return json.dumps({"$id": SCHEMA, **schema}, indent=2, sort_keys=True) + "\n"
