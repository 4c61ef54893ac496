"""What a pass answers: a `Site` that can be rewritten, or a `Miss` with the reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import torch
from torch.fx import Node

from .graph.views import AxisLanes

__all__ = ["Code", "Finding", "Inline", "Miss", "Proof", "Reason", "Site", "SiteKey"]


class Code(StrEnum):
    """Reason codes. Every one has a test that makes it fire (`tests/test_reasons.py`)."""

    PATTERN = "pattern_mismatch"
    """The operations are not those of any known form; the message says what was expected and what was found."""
    INNER_USE = "inner_value_used"
    """A value inside the region is also used outside: the kernel would not make it."""
    MUTATION = "mutation"
    """Memory that the region reads is modified in place before the region ends, or memory that its results share is modified."""
    NO_SHAPE = "no_shape"
    """The trace holds no shape for a value."""
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
    """Parts of the region run under different settings of torch.autocast; one call has one."""
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
    """The walk from attention to its projections met more nodes than it may."""
    REWRITTEN = "already_rewritten"
    """The value already comes from a fluxrewrite call."""
    SUBCLASS = "tensor_subclass"
    """A tensor of a class of its own takes part, such as a quantised weight: it answers operations itself and knows no kernel."""
    SUBGRAPH = "subgraph"
    """The region is in a graph of its own that an operation runs, as with gradient checkpointing and control flow."""
    REQUIRES_GRAD = "requires_grad"
    """The result needs a gradient; the kernels are for inference."""
    LIMIT = "limit"
    """A limit of the kernel is exceeded; the message has both numbers and where the limit comes from."""
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
    """The replacement computes something else than the site on random inputs; the message says how far apart they are."""
    UNPROVED = "unproved"
    """The site cannot be run for its proof; the message says why."""
    PROBED = "probed_otherwise"
    """A region of no known form was run on made-up inputs and is not what it might have been; the message says what it does."""
    NOT_PROBED = "not_probed"
    """A region of no known form cannot be run on made-up inputs, or not within the limits; the message says why."""
    NEEDS_PROOF = "needs_proof"
    """A site that was found by what it computes is rewritten only where a proof confirms it, and none was asked for."""


@dataclass(frozen=True)
class Reason:
    """Why a site is refused: code, a sentence with the numbers, and the name of the node it is about."""

    code: Code
    message: str
    node: str = ""


@dataclass(frozen=True)
class Miss:
    """Something that looked like a site and is none."""

    kind: str
    path: str
    reason: Reason
    form: str = ""


@dataclass(frozen=True)
class Proof:
    """What came of running a site and its replacement on the same random inputs.

    Attributes:
        status: "proved" where they agree, "failed" where not, "unproved" where they could not be run.
        error: the greatest error over the largest value expected, of one that failed and has figures.
        dtype: that both ran in: "float64", or "traced" for the dtypes of the graph.
        note: of a proof that failed or could not be had: why.
    """

    status: Literal["proved", "failed", "unproved"]
    error: float | None = None
    dtype: str = ""
    note: str = ""


@dataclass(frozen=True)
class Inline:
    """How one linear layer on joined weights does what a site does.

    Attributes:
        joined: groups of parameters, each joined along the first axis.
        columns: of the layer's result.
        results: for each output of the site, which elements of the result it is.
    """

    joined: tuple[tuple[Node, ...], ...]
    columns: int
    results: tuple[AxisLanes, ...]


SiteKey = tuple[str, str, tuple[str, ...], bool]
"""Kind, form, names of the outputs, and whether it is written inline: see `Site.key`."""


@dataclass(frozen=True)
class Site:
    """A region of the graph that one kernel call may replace.

    Attributes:
        kind: name of the pass ("qkv", "rope", "attention").
        form: which of the pass's forms it was found in ("triple", "packed", "interleaved", "sdpa", ...).
        path: the module that holds it, as in `named_modules()`.
        operands: arguments of the canonical op by name: nodes, None, numbers, strings.
        outputs: nodes that the op's results replace, in the order of the results.
        interior: nodes that have no use once the outputs are replaced.
        place: node that the call is inserted in front of; the first output when None.
        inline: plain torch operations stand in for the kernel, in this form, as `Pass.emit_inline` writes them.
        notes: what else a report tells of the site; nothing else reads it.
        proof: what came of its proof; None where none was asked for.
        needs_proof: it was found by what it computes, not by its structure: without a proof it is left alone.
        shapes: sizes by name (batch, sequence, heads, head_size, ...), ints or the text of a symbolic size.
        dtype: dtype of the region's input.
        facts: what else limits speak of: mask, scale, eps, dtype of tables.
        extra: whatever the pass needs again to emit the replacement.
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
    extra: Mapping[str, Any] = field(default_factory=dict)
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
    def eligible(self) -> bool:
        """Whether a kernel may take the site."""
        return not self.reasons


Finding = Site | Miss
