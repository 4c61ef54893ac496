"""Query, key and value projections of one activation.

Roles come from the data flow: from the query, key and value of each attention up through norms, RoPE, concatenations, views
and casts to the linear layers. Names, argument order and sizes do not count.

    triple    three linear layers on one input
    packed    one linear layer whose rows are query, key, value and perhaps more (`to_qkv`, `to_qkv_mlp_proj`)
    mixed     two linear layers on one input, one of them packed (a query layer and a key+value layer)
    pair      two of the three on one input, in one linear layer or two: key and value of a cross-attention

    before                                                    after
    q, k, v = to_q(x), to_k(x), to_v(x)                       q, k, v = fluxrewrite.qkv(x, [wq, wk, wv], [bq, bk, bv],
                                                                                        [0, 0, I,  1, 0, I,  2, 0, I])

    qkv, mlp = to_qkv_mlp(x).split([3 * I, M], -1)            q, k, v, mlp = fluxrewrite.qkv(x, [w], [b],
    q, k, v = qkv.chunk(3, -1)                                    [0, 0, I,  0, I, I,  0, 2 * I, I,  0, 3 * I, M])

Weights are passed whole: a compiler that goes through HLO, which has no strided views, copies a slice at every call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from fluxrewrite.passes.attention.attention import attention_calls
from fluxrewrite.passes.attention.call import AttentionCall
from fluxrewrite.passes.qkv.packed_rows import PackedRows, Refusal, emit_views, parts_of
from fluxrewrite.passes.qkv.trace import ROLES, WALK_LIMIT, Reach, walk
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.shapes import same_shape, size_of
from fluxrewrite.rewrite import Builder, Pass, blocked
from fluxrewrite.rewrite.kernel_calls import is_kernel_call
from fluxrewrite.site import Code, Finding, Inline, Miss, Site

__all__ = ["Qkv", "QkvDetails"]


@dataclass(frozen=True)
class QkvDetails:
    """`Site.extra` of a group of projections.

    Attributes:
        parts: the values that the call replaces, in graph order.
        roles: a part for each of "query", "key" and "value" in the group.
    """

    parts: tuple[PackedRows, ...]
    roles: Mapping[str, PackedRows]


class Qkv(Pass):
    """Finds groups of projections and replaces each by one `fluxrewrite.qkv` call."""

    kind = "qkv"
    kernel = "qkv"
    forms = ("triple", "packed", "mixed", "pair")
    looks_for = "linear layers on one input that feed the query, key and value of one attention, or two of them"

    def find(self, view: GraphView) -> list[Finding]:
        """For each attention, one site for every input whose projections it uses; a group is reported once."""
        findings: list[Finding] = []
        seen: list[set[Node]] = []
        claimed: set[Node] = set()
        for call in attention_calls(view):
            if isinstance(call, Miss):
                message = f"its attention has no known form: {call.reason.message}"
                findings.append(Miss(self.kind, call.path, replace(call.reason, message=message)))
                continue
            operands = zip(ROLES, (call.query, call.key, call.value), strict=True)
            reaches = {role: walk(view, node) for role, node in operands}
            problem = self._unreached(view, reaches, view.path(call.node))
            if problem is not None:
                findings.append(problem)
                continue
            groups = _groups(view, reaches)
            if groups and all(len(by_role) == 1 for by_role in groups.values()):
                findings.append(self._different_inputs(view, groups, view.path(call.node)))
            for x, by_role in groups.items():
                key = {n for nodes in by_role.values() for n in nodes}
                # A single projection is no group, nor is part of a group seen before: a key and value that two attentions read.
                if len(by_role) == 1 or any(key <= other for other in seen):
                    continue
                seen.append(key)
                found = self._group(view, call, x, by_role, reaches)
                if isinstance(found, Site) and claimed & key:
                    message = "a projection of this group belongs to another site already"
                    found = self.miss(Code.SHARED_ROWS, message, found.path, min(key, key=view.order))
                claimed.update(key if isinstance(found, Site) else ())
                findings.append(found)
        return findings

    def _unreached(self, view: GraphView, reaches: Mapping[str, Reach], path: str) -> Miss | None:
        for role, reach in reaches.items():
            at = reach.stopped
            if reach.exhausted:
                message = f"the {role} passes more than {WALK_LIMIT} nodes without meeting its projection"
                return self.miss(Code.SEARCH_LIMIT, message, path, at)
            if reach.linears or at is None:
                continue
            bare = next((n for n in (at, *at.all_input_nodes) if view.value(n) is None), None)
            if bare is not None:
                return self.miss(
                    Code.NO_SHAPE, f"{bare.name}, where the {role} comes from, has no traced shape", path, bare
                )
            if is_kernel_call(view, at):
                return self.miss(Code.REWRITTEN, f"the {role} already comes from {view.op(at)}", path, at)
            return self.miss(
                Code.NO_PROJECTION,
                f"the {role} comes from {view.op(at)} ({at.name}), not from a linear layer",
                path,
                at,
            )
        return None

    def _group(
        self,
        view: GraphView,
        call: AttentionCall,
        x: Node,
        by_role: Mapping[str, list[Node]],
        reaches: Mapping[str, Reach],
    ) -> Finding:
        linears = sorted({n for nodes in by_role.values() for n in nodes}, key=view.order)
        path = view.path(*linears, call.node)
        parts: list[PackedRows] = []
        for linear in linears:
            found = parts_of(view, linear, reaches)
            if isinstance(found, Refusal):
                return self.miss(found.code, found.message, path, found.node)
            parts.extend(found)
        roles = [role for role in ROLES if role in by_role]
        problem = self._one_block_each(parts, roles, linears, path)
        return problem if problem is not None else self._site(view, x, linears, parts, names=roles, path=path)

    def _different_inputs(
        self, view: GraphView, groups: Mapping[Node, Mapping[str, Sequence[Node]]], path: str
    ) -> Miss:
        read = ", ".join(f"{x.name} to {role}" for x, by_role in groups.items() for role in by_role)
        at = next(iter(next(iter(groups.values())).values()))[0]
        return self.miss(Code.DIFFERENT_INPUTS, f"each is projected from another tensor: {read}", path, at)

    def _one_block_each(
        self, parts: Sequence[PackedRows], roles: Sequence[str], linears: Sequence[Node], path: str
    ) -> Miss | None:
        """A Miss unless each role is one block of rows, and no two roles are the same block."""
        owners: dict[tuple[Node, tuple[int, int]], str] = {}
        for role in roles:
            blocks = {(p.linear, p.rows): None for p in parts if p.role == role}
            shown = ", ".join(f"{linear.name}[{rows[0]}:{sum(rows)}]" for linear, rows in blocks) or "nothing"
            if len(blocks) != 1:
                message = f"the {role} is made of {shown}, expected one block of rows"
                return self.miss(Code.PACKED_LAYOUT, message, path, linears[0])
            other = owners.setdefault(next(iter(blocks)), role)
            if other != role:
                return self.miss(Code.SHARED_ROWS, f"{shown} is both the {other} and the {role}", path, linears[0])
        return None

    def _site(
        self,
        view: GraphView,
        x: Node,
        linears: Sequence[Node],
        parts: Sequence[PackedRows],
        *,
        names: Sequence[str],
        path: str,
    ) -> Finding:
        roles = {role: next(p for p in parts if p.role == role) for role in names}
        form = {1: "packed", 2: "mixed", 3: "triple"}[len(linears)] if len(roles) == len(ROLES) else "pair"
        parts = sorted(parts, key=lambda p: view.order(p.node))
        outputs = tuple(p.node for p in parts)
        interior = _between(view, linears, outputs)
        operands = [x, *(view.arg(n, name) for n in linears for name in ("weight", "bias"))]
        place = _insertion_point(view, operands, linears, outputs)
        problem = self._dtypes(view, linears, operands, path) or blocked(
            self, view, path, interior, outputs, operands, place=place or linears[0]
        )
        if problem is not None:
            return problem
        if place is None:
            return self.miss(
                Code.ORDER, "a weight or bias is computed after a projection's result is used", path, linears[0]
            )
        return Site(
            kind=self.kind,
            form=form,
            path=path,
            operands={"x": x},
            outputs=outputs,
            interior=interior,
            shapes=_sizes(view, x, parts, roles),
            dtype=view.dtype(x) or torch.float32,
            extra=QkvDetails(tuple(parts), roles),
            place=place,
            notes={"projections": [_name(view, n, path) for n in linears]},
        )

    def _dtypes(self, view: GraphView, linears: Sequence[Node], operands: Iterable[Any], path: str) -> Miss | None:
        dtypes = {view.dtype(t) for t in (*linears, *operands) if isinstance(t, Node)}
        if len(dtypes) > 1:
            names = ", ".join(sorted(str(d) for d in dtypes))
            return self.miss(Code.MIXED_DTYPE, f"input, weights and results are of {names}", path, linears[0])
        for linear in linears:
            weight, bias = view.shape(view.arg(linear, "weight")) or (), view.shape(view.arg(linear, "bias"))
            if len(weight) != 2 or (bias is not None and not same_shape(bias, weight[:1])):
                message = f"weight {weight} with bias {bias}, expected [I, H] with [I] or none"
                return self.miss(Code.AXES, message, path, linear)
        return None

    def emit(self, site: Site[QkvDetails], builder: Builder, op: Callable[..., Any]) -> Sequence[Node]:
        """The call on whole weights, with a result for each role and each block of other rows, and the views of the old values.

        Rows of no role are results too: a layer for them would read a slice of the weight, which some compilers copy.
        """
        blocks, linears = _blocks(site)
        numbers = {linear: i for i, linear in enumerate(linears)}
        results = builder.call(
            op,
            site.operands["x"],
            [part.weight for part in linears.values()],
            [part.bias for part in linears.values()],
            [n for part in blocks.values() for n in (numbers[part.linear], *part.rows)],
        )
        made = {block: builder.call(operator.getitem, results, i) for i, block in enumerate(blocks)}
        return [emit_views(builder, made[_block(part)], part) for part in site.extra.parts]

    def inline(self, view: GraphView, site: Site[QkvDetails]) -> Inline | None:
        """Several layers become one on joined weights, of whose rows the results are views."""
        _, linears = _blocks(site)
        weights = tuple(p.weight for p in linears.values())
        biases = tuple(p.bias for p in linears.values() if p.bias is not None)
        starts = _starts(list(linears.values()))
        unlike = len(biases) not in (0, len(weights)) or len({*weights, *biases}) < len(weights) + len(biases)
        if len(linears) < 2 or unlike or starts is None:
            return None
        parts: Sequence[PackedRows] = site.extra.parts
        lanes = tuple(replace(p.lanes, offset=p.lanes.offset + starts[p.linear]) for p in parts)
        return Inline((weights, biases) if biases else (weights,), starts[None], lanes)

    def emit_inline(self, site: Site[QkvDetails], builder: Builder) -> Sequence[Node]:
        """One linear layer, the rows of each result, and the views of the old values."""
        blocks, linears = _blocks(site)
        parts = list(linears.values())
        bias = builder.joined([p.bias for p in parts if p.bias is not None]) if parts[0].bias is not None else None
        y = builder.call(F.linear, site.operands["x"], builder.joined([p.weight for p in parts]), bias)
        starts = _starts(parts) or {}
        made = {
            block: builder.call("narrow", y, -1, starts[part.linear] + part.rows[0], part.rows[1])
            for block, part in blocks.items()
        }
        return [emit_views(builder, made[_block(part)], part) for part in site.extra.parts]


def _starts(parts: Sequence[PackedRows]) -> dict[Node | None, int] | None:
    """First row of each layer in the joined weight, and under None the number of all rows; None for symbolic sizes."""
    starts: dict[Node | None, int] = {}
    rows = 0
    for part in parts:
        starts[part.linear] = rows
        if not isinstance(part.height, int):
            return None
        rows += part.height
    return {**starts, None: rows}


def _blocks(site: Site[QkvDetails]) -> tuple[dict[Any, PackedRows], dict[Node, PackedRows]]:
    """A part for each result of the call and one for each linear layer, in the order of the op's results and weights."""
    blocks: dict[Any, PackedRows] = dict(site.extra.roles)
    for part in site.extra.parts:
        blocks.setdefault(_block(part), part)
    return blocks, {part.linear: part for part in blocks.values()}


