"""The comparison as text: a row for each class, misses by reason, and the classes left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .compare import GOALS, KINDS, TOLERANCE, Row

__all__ = ["below", "markdown", "row_text", "totals"]

HEAD = """\
# Coverage of other models

What fluxrewrite finds in each transformer class of diffusers {diffusers}, a UNet and decoders of transformers {transformers},
compared with what the model computes. The models are built from small configurations with random weights and compiled with
every kernel (`policy="all"`, provider "reference", inner backend "eager", float32).
`python tools/coverage.py --format markdown` writes this page.

The totals are counted while the model runs in eager mode, without looking at a graph:

- attention: calls of `scaled_dot_product_attention` and of `flex_attention`, and softmaxes whose result goes into a matrix
  product. Linear attention has no softmax and is not counted;
- rotations: tensors that the model's own rotary functions return;
- projection groups: linear layers that read one tensor and that autograd records as the source of two or three of query, key
  and value of one attention.

A site counts as found when a kernel may take it or a larger site contains it; it counts once for each run of its graph. Outputs
are equal when the largest difference from eager is at most {tolerance:g} of the largest value.

"""


def totals(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """For each kind, how many were found and how many there are."""
    compared = [r for r in rows if not r.problem]
    return {k: (sum(r.share(k) for r in compared), sum(r.there[k] for r in compared)) for k in KINDS}


def below(rows: Sequence[Row]) -> list[str]:
    """The goals that are missed, one line each."""
    short = [
        f"{kind}: {found} of {there} found, goal {GOALS[kind]:.0%}"
        for kind, (found, there) in totals(rows).items()
        if found < GOALS[kind] * there
    ]
    return short + [f"{r.name}: outputs differ by {r.error:.1e}" for r in rows if not r.problem and not r.equal]


def row_text(row: Row) -> str:
    """One line of the table: found of there for each kind, kernel calls, graphs, and whether outputs are equal."""
    counts = [f"{row.found[k]} of {row.there[k]}" if row.there[k] or row.found[k] else "" for k in KINDS]
    return f"| {row.name} | {' | '.join(counts)} | {row.kernels} | {row.graphs} | {'yes' if row.equal else 'no'} |"


def markdown(rows: Sequence[Row], versions: dict[str, str]) -> str:
    """The whole page."""
    compared = [r for r in rows if not r.problem]
    lines = ["| class | attention | rotations | projection groups | kernel calls | graphs | outputs equal |"]
    lines += ["|---|---|---|---|---|---|---|", *map(row_text, compared)]
    sums = [f"{found} of {there} ({found / max(there, 1):.1%})" for found, there in totals(rows).values()]
    lines += [f"| **{len(compared)} classes** | {' | '.join(sums)} | {sum(r.kernels for r in compared)} | | |", ""]
    lines += _misses(compared) + _left_out(rows)
    return HEAD.format(tolerance=TOLERANCE, **versions) + "\n".join(lines) + "\n"


def _misses(rows: Sequence[Row]) -> list[str]:
    lines = ["## What was not found", "", "| class | kind | reason | | times |", "|---|---|---|---|---|"]
    for row in rows:
        lines += [
            f"| {row.name} | {kind} | {code} | {message.replace('|', '/')} | {n} |"
            for kind, code, message, n in row.misses
        ]
    reasons = Counter(code for row in rows for _, code, _, n in row.misses for _ in range(n))
    told = ", ".join(f"{n} {code}" for code, n in reasons.most_common()) or "none"
    return [*lines, "", f"By reason: {told}.", ""]


def _left_out(rows: Sequence[Row]) -> list[str]:
    left = [f"- {r.name}: {r.problem}." for r in rows if r.problem]
    return ["## Models left out", "", *(left or ["Nothing."])]
