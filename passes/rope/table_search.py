"""Which values of a graph hold the factors of a rotation in a form that the op takes.

Not a pass: the search for rotations uses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from fluxrewrite.passes.numeric import close
from fluxrewrite.passes.rope.rotation_test import Factors
from torch import Tensor
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph import views as st
from fluxrewrite.graph.shapes import Shape, same_dim, same_shape, size_of
from fluxrewrite.rewrite.proof.probe import Probe

__all__ = ["NamedTables", "tables_of"]


@dataclass(frozen=True)
class NamedTables:
    """Tables of a rotation, as values of the graph.

    Attributes:
        cos, sin: one real table each, or one complex table or table of matrices twice.
        kind: "real", "complex" or "matrix"; `tables.emit_tables` makes real ones of them.
        axis: of x, that holds the positions.
        squeeze: for "cos" and "sin", axes of size 1 to squeeze from each, last first, to leave [S, W] or [B, S, W].
        facts: the facts that limits refer to: the widest dtype, and for how many batches there are rows.
    """

    cos: Node
    sin: Node
    kind: str
    axis: int
    squeeze: Mapping[str, list[int]]
    facts: Mapping[str, int | float | str | None]

    def at(self, view: GraphView, cos: Node, sin: Node) -> NamedTables:
        """The same tables for a region that is alike: values above views that only add axes, so that sites share them."""
        dtype = torch.float16
        nodes, squeeze = [], dict[str, list[int]]()
        for name, table in (("cos", cos), ("sin", sin)):
            node, squeeze[name] = _unbroadcast(view, table, self.squeeze[name])
            nodes.append(node)
            dtype = torch.promote_types(dtype, (view.dtype(node) or torch.float32).to_real())
        facts = {**self.facts, "table_dtype": str(dtype).removeprefix("torch.")}
        return replace(self, cos=nodes[0], sin=nodes[1], squeeze=squeeze, facts=facts)


def tables_of(view: GraphView, probe: Probe, nodes: Sequence[Node], factors: Factors) -> NamedTables | str:
    """The tables among `nodes`, those nearest to the rotation; else a text on what is missing.

    Args:
        view: the graph.
        probe: has the values of `nodes`.
        nodes: candidates for the tables.
        factors: of the rotation.
    """
    positions = _positions(factors)
    if isinstance(positions, str):
        return positions
    axis, batched = positions
    cos, sin = (_rows(t, axis, batched) for t in (factors.cos, factors.sin))
    seen = dict[str, Node]()
    for node in sorted(nodes, key=view.order, reverse=True):
        value = probe.values.get(node)
        if not isinstance(value, Tensor):
            continue
        for kind, parts in _as_tables(value):
            for name, found, wanted in (("cos", parts[0], cos), ("sin", parts[1], sin)):
                if (
                    f"{kind} {name}" not in seen
                    and found is not None
                    and _fits(found, wanted, factors.interleaved, kind)
                ):
                    seen[f"{kind} {name}"] = node
    # Real tables first: the op takes them as they are, the other kinds cost operations in front of the call.
    for kind in ("real", "complex", "matrix"):
        pair = [seen.get(f"{kind} {name}") for name in ("cos", "sin")]
        if pair[0] is None or pair[1] is None or (kind != "real" and pair[0] is not pair[1]):
            continue
        tail = {"real": 1, "complex": 1, "matrix": 3}[kind]
        lead = 2 if batched else 1
        squeeze = {name: _excess(view.shape(n) or (), tail, lead) for name, n in zip(("cos", "sin"), pair, strict=True)}
        batch = size_of((view.shape(pair[0]) or (1,))[0]) if batched else 1
        facts: dict[str, int | float | str | None] = {"table_batch": batch}
        return NamedTables(pair[0], pair[1], kind=kind, axis=axis, squeeze=squeeze, facts=facts)
    return _missing(factors, cos, sin, axis, seen)


def _positions(factors: Factors) -> tuple[int, bool] | str:
    """The axis of x along which the factors change, and whether they also change with the batch; else what is wrong."""
    rows = factors.cos.shape[:-1]
    varies = [a for a in range(len(rows)) if any(not close(t, t.narrow(a, 0, 1)) for t in (factors.cos, factors.sin))]
    front = [a for a in varies if a > 0]
    if len(front) == 1:
        return front[0], 0 in varies
    if varies == [0] and len(rows) == 2:
        return 0, False
    how = (
        "do not change with the position" if not front else f"change along the axes {varies}, so not by position alone"
    )
    return f"pairs are rotated, by factors that {how}"


def _rows(table: Tensor, axis: int, batched: bool) -> Tensor:
    """Factors of each element as [S, D] or [B, S, D]."""
    for a in range(table.dim() - 2, -1, -1):
        if a != axis and not (batched and a == 0):
            table = table.select(a, 0)
    return table


def _as_tables(value: Tensor) -> Iterator[tuple[str, tuple[Tensor | None, Tensor | None]]]:
    """The kinds of table that a value may be, with its cosines and sines as each.

    A real table may be either of the two, a complex one holds both, and so do matrices [[c0, -s0], [s1, c1]] of the pairs.
    """
    if value.is_complex():
        value = value.resolve_conj()
        yield "complex", (value.real, value.imag)
    elif value.is_floating_point():
        yield "real", (value, value)
        if value.dim() > 3 and tuple(value.shape[-2:]) == (2, 2):
            (a, b), (c, d) = (row.unbind(-1) for row in value.unbind(-2))
            yield "matrix", tuple(torch.stack(pair, -1).flatten(-2) for pair in ((a, d), (-b, c)))  # type: ignore[misc]


def _fits(found: Tensor, wanted: Tensor, interleaved: bool, kind: str) -> bool:
    """Whether a table of the graph, with axes of size 1 anywhere, has the values of `wanted` [S, D] or [B, S, D]."""
    size = wanted.shape[-1]
    if not found.dim() or found.shape[-1] not in (size, size // 2) or (kind == "matrix" and not interleaved):
        return False
    if kind == "complex" and found.shape[-1] == size:
        return False
    if [n for n in found.shape[:-1] if n > 1] != [n for n in wanted.shape[:-1] if n > 1]:
        return False
    rows = found.reshape(*wanted.shape[:-1], found.shape[-1])
    if rows.shape[-1] != size:
        rows = rows.repeat_interleave(2, -1) if interleaved else torch.cat((rows, rows), -1)
    return close(rows, wanted)


def _excess(shape: Shape, tail: int, lead: int) -> list[int]:
    """Axes of size 1 to squeeze, last first, to leave `lead` axes in front of the last `tail` ones."""
    front = range(len(shape) - tail)
    single = [a for a in reversed(front) if same_dim(shape[a], 1)]
    return single[: len(front) - lead]


def _unbroadcast(view: GraphView, table: Node, excess: Sequence[int]) -> tuple[Node, list[int]]:
    """The table above the views that only added axes of size 1; else the table itself and these axes."""
    shape = [n for a, n in enumerate(view.shape(table) or ()) if a not in excess]
    best: tuple[Node, list[int]] = (view.strip(table), list(excess))
    for source, taken in view.chain(table):
        if not all(isinstance(s, st.Reshape) or (isinstance(s, st.Cast) and s.lossless) for s in taken):
            break
        if same_shape(view.shape(source) or (), shape):
            best = (source, [])
    return best


def _missing(factors: Factors, cos: Tensor, sin: Tensor, axis: int, seen: Mapping[str, Node]) -> str:
    """A text on what the factors are, for factors that no value of the graph holds."""
    pairs = "neighbours" if factors.interleaved else "channels half a head apart"
    split = (lambda t: (t[..., 0::2], t[..., 1::2])) if factors.interleaved else (lambda t: t.chunk(2, -1))
    (c0, c1), (s0, s1) = split(cos), split(sin)
    if close(c0, c1) and close(s0, -s1):
        return f"{pairs} are mixed by [[c, s], [s, c]], which is not a rotation"
    if not close(c0, c1) or not close(s0, s1):
        return f"{pairs} are mixed by factors [[c, -s], [t, d]] with c != d or s != t, which are not a rotation"
    found = ", ".join(f"{name} is {node.name}" for name, node in seen.items())
    missing = " and ".join(n for n in ("cos", "sin") if f"real {n}" not in seen)
    return (
        f"{pairs} are rotated by position on axis {axis}, but no value in the graph is the table of {missing}"
        f"{f' ({found})' if found else ''}"
    )
