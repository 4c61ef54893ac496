"""Which axis of a rotation's tables holds the positions, and how the tables are passed to the op.

Not a pass: the rope pass and the norm_rope_attention pass share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph import views as st
from fluxrewrite.graph.shapes import Shape, same_dim, same_shape, size_of
from fluxrewrite.rewrite import Builder
from fluxrewrite.site import Code, Site

__all__ = ["FOLDED", "RopeDetails", "Tables", "Unfit", "emit_tables", "read_tables"]

FOLDED = -1
"""Axis of positions of tables with rows for each head: positions and heads become one axis."""


@dataclass(frozen=True)
class RopeDetails:
    """`Site.extra` of a rotation.

    Attributes:
        axis: axis of x that holds the positions, or FOLDED.
        turned: the result is [B, H, S, D] in shape and dense as [B, S, H, D] in memory, so the call works on permuted x.
        folded: sizes of axes 1 and 2 of x, which a call on folded axes restores.
        out_dtype: dtype of the result where it differs from that of x.
        squeeze: for "cos" and "sin", axes of size 1 to squeeze from each table, last first.
        tables: "real", "complex" or "matrix".
        interleaved: pairs are neighbouring channels, else channels half a head apart.
    """

    axis: int
    turned: bool
    folded: tuple[int | torch.SymInt, ...]
    out_dtype: torch.dtype | None
    squeeze: Mapping[str, list[int]]
    tables: str
    interleaved: bool


@dataclass(frozen=True)
class Tables:
    """The tables of a rotation.

    Attributes:
        nodes: by name, "cos" and "sin": one real table each, or the same complex table or table of matrices twice.
        axis: axis of x that holds the positions, or FOLDED.
        squeeze: axes of size 1 to squeeze from each, last first, to leave the op's axes.
        facts: widest dtype, and for how many batches there are rows.
    """

    nodes: Mapping[str, Node]
    axis: int
    squeeze: Mapping[str, list[int]]
    facts: Mapping[str, int | float | str | None]


@dataclass(frozen=True)
class Unfit:
    """Why tables do not fit the op, and the node where that shows."""

    code: Code
    message: str
    node: Node


def read_tables(view: GraphView, x: Node, given: Mapping[str, Node], tail: int = 1) -> Tables | Unfit:
    """The tables as [S, W] or [B, S, W], and the axis of x that holds the positions; Unfit for any other tables.

    Args:
        view: the graph.
        x: what is rotated, 3 or 4 axes.
        given: the tables by name; they broadcast to x.
        tail: how many last axes of a table correspond to the last one of x: 1, or 3 for matrices [D/2, 2, 2].
    """
    shape = view.shape(x) or ()
    if len(shape) not in (3, 4):
        return Unfit(Code.AXES, f"x has {len(shape)} axes, the kernel takes 3 or 4", x)
    axes: set[int] = set()
    for name, table in given.items():
        rows = view.shape(table) or ()
        axis = _position_axis(shape, rows, tail)
        if axis is None:
            return Unfit(
                Code.TABLE, f"{name} is {tuple(rows)} for x {tuple(shape)}: not one row a position for all heads", table
            )
        lead = len(rows) - tail - len(_excess(rows, axis, len(shape), tail)) - (axis == FOLDED)
        if lead not in (1, 2):
            return Unfit(Code.TABLE, f"{name} of {tuple(rows)} has no axis of positions for x {tuple(shape)}", table)
        axes.add(axis)
    if len(axes) > 1:
        return Unfit(Code.TABLE, f"cos and sin disagree on the axis of positions: {sorted(axes)}", x)
    axis = axes.pop()
    nodes: dict[str, Node] = {}
    squeeze: dict[str, list[int]] = {}
    for name, table in given.items():
        nodes[name], squeeze[name] = _unbroadcast(view, table, axis, len(shape), tail)
    return Tables(nodes, axis, squeeze, _facts(view, nodes, squeeze, tail + (axis == FOLDED)))


def emit_tables(site: Site[RopeDetails], builder: Builder) -> list[Node]:
    """The tables of a rope site as [S, W] or [B, S, W].

    A complex table becomes its real and imaginary parts. Matrices [[a, b], [c, d]] become the rows (a, d) and (-b, c): the op
    multiplies the pair (first, second) by the former and (-second, first) by the latter.
    """
    details = site.extra
    tables: list[Node] = []
    for name in ("cos", "sin"):
        table = site.operands[name]
        for excess in details.squeeze[name]:
            table = builder.call("squeeze", table, excess)
        tables.append(table)
    if details.tables == "complex":
        real = builder.call(torch.view_as_real, builder.call(torch.resolve_conj, tables[0]))
        tables = [builder.call("select", real, -1, part) for part in (0, 1)]
    if details.tables == "matrix":
        tables = _from_matrices(builder, tables[0])
    if details.axis == FOLDED:
        tables = [builder.call("flatten", table, -3, -2) for table in tables]
    return tables


def _from_matrices(builder: Builder, matrices: Node) -> list[Node]:
    rows = [builder.call("select", matrices, -2, i) for i in (0, 1)]
    (a, b), (c, d) = ([builder.call("select", row, -1, j) for j in (0, 1)] for row in rows)
    pairs = ((a, d), (builder.call(torch.neg, b), c))
    return [builder.call("flatten", builder.call(torch.stack, list(pair), -1), -2) for pair in pairs]


def _position_axis(shape: Shape, table: Shape, tail: int) -> int | None:
    """The axis of x along which a table that broadcasts to it changes: exactly one besides the batch, or None."""
    lead, width = table[:-tail], table[-1] if tail == 1 else table[-tail]
    lead = (*[1] * (len(shape) - 1 - len(lead)), *lead)
    if len(lead) != len(shape) - 1:
        return None
    channels = shape[-1]
    per_pair = isinstance(channels, int) and same_dim(width, channels // 2)
    if not per_pair and (tail > 1 or not same_dim(width, channels)):
        return None
    varies = [a for a in range(1, len(lead)) if not same_dim(lead[a], 1)]
    if not (same_dim(lead[0], 1) or same_dim(lead[0], shape[0])) or not all(
        same_dim(lead[a], shape[a]) for a in varies
    ):
        return None
    if len(varies) == 2:  # rows for each head: heads fold into positions, which takes sizes that are numbers
        return FOLDED if all(isinstance(n, int) for n in shape[1:3]) else None
    if varies:
        return varies[0]
    # No axis of the table varies: an axis of x with a single position has its single row.
    single = [a for a in range(1, len(lead)) if same_dim(shape[a], 1)]
    if single:
        return single[0]
    return 0 if len(shape) == 3 and not same_dim(lead[0], 1) else None


def _excess(table: Shape, axis: int, rank: int, tail: int) -> list[int]:
    """Axes of size 1, last first, to squeeze from a table to leave [S, W] or [B, S, W]."""
    missing = rank - 1 - (len(table) - tail)
    kept = {1, 2} if axis == FOLDED else {axis}
    return [a for a in range(len(table) - tail - 1, -1, -1) if a + missing not in kept and same_dim(table[a], 1)]


def _unbroadcast(view: GraphView, table: Node, axis: int, rank: int, tail: int) -> tuple[Node, list[int]]:
    """The table above the views that only added axes of size 1; else the table itself and the axes to squeeze.

    A value above the views is the same for all sites, so all calls read one table instead of a view each.
    """
    shape = list(view.shape(table) or ())
    excess = _excess(tuple(shape), axis, rank, tail)
    for dim in excess:
        del shape[dim]
    for source, chain_steps in view.chain(table):
        if not all(isinstance(s, st.Reshape) or (isinstance(s, st.Cast) and s.lossless) for s in chain_steps):
            break
        if same_shape(view.shape(source) or (), shape):
            bare = view.strip(source)
            return (bare if same_shape(view.shape(bare) or (), shape) else source), []
    return table, excess


def _facts(
    view: GraphView, tables: Mapping[str, Node], squeeze: Mapping[str, list[int]], tail: int
) -> dict[str, int | float | str | None]:
    """The widest dtype of the tables, and how many batches they have rows for."""
    dtype = torch.float16
    batch: int | str = 1
    for name, table in tables.items():
        kind, shape = view.dtype(table) or torch.float32, view.shape(table) or ()
        dtype = torch.promote_types(dtype, kind.to_real())
        if len(shape) - tail - len(squeeze[name]) == 2:
            batch = size_of(shape[0]) if batch == 1 else batch
    return {"table_dtype": str(dtype).removeprefix("torch."), "table_batch": batch}
