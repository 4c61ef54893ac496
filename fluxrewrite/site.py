"""What a pass finds: a `Site` that can be rewritten, or a `Miss` with the reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

import torch
from torch.fx import Node

from .graph.views import AxisLanes

__all__ = ["Code", "Finding", "Inline", "Miss", "Proof", "Reason", "Site", "SiteKey"]


class Code(StrEnum):
    """Reason codes. Every one has a test that makes it fire (`tests/test_reasons.py`)."""

    PATTERN = "pattern_mismatch"
    """The operations are not those of any known form; the message says what was expected and what was found."""
    INNER_USE = "inner_value_used"
    """A value inside the region is also used outside: the kernel would not compute it."""
    MUTATION = "mutation"
    """Memory that the region reads is modified in place before the region ends, or memory that its results share is modified."""
    NO_SHAPE = "no_shape"
    """The trace has no shape for a value."""
    DROPOUT = "dropout"
    """Attention with a dropout probability above zero."""
    MASK = "mask_form"
    """A mask that the kernel's additive or boolean mask cannot express."""
    AXES = "axes"
    """The axes of a tensor are not those that the kernel takes."""
    TABLE = "table_shape"
    """RoPE tables that are not one row for each position, shared by the heads."""
    MIXED_DTYPE = "mixed_dtype"
    """Operands and result differ in dtype, as under autocast."""
    AUTOCAST = "autocast"
    """Parts of the region run under different settings of torch.autocast; one call can have only one."""
    PRECISION = "precision"
    """The region computes in a wider dtype than the kernel would."""
    NO_PROJECTION = "no_projection"
    """Query, key or value does not come from a linear layer."""
    DIFFERENT_INPUTS = "different_inputs"
    """The query, key and value projections read different tensors, as in cross-attention."""
    SHARED_ROWS = "shared_rows"
    """The same rows of a projection serve more than one of query, key and value."""
    PACKED_LAYOUT = "packed_layout"
    """Query, key and value are not contiguous blocks of rows of the packed weight."""
    ORDER = "order"
    """No place in the graph comes after all operands and before all uses."""
    SEARCH_LIMIT = "search_limit"
    """The walk from attention to its projections passed more nodes than its limit."""
    REWRITTEN = "already_rewritten"
    """The value already comes from a fluxrewrite call."""
    SUBCLASS = "tensor_subclass"
    """A tensor subclass takes part, such as a quantised weight: it handles operations itself and knows no kernel."""
    SUBGRAPH = "subgraph"
    """The region is in a nested graph that an operation runs, as with gradient checkpointing and control flow."""
    REQUIRES_GRAD = "requires_grad"
    """The result needs a gradient; the kernels are for inference."""
    LIMIT = "limit"
    """A limit of the kernel is exceeded; the message has both numbers and the source of the limit."""
    NO_KERNEL = "no_kernel"
    """No provider in use has a kernel for this kind of site."""
    NOT_SELECTED = "not_selected"
    """`kernels=` leaves out this kind or form."""
    COVERED = "covered"
    """A larger site that a kernel takes holds this one."""
    POLICY = "policy"
    """The policy chose to keep the site as it is."""
    FAILED = "kernel_failed"
    """The kernel failed earlier in this process, when it was compiled or run for the first time."""
    REPLACEMENT = "replacement_differs"
    """The replacement would have another shape, dtype or device."""
    NOT_EQUIVALENT = "not_equivalent"
    """The replacement and the site differ on random inputs; the message says by how much."""
    UNPROVED = "unproved"
    """The site cannot be run for its proof; the message says why."""
    PROBED = "probed_otherwise"
    """A region of no known form was run on random inputs and is not what the pass looks for; the message says what was found."""
    NOT_PROBED = "not_probed"
    """A region of no known form cannot be run on random inputs, or not within the limits; the message says why."""
    NEEDS_PROOF = "needs_proof"
    """A site found by what it computes is rewritten only if a proof confirms it, and proofs are off."""


@dataclass(frozen=True)
class Reason:
    """Why a site is refused: code, a sentence with the numbers, and the name of the node it is about."""

    code: Code
    message: str
    node: str = ""


