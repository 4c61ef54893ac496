"""Rotary position embedding, in the forms in which models spell it.

    direct      x * cos + join(-second(x), first(x)) * sin                 tables of one value an element
    pairwise    join(first*cos - second*sin, second*cos + first*sin)       tables of one value a pair
    complex     view_as_real(view_as_complex(x) * freqs)                   one complex number a pair
    matrix      a sum of products with 2x2 matrices                        one matrix a pair
    written     the halves of a pairwise one, written into an empty tensor
    probed      any other region that computes the same on random inputs, see `probed_rotations`

`first` and `second` are the members of each pair: neighbours (`interleaved`) or half a head apart (`rotate_half`). Casts may lie
in between, sums and products may be in either order, and any views may pick or rejoin the halves.

    before                                                    after
    pairs = x.reshape(B, S, H, -1, 2); a, b = pairs.unbind(-1)
    turned = torch.stack([-b, a], -1).flatten(3)              fluxrewrite.rope(x, cos, sin, True, 1, None)
    (x.float() * cos + turned.float() * sin).to(x.dtype)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fluxrewrite.passes.near_misses import with_notes
from fluxrewrite.passes.rope.matrix_and_inplace import match_inplace_rotation, match_matrix_rotation
from fluxrewrite.passes.rope.pairs import flattened_pairs, split_source
from fluxrewrite.passes.rope.probed import Rotation, probed_rotations
from fluxrewrite.passes.rope.tables import FOLDED, RopeDetails, Tables, emit_tables, read_tables
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.shapes import Shape, same_shape, size_of
from fluxrewrite.pattern import Attempt, Join, Lanes, Op, Value, joined, match
from fluxrewrite.rewrite import Builder, Pass, blocked
from fluxrewrite.rewrite.checks import dense_as, odd_dtype
from fluxrewrite.rewrite.guards import only_checks
from fluxrewrite.site import Code, Finding, Miss, Site

__all__ = ["Rope"]

_BSHD_BHSD = (0, 2, 1, 3)
_JOINS = ("cat", "reshape", "permute", "transpose", "movedim")
"""What the last operation that joins two halves may be; for a stack, the views that flatten it."""
_STYLES = {"half": "rotate_half", "interleaved": "interleaved"}
_x, _cos, _sin = Value("x"), Value("cos"), Value("sin")
_first, _second = Lanes(_x, 0), Lanes(_x, 1)
DIRECT = Op("add", Op("mul", Join("style", Op("neg", _second), _first), _sin), Op("mul", _x, _cos))
PAIRWISE = Join(
    "style",
    Op("sub", Op("mul", _first, _cos), Op("mul", _second, _sin)),
    Op("add", Op("mul", _second, _cos), Op("mul", _first, _sin)),
)
COMPLEX = Op("view_as_real", Op("mul", Op("view_as_complex", Value("pairs")), Value("freqs")))
ROTATED = Join("style", Op("neg", _second), _first)


@dataclass(frozen=True)
class _FoundRotation:
    """A match with its x, its result below the last cast, and everything in between.

    The form is "direct", "pairwise", "inplace", "complex" or "matrix".
    """

    form: str
    attempt: Attempt
    x: Node
    out: Node
    interior: tuple[Node, ...]
    place: Node | None = None


class Rope(Pass):
    """Finds rotary embeddings and replaces each by one `fluxrewrite.rope` call."""

    kind = "rope"
    kernel = "rope"
    forms = ("interleaved", "rotate_half", "complex", "matrix", "probed")
    looks_for = (
        "x*cos + rotate(x)*sin with interleaved or half pairs, pairwise products, a complex product, 2x2 matrices, or what "
        "does the same to the query or key of an attention"
    )

    def find(self, view: GraphView) -> list[Finding]:
        """All rotations, found once per view."""
        return view.memo("rope_sites", self._find)

    def _find(self, view: GraphView) -> list[Finding]:
        """Every rotation, from its root: a sum (direct), a join (pairwise) or a complex product; a near miss is a Miss."""
        findings: list[Finding] = []
        used: set[Node] = set()
        failed: dict[Node, Attempt] = {}
        for node in view.nodes:
            for attempt, form in self._attempts(view, node):
                if attempt.matched:
                    findings.append(self._site(view, attempt, node, form))
                    used.update(attempt.nodes)
                    break
                # The attempt that got furthest names what is missing: shallower ones are of other forms.
                for seen in attempt.visited:
                    if seen not in failed or failed[seen].depth < attempt.depth:
                        failed[seen] = attempt
        findings += self._near_misses(view, used, failed) + self._untraced(view)
        probed, notes = probed_rotations(view, findings)
        more = [self._probed(view, p) if isinstance(p, Rotation) else p for p in probed]
        taken = {n.name for s in more if isinstance(s, Site) for n in (*s.interior, *s.outputs)}
        kept = [f for f in findings if not (isinstance(f, Miss) and f.reason.node in taken)]
        return with_notes(kept, notes) + more

    def _probed(self, view: GraphView, found: Rotation) -> Finding:
        """The site of a rotation found by what it computes; only a proof confirms that it is one."""
        x, out, tables = found.x, found.out, found.tables
        path = view.path(out)
        problem = blocked(self, view, path, found.interior, [out], [x, tables.cos, tables.sin])
        if problem is not None:
            return problem
        dtype, out_dtype = view.dtype(x), view.dtype(out)
        odd = odd_dtype(view, found.interior, {dtype, out_dtype, view.dtype(tables.cos), view.dtype(tables.sin)})
        if odd is not None:
            message = f"{odd.name} computes in {view.dtype(odd)}, the kernel in float32"
            return self.miss(Code.PRECISION, message, path, odd)
        read = Tables({"cos": tables.cos, "sin": tables.sin}, tables.axis, tables.squeeze, tables.facts)
        return self._make_site(view, path, found, read, form="probed", kind=tables.kind, interleaved=found.interleaved)

    def _make_site(
        self,
        view: GraphView,
        path: str,
        found: Rotation | _FoundRotation,
        tables: Tables,
        *,
        form: str,
        kind: str,
        interleaved: bool,
    ) -> Site[RopeDetails]:
        """The site of a rotation that passed all checks; `kind` is that of its tables."""
        shape, axis = view.shape(found.x) or (), tables.axis
        dtype, out_dtype = view.dtype(found.x), view.dtype(found.out)
        return Site(
            kind=self.kind,
            form=form,
            path=path,
            operands={"x": found.x, **tables.nodes},
            outputs=(found.out,),
            interior=found.interior,
            shapes={k: size_of(v) for k, v in _sizes(shape, axis).items()},
            dtype=dtype or torch.float32,
            facts=tables.facts,
            extra=RopeDetails(
                axis=axis,
                # Views below were traced on these strides: the call writes [B, S, H, D] where the result has that in memory.
                turned=len(shape) == 4 and axis != FOLDED and dense_as(view, found.out, _BSHD_BHSD),
                folded=tuple(shape[1:3]),
                out_dtype=None if out_dtype == dtype else out_dtype,
                squeeze=tables.squeeze,
                tables=kind,
                interleaved=interleaved,
            ),
            place=found.place if isinstance(found, _FoundRotation) else None,
            needs_proof=isinstance(found, Rotation),
        )

    def _untraced(self, view: GraphView) -> list[Finding]:
        """Without shapes no rotation is recognised: a Miss that says so, rather than no finding at all."""
        bare = next((n for n in view.with_op("cat", "stack", "view_as_complex") if view.value(n) is None), None)
        if bare is None:
            return []
        return [self.miss(Code.NO_SHAPE, f"{bare.name} has no traced shape", view.path(bare), bare)]

    def _attempts(self, view: GraphView, node: Node) -> Sequence[tuple[Attempt, str]]:
        op = view.op(node)
        if op in ("add", "sum"):
            matrix = match_matrix_rotation(view, node)
            if matrix is not None:
                return [(matrix, "matrix")]
            return [(match(DIRECT, view, node), "direct")]
        if op == "setitem":
            found = match_inplace_rotation(view, node, PAIRWISE)
            return [(found[0], "inplace")] if found is not None else []
        if op == "view_as_real":
            return [(match(COMPLEX, view, node), "complex")]
        if op in _JOINS and view.strip(node, lossy=True) is node and (halves := joined(view, node)) is not None:
            first = view.strip(halves[2][0], lossy=True)
            return [(match(PAIRWISE, view, node), "pairwise")] if view.op(first) == "sub" else []
        return []

    def _near_misses(self, view: GraphView, used: set[Node], failed: dict[Node, Attempt]) -> list[Finding]:
        """Rotated pairs, or complex products, that no full match used."""
        misses: list[Finding] = []
        for node in view.nodes:
            if (
                node in used
                or view.op(node) not in (*_JOINS, "view_as_complex")
                or view.strip(node, lossy=True) is not node
            ):
                continue
            if view.op(node) != "view_as_complex" and not match(ROTATED, view, node).matched:
                continue
            attempt = failed.get(node)
            if attempt is None:
                message = f"pairs are rotated here, then go to {_next_operations(view, node)}; expected mul, then add"
                misses.append(self.miss(Code.PATTERN, message, view.path(node), node))
            else:
                at = attempt.failed_at or node
                misses.append(self.miss(Code.PATTERN, f"{at.name}: {attempt.failure}", view.path(node), at))
        return misses

    def _site(self, view: GraphView, attempt: Attempt, root: Node, form: str) -> Finding:
        found = self._complex(view, attempt, root) if form == "complex" else self._real(view, attempt, root, form)
        if isinstance(found, Miss):
            return found
        path = view.path(found.out)
        names = {"cos": "freqs", "sin": "freqs"} if form == "complex" else {"cos": "cos", "sin": "sin"}
        given = {name: attempt.captures[captured] for name, captured in names.items()}
        tables = read_tables(view, found.x, given, 3 if form == "matrix" else 1)
        if not isinstance(tables, Tables):
            return self.miss(tables.code, tables.message, path, tables.node)
        operands = tables.nodes
        problem = blocked(
            self, view, path, found.interior, [found.out], [found.x, *operands.values()], place=found.place
        )
        if problem is not None:
            return problem
        dtype, out_dtype = view.dtype(found.x), view.dtype(found.out)
        # float64 only in between is a precision that the kernel would lose. Where x or a table is float64, limits on dtypes decide.
        wide = {torch.float64, torch.complex128}
        allowed = {
            dtype,
            out_dtype,
            *(wide if wide & {dtype, *(view.dtype(operands[n]) for n in ("cos", "sin"))} else ()),
        }
        odd = odd_dtype(view, (root, *found.interior), allowed)
        if odd is not None:
            message = f"{odd.name} computes in {view.dtype(odd)}, the kernel in float32"
            return self.miss(Code.PRECISION, message, path, odd)
        style = attempt.tags["style"]
        plain = form not in ("complex", "matrix")
        form, kind = (_STYLES[style], "real") if plain else (form, form)
        return self._make_site(view, path, found, tables, form=form, kind=kind, interleaved=style != "half")

    def _real(self, view: GraphView, attempt: Attempt, root: Node, form: str) -> _FoundRotation | Miss:
        place = root if form == "inplace" else None
        if form == "matrix":
            root = attempt.captures["flat"]
        if place is not None:
            root = root.args[0]  # type: ignore[assignment]
        # The call goes in front of the last write, where both halves are known, though the tensor is allocated earlier.
        x, out, casts = attempt.captures["x"], *_last_cast(view, root)
        interior = tuple(n for n in dict.fromkeys([*attempt.nodes, root, *casts]) if n is not out)
        if not same_shape(view.shape(x) or (), view.shape(out) or ()):
            message = f"the result is {view.shape(out)}, x is {view.shape(x)}: the tables broadcast x"
            return self.miss(Code.TABLE, message, view.path(root), root)
        return _FoundRotation(form, attempt, x, out, interior=interior, place=place)

    def _complex(self, view: GraphView, attempt: Attempt, root: Node) -> _FoundRotation | Miss:
        """Pairs must be x with its last axis split into (D/2, 2), and be flattened back at the end."""
        pairs, path = attempt.captures["pairs"], view.path(root)
        shape = view.shape(pairs) or ()
        axis = (*shape[:-2], shape[-2] * 2) if len(shape) > 1 else ()
        x, flat = split_source(view, pairs, axis), flattened_pairs(view, root, axis)
        if x is None or flat is None:
            message = f"complex pairs {shape} are not split from one axis and flattened back to it"
            return self.miss(Code.PATTERN, message, path, root)
        if not (view.dtype(attempt.captures["freqs"]) or torch.float32).is_complex:
            return self.miss(Code.TABLE, "complex pairs are multiplied by a real tensor", path, root)
        out, casts = _last_cast(view, flat[-1])
        nodes = [*attempt.nodes, *view.between(pairs, x), root, *flat, *casts]
        attempt.tags["style"] = "interleaved"
        return _FoundRotation(
            "complex", attempt, x, out, tuple(n for n in dict.fromkeys(nodes) if n is not out and n is not x)
        )

    def emit(self, site: Site[RopeDetails], builder: Builder, op: Callable[..., Any]) -> Sequence[Node]:
        """One call; tables without their broadcast axes, a complex table as its two parts.

        For tables with rows for each head, the call has heads and positions as one axis. A result that is [B, H, S, D] in shape
        but [B, S, H, D] in memory keeps both.
        """
        tables = emit_tables(site, builder)
        details, x = site.extra, site.operands["x"]
        interleaved, axis, out_dtype = details.interleaved, details.axis, details.out_dtype
        if axis == FOLDED:
            out = builder.call(op, builder.call("flatten", x, 1, 2), *tables, interleaved, 1, out_dtype)
            return [builder.call("unflatten", out, 1, details.folded)]
        if axis == 0:
            out = builder.call(op, builder.call("unsqueeze", x, 0), *tables, interleaved, 1, out_dtype)
            return [builder.call("squeeze", out, 0)]
        if not details.turned:
            return [builder.call(op, x, *tables, interleaved, axis, out_dtype)]
        out = builder.call(op, builder.call("permute", x, *_BSHD_BHSD), *tables, interleaved, 3 - axis, out_dtype)
        return [builder.call("permute", out, *_BSHD_BHSD)]


def _sizes(shape: Shape, axis: int) -> dict[str, Any]:
    """Sizes of the call that replaces a rotation of x [shape] with positions on `axis`."""
    batch, heads, positions = shape[0], 1, shape[axis]
    if axis == 0:
        batch, heads = 1, shape[1]
    elif axis == FOLDED:
        positions = shape[1] * shape[2]
    elif len(shape) == 4:
        heads = shape[3 - axis]
    return {"batch": batch, "sequence": positions, "heads": heads, "head_size": shape[-1]}


def _next_operations(view: GraphView, node: Node) -> str:
    """The next two operations that `node` goes through, for messages."""
    ops: list[str] = []
    while node.users and len(ops) < 2:
        node = next(iter(node.users))
        ops += [] if view.source(node) is not None else [view.op(node)]
    return ", then ".join(ops) or "nothing"


def _last_cast(view: GraphView, root: Node) -> tuple[Node, list[Node]]:
    """Down from `root` while its only use is a cast or a view that changes nothing: the last one, and those before it.

    Casts and views at the end that change nothing are left out: passes that read them look through them to the value above
    (`GraphView.bare`), which then must not be inside the region.
    """
    passed: list[Node] = []
    node = root
    while len(uses := [u for u in node.users if not only_checks(u)]) == 1:
        (user,) = uses
        if view.strip(user, lossy=True) is not view.strip(node, lossy=True):
            break
        passed.append(node)
        rounds = view.strip(user) is not view.strip(node)
        node = user
        if rounds:  # a cast further on would start from the rounded value
            break
    last = view.bare(node)
    return (last, passed[: passed.index(last)]) if last in passed else (node, passed)
