"""The report as data: pydantic models. Their JSON Schema is `schema.json` in this folder."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field

from .base import Record
from .boundary_records import AbsorptionInfo, Boundary, CollectiveInfo, LostFusion, TensorInfo
from .timeline_records import EngineInfo, TimelineInfo

__all__ = [
    "SCHEMA", "AbsorptionInfo", "ArtifactsInfo", "BlockInfo", "Boundary", "BreakInfo", "CallInfo", "ChoiceInfo", "ChosenKind",
    "CollectiveInfo", "CompileInfo", "Effect", "EngineInfo", "KernelInfo", "KindSummary", "LostFusion", "ModelInfo", "PartInfo",
    "ProcessInfo", "ProofInfo", "ReasonInfo", "Report", "Segments", "SiteInfo", "StepInfo", "Summary", "TensorInfo",
    "TimelineInfo", "Timing", "UserInfo", "Verdict", "schema_text",
]  # fmt: skip

SCHEMA: Final = "fluxrewrite.report/2"


class BreakInfo(Record):
    """A graph break: why Dynamo stopped, and the line of the model where it did."""

    reason: str
    location: str


class ModelInfo(Record):
    """What was traced. `graph_nodes` counts the nodes of all graphs.

    `eager_fallback` says whether TorchNeuron, which compiled it, may have run graphs eagerly without a warning: True
    unless TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION=1 was set; None where another backend compiled it, or none.
    """

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
    eager_fallback: bool | None = None


class Timing(Record):
    """Seconds of each stage and peak resident memory in MB (10^6 bytes); the only part that differs between equal runs.

    `proof_s` is a part of `match_s`: distinct sites that were run for their proof (`proofs_new`), and looked up (`proofs_cached`).
    """

    capture_s: float
    match_s: float
    analyse_s: float
    total_s: float
    peak_rss_mb: float
    proof_s: float = 0.0
    proofs_new: int = 0
    proofs_cached: int = 0


class ReasonInfo(Record):
    """Why a site is not rewritten: a reason code, a sentence with the numbers, and the node."""

    code: str
    message: str
    node: str = ""


class KernelInfo(Record):
    """The kernel that takes a site, and who provides it."""

    name: str
    provider: str


class ProofInfo(Record):
    """The outcome of running a site and its replacement on the same random inputs: "proved" where they agree.

    A site that "failed" has an `error`, relative to the largest expected value, and a `note`; one that could not be run is
    "unproved". `dtype` is what both ran in: "float64", or "traced" for the graph's own dtypes.
    """

    status: Literal["proved", "failed", "unproved"]
    error: float | None
    dtype: str
    note: str


class SiteInfo(Record):
    """A site or near miss, and what is done with it. `proof` is null where nothing was proved or refuted."""

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
    proof: ProofInfo | None = None


class StepInfo(Record):
    """Predicted microseconds of a step, and what they are at both ends of the ranges of the figures."""

    us: float
    low_us: float
    high_us: float
    basis: Literal["modelled", "assumed"]


class CompileInfo(Record):
    """A cold compile: distinct kernels and executables to compile, and seconds where runs give them."""

    specialisations: int
    executables: int
    seconds: float | None
    low_s: float | None
    high_s: float | None
    basis: Literal["measured", "assumed"]
    why: str


class ChosenKind(Record):
    """Sites that a choice takes in a block: all of one kind, form and sizes; `inline` where they become plain operations."""

    kind: str
    form: str
    shapes: dict[str, int | str]
    inline: bool


class ChoiceInfo(Record):
    """What `policy="auto"` or "measure" would take in one kind of block: microseconds of the block by the set of kernels.

    `taken` says which sites of the block are rewritten. `chosen` is the same as a name, which `times_us` uses.
    """

    block: str
    blocks: int
    chosen: str
    taken: tuple[ChosenKind, ...]
    times_us: dict[str, float]
    basis: Literal["modelled", "measured"]


class Verdict(Record):
    """Whether a kernel pays in a regime, why, and on which basis.

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


class Effect(Record):
    """The graphs before and after the rewrite, by a model of the compiler and of the device.

    `lost_elsewhere` counts pairs of operations outside all kernel calls that are no longer fused. The times are without
    those of collectives. `measured` is the verdict of runs of this very case on all calls of the plan, if there are such runs.
    """

    device: str
    regime: Literal["compile", "lazy"]
    compiler: str
    bytes_before: int
    bytes_after: int
    kernels_before: int
    kernels_after: int
    lost_elsewhere: int
    collectives_before: int = 0
    collectives_after: int = 0
    step_before: StepInfo
    step_after: StepInfo
    measured: Verdict | None = None
    compile: CompileInfo
    choices: tuple[ChoiceInfo, ...]