def _block(part: PackedRows) -> Any:
    """The key of a result of the call: its role, or the rows and their layer."""
    return (part.linear, part.rows) if part.role == "rest" else part.role


def _groups(view: GraphView, reaches: Mapping[str, Reach]) -> dict[Node, dict[str, list[Node]]]:
    """Linear layers by the value they read, then by role: siblings."""
    groups: dict[Node, dict[str, list[Node]]] = {}
    for role, reach in reaches.items():
        for linear in reach.linears:
            x = view.bare(view.arg(linear, "input"))
            groups.setdefault(x, {}).setdefault(role, []).append(linear)
    return groups


def _sizes(
    view: GraphView, x: Node, parts: Sequence[PackedRows], roles: Mapping[str, PackedRows]
) -> dict[str, int | str]:
    """Sizes of a site by name: those of the input [B, S, H] or [S, H], the rows of each role, and the rows of no role."""
    shape, weight = view.shape(x) or (), view.shape(parts[0].weight) or ()
    tokens = dict(zip(("batch", "sequence"), shape, strict=False)) if len(shape) == 3 else {"sequence": shape[0]}
    sizes = {**tokens, "hidden": weight[-1], **{role: part.rows[1] for role, part in roles.items()}}
    sizes["columns"] = sum(part.rows[1] for part in roles.values())
    rest = sum(p.rows[1] for p in {(p.linear, p.rows): p for p in parts if p.role == "rest"}.values())
    return {k: size_of(v) for k, v in ({**sizes, "rest": rest} if rest else sizes).items()}


def _between(view: GraphView, linears: Sequence[Node], outputs: Sequence[Node]) -> tuple[Node, ...]:
    """Everything from the linear layers down to the outputs, without the outputs."""
    inside: list[Node] = []
    pending = list(linears)
    ends = set(outputs)
    while pending:
        node = pending.pop()
        if node not in ends:
            inside.append(node)
            pending.extend(node.users)
    return tuple(dict.fromkeys(inside))


def _insertion_point(
    view: GraphView, operands: Iterable[Any], linears: Sequence[Node], outputs: Sequence[Node]
) -> Node | None:
    """The first node of the group, or the first after its last operand if no result is used before that; else None."""
    last = max((view.order(o) for o in operands if isinstance(o, Node)), default=-1)
    first = min(view.order(n) for n in linears)
    if last < first:
        return view.nodes[first]
    earliest_use = min((view.order(u) for n in outputs for u in n.users), default=len(view.nodes) - 1)
    return view.nodes[last + 1] if last < earliest_use else None


def _name(view: GraphView, linear: Node, path: str) -> str:
    return view.path(linear).removeprefix(path).strip(".")