@dataclass(frozen=True)
class Miss:
    """Something that looked like a site and is not one."""

    kind: str
    path: str
    reason: Reason
    form: str = ""


@dataclass(frozen=True)
class Proof:
    """The outcome of running a site and its replacement on the same random inputs.

    Attributes:
        status: "proved" where they agree, "failed" where not, "unproved" where they could not be run.
        error: where they differ: the greatest error, relative to the largest value expected.
        dtype: that both ran in: "float64", or "traced" for the dtypes of the graph.
        note: why a proof failed or could not be obtained.
    """

    status: Literal["proved", "failed", "unproved"]
    error: float | None = None
    dtype: str = ""
    note: str = ""


@dataclass(frozen=True)
class Inline:
    """How one linear layer on joined weights computes what a site computes.

    Attributes:
        joined: groups of parameters, each joined along the first axis.
        columns: of the layer's result.
        results: for each output of the site, its elements of the layer's result.
    """

    joined: tuple[tuple[Node, ...], ...]
    columns: int
    results: tuple[AxisLanes, ...]


SiteKey = tuple[str, str, tuple[str, ...], bool]
"""Kind, form, names of the outputs, and whether it is written inline: see `Site.key`."""
Extra = TypeVar("Extra")


def _no_extra() -> Any:
    return {}


@dataclass(frozen=True)
class Site(Generic[Extra]):
    """A region of the graph that one kernel call may replace.

    Attributes:
        kind: name of the pass ("qkv", "rope", "attention").
        form: which of the pass's forms it was found in ("triple", "packed", "interleaved", "sdpa", ...).
        path: the module that holds it, as in `named_modules()`.
        operands: arguments of the canonical op by name: nodes, None, numbers, strings.
        outputs: nodes that the op's results replace, in the order of the results.
        interior: nodes that have no use once the outputs are replaced.
        place: node that the call is inserted in front of; the first output when None.
        inline: the form in plain torch operations that replaces the site without a kernel, as `Pass.emit_inline` writes it.
        notes: what else a report shows of the site; nothing else reads it.
        proof: the outcome of its proof; None where proofs are off.
        needs_proof: it was found by what it computes, not by its structure: without a proof it is left alone.
        shapes: sizes by name (batch, sequence, heads, head_size, ...), ints or the text of a symbolic size.
        dtype: dtype of the region's input.
        facts: what limits refer to besides sizes: mask, scale, eps, dtype of tables.
        extra: what else the pass needs to emit the replacement: a dataclass of the pass, or a mapping. A proof covers all of it.
        reasons: limits that the site breaks; an eligible site has none.
    """

    kind: str
    form: str
    path: str
    operands: Mapping[str, Any]
    outputs: tuple[Node, ...]
    interior: tuple[Node, ...]
    shapes: Mapping[str, int | str]
    dtype: torch.dtype
    facts: Mapping[str, int | float | str | None] = field(default_factory=dict)
    extra: Extra = field(default_factory=_no_extra)
    reasons: tuple[Reason, ...] = ()
    place: Node | None = None
    inline: Inline | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    proof: Proof | None = None
    needs_proof: bool = False

    @property
    def key(self) -> SiteKey:
        """Identifies the site within its graph, whatever is decided about it later; its inline form has a key of its own."""
        return self.kind, self.form, tuple(n.name for n in self.outputs), self.inline is not None

    @property
    def before(self) -> Node:
        """The node that the call is inserted in front of."""
        return self.place if self.place is not None else self.outputs[0]

    @property
    def details(self) -> dict[str, Any]:
        """The items or fields of `extra` by name, in their order, then `notes`: what a report may show of the site."""
        extra: Any = self.extra
        named = extra if isinstance(extra, Mapping) else {f.name: getattr(extra, f.name) for f in fields(extra)}
        return {**named, **self.notes}

    @property
    def eligible(self) -> bool:
        """Whether a kernel may take the site."""
        return not self.reasons


Finding = Site[Any] | Miss