class PartInfo(Record):
    """One compiled kernel or call: what it computes, the bytes that it reads and writes, and its predicted microseconds.

    `ops` are the distinct operations of its `nodes`; a copy that the compiler adds has none. `site` is the id of the site that it
    is the call of, or, before the rewrite, of the site that a call takes it into; "" for all else.
    """

    kind: Literal["fused", "library", "opaque", "copy"]
    ops: tuple[str, ...]
    nodes: int
    reads: int
    writes: int
    us: float
    site: str


class BlockInfo(Record):
    """The kernels of one call of a block, in the order in which they run, before and after the rewrite.

    `path` is that of the first numbered module; "" for what lies between blocks.
    """

    path: str
    graph: int
    before: tuple[PartInfo, ...]
    after: tuple[PartInfo, ...]


class UserInfo(Record):
    """An operation that reads what a kernel call returns."""

    name: str
    op: str
    path: str


class CallInfo(Record):
    """A kernel call, node `name` of the rewritten graph: what it reads and returns, and what reads that, views looked through."""

    site: str
    graph: int
    name: str
    operands: tuple[TensorInfo, ...]
    results: tuple[TensorInfo, ...]
    users: tuple[UserInfo, ...]


class Segments(Record):
    """Executables before and after the rewrite."""

    before: int
    after: int


class KindSummary(Record):
    """Counts for one kind of site, and what was looked for.

    `covered` sites are part of a larger one that a kernel takes; `inline` ones are written as plain operations.
    """

    found: int
    eligible: int
    rewritten: int
    inline: int = 0
    covered: int
    missed: int
    forms: dict[str, int]
    looks_for: str


class Summary(Record):
    """Counts by kind, and the selection and policy that led to them."""

    kernels: tuple[str, ...]
    policy: str
    kinds: dict[str, KindSummary]


class ProcessInfo(Record):
    """What one process compiled; `custom_calls` counts those of its StableHLO by target, `kernel_calls` NKI's among them."""

    name: str
    fx_graphs: int
    stablehlo_modules: int
    neffs: int
    kernel_calls: int
    custom_calls: dict[str, int]


class ArtifactsInfo(Record):
    """What TorchNeuron kept of a compile, by process, and what was predicted for each; `agree` compares NEFFs and calls."""

    predicted_neffs: int
    predicted_kernel_calls: int
    processes: tuple[ProcessInfo, ...]
    agree: bool


class Report(Record):
    """Everything that fluxrewrite found in one model or one compile."""

    schema_: Literal["fluxrewrite.report/2"] = Field(default=SCHEMA, alias="schema")
    model: ModelInfo
    timing: Timing
    inventory: dict[str, int]
    sites: tuple[SiteInfo, ...]
    boundaries: tuple[Boundary, ...] = ()
    collectives: tuple[CollectiveInfo, ...] = ()
    segments: Segments | None = None
    effect: Effect | None = None
    summary: Summary
    verdicts: tuple[Verdict, ...] = ()
    artifacts: ArtifactsInfo | None = None
    blocks: tuple[BlockInfo, ...] = ()
    calls: tuple[CallInfo, ...] = ()
    timelines: tuple[TimelineInfo, ...] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), populate_by_name=True)

    def to_json(self) -> str:
        """The report as JSON text, two spaces of indent, the same bytes for the same input but for `timing`."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    def __repr__(self) -> str:
        """One line: the records are for `to_json`."""
        rewritten = f"{sum(s.choice != 'keep' for s in self.sites)} of {len(self.sites)} sites rewritten"
        return f"<Report on {self.model.name}: policy {self.summary.policy}, {rewritten}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """The page of `--format html` in a frame, as Jupyter shows it."""
        (found,) = entry_points(group="fluxrewrite.renderers", name="frame")
        return str(found.load()(self))


def schema_text() -> str:
    """The JSON Schema of the report, as it ships in `schema.json`."""
    schema = Report.model_json_schema(by_alias=True, mode="serialization")
    return json.dumps({"$id": SCHEMA, **schema}, indent=2, sort_keys=True) + "\n"
