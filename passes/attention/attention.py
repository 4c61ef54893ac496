"""Attention: a call of scaled_dot_product_attention, or the same computation spelled out.

    scores = q @ k^T  [* scale | / scale]  [+ mask | masked_fill | where]        (also as one baddbmm)
    softmax(scores, -1)  [dropout that does nothing]  @ v                        3 axes (heads in the batch) or 4
    any other region that computes the same on random inputs                     see `probed_attention`

Permutes between [B, S, H, D] and [B, H, S, D] on either side become the call's layouts.

    before                                                            after
    q, k, v = (t.permute(0, 2, 1, 3) for t in (q, k, v))              fluxrewrite.attention(
    F.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3)           q, k, v, None, None, False, "bshd", "bshd")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fluxrewrite.passes.attention.call import BSHD_BHSD, AttentionCall, AttentionDetails, ProbedDetails
from fluxrewrite.passes.attention.layout import emit_probed, layouts_of, sizes_of
from fluxrewrite.passes.attention.probed import ProbedAttention, probed_attention
from fluxrewrite.passes.near_misses import with_notes
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.shapes import same_dim, same_shape, size_of
from fluxrewrite.pattern import Attempt, Const, Either, Maybe, Op, Value, match
from fluxrewrite.rewrite import Builder, Pass, blocked
from fluxrewrite.rewrite.checks import dense_as, odd_dtype
from fluxrewrite.rewrite.guards import only_checks
from fluxrewrite.rewrite.proof.probe import is_random
from fluxrewrite.site import Code, Finding, Miss, Site

__all__ = ["Attention", "attention_calls"]

# In float32 and bfloat16, score + fill rounds to fill for any fill at or below this: adding equals replacing.
_ABSORBING = torch.finfo(torch.bfloat16).min

_q, _k, _v = (Value(name, exact=True) for name in ("query", "key", "value"))
_product = Either(
    "product",
    plain=Op("matmul", _q, _k),
    added=Op("baddbmm", Value("base"), _q, _k, beta=Const("beta"), alpha=Const("alpha")),
)
_scaled = Either(
    "scaling", times=Op("mul", _product, Const("scale")), over=Op("div", _product, Const("scale")), none=_product
)
_masked = Either(
    "masking",
    additive=Op("add", _scaled, Value("mask", exact=True)),
    drop=Op("masked_fill", _scaled, mask=Value("mask", exact=True), value=Const("fill")),
    keep=Op("where", _scaled, condition=Value("mask", exact=True), other=Const("fill")),
    none=_scaled,
)
_probabilities = Maybe(
    "dropout",
    lambda softmax: Op("dropout", softmax, ignore=("p", "training", "inplace")),
    Op("softmax", _masked, dim=Const("axis"), ignore=("dtype", "_stacklevel", "half_to_float")),
)
SPELLED = Op("matmul", _probabilities, _v)


def attention_calls(view: GraphView) -> list[AttentionCall | Miss]:
    """All attention computations of a graph, and near misses; found once per view."""
    return view.memo("attention_calls", _find_calls)


def _find_calls(view: GraphView) -> list[AttentionCall | Miss]:
    calls: list[AttentionCall | Miss] = [_sdpa(view, node) for node in view.with_op("sdpa")]
    for node in view.with_op("matmul"):
        attempt = match(SPELLED, view, node)
        if attempt.matched:
            calls.append(_spelled(view, node, attempt))
        elif any(view.op(n) == "softmax" for n in attempt.visited):
            at = attempt.failed_at or node
            calls.append(_miss(view, Code.PATTERN, f"{at.name}: {attempt.failure}", node, "spelled"))
    return _with_probed(view, calls)


def _with_probed(view: GraphView, calls: Sequence[AttentionCall | Miss]) -> list[AttentionCall | Miss]:
    """The calls, and those found by what they compute, which are then not near misses of a known form."""
    taken = {n for c in calls if isinstance(c, AttentionCall) for n in c.interior}
    near = {c.reason.node: c.reason.code for c in calls if isinstance(c, Miss)}
    probed, notes = probed_attention(view, taken, near)
    more = [p if isinstance(p, Miss) else _probed_call(p) for p in probed]
    held = {n.name for c in more if isinstance(c, AttentionCall) for n in (*c.interior, c.node)}
    return [*with_notes([c for c in calls if isinstance(c, AttentionCall) or c.reason.node not in held], notes), *more]


def _probed_call(found: ProbedAttention) -> AttentionCall:
    causal = found.masking == "causal"
    return AttentionCall(
        found.out, "probed", found.query, found.key, found.value,
        interior=found.interior, masking="none" if causal else found.masking, mask=found.mask, fill=float("-inf"),
        scale=found.scale, is_causal=causal, probed=found,
    )  # fmt: skip


def _miss(view: GraphView, code: Code, message: str, node: Node, form: str) -> Miss:
    return Attention().miss(code, message, view.path(node), node, form)


def _sdpa(view: GraphView, node: Node) -> AttentionCall | Miss:
    query, key, value, mask = (view.arg(node, name) for name in ("query", "key", "value", "attn_mask"))
    if any(view.shape(t) is None for t in (node, query, key, value)):
        return _miss(view, Code.NO_SHAPE, "query, key, value or result has no traced shape", node, "sdpa")
    given = {name: view.arg(node, name) for name in ("dropout_p", "is_causal", "scale")}
    numbers = {name: view.number(value) for name, value in given.items()}
    if numbers["dropout_p"] != 0:
        return _miss(view, Code.DROPOUT, f"dropout_p is {given['dropout_p']}", node, "sdpa")
    is_causal, scale = numbers["is_causal"], numbers["scale"]
    if is_causal is None or (scale is None and given["scale"] is not None):
        message = f"is_causal={given['is_causal']} and scale={given['scale']} are not constants"
        return _miss(view, Code.PATTERN, message, node, "sdpa")
    masking = "none" if mask is None else "bool" if view.dtype(mask) == torch.bool else "additive"
    return AttentionCall(
        node, "sdpa", query, key, value, interior=(), masking=masking, mask=mask, scale=scale, is_causal=bool(is_causal)
    )


def _spelled(view: GraphView, node: Node, attempt: Attempt) -> AttentionCall | Miss:
    found, tags = attempt.captures, attempt.tags
    interior = tuple(n for n in dict.fromkeys(attempt.nodes) if n is not node)
    rank = len(view.shape(node) or ())

    def miss(code: Code, message: str, at: Node = node) -> Miss:
        return _miss(view, code, message, at, "spelled")

    if found["axis"] not in (-1, rank - 1):
        return miss(Code.PATTERN, f"softmax over axis {found['axis']}, expected the last of {rank}")
    active = next((n for n in interior if view.op(n) == "dropout" and is_random(view, n)), None)
    if active is not None:
        return miss(Code.DROPOUT, f"dropout of {view.arg(active, 'p')} while training", active)
    scale, masking, mask = found.get("scale", 1.0), tags["masking"], found.get("mask")
    if tags["scaling"] == "over":
        if scale == 0:
            return miss(Code.PATTERN, "scores divided by 0")
        scale = 1.0 / scale
    if tags["product"] == "added":
        scale *= found["alpha"]
        if found["beta"] != 0 and (found["beta"] != 1 or masking != "none" or tags["scaling"] != "none"):
            return miss(Code.PATTERN, f"baddbmm with beta={found['beta']} and another mask or scale")
        if found["beta"] == 1:
            masking, mask = "additive", found["base"]
    fill = found.get("fill", 0.0)
    # The op's bool mask is -inf, and its additive mask adds: a finite fill that scores could outweigh is neither.
    absorbs = fill <= _ABSORBING and view.dtype(node) in (torch.float32, torch.bfloat16)
    if masking in ("drop", "keep") and fill != float("-inf") and not absorbs:
        return miss(Code.MASK, f"masked scores become {fill}; the kernel takes -inf, or {_ABSORBING} and less")
    query, key, value = (found[name] for name in ("query", "key", "value"))
    return AttentionCall(
        node, "spelled", query, key, value,
        interior=interior, transposed=True, masking=masking, mask=mask, fill=fill, scale=float(scale),
    )  # fmt: skip


@dataclass(frozen=True)
class _Operands:
    """Query, key and value above the permutes that the call's layout replaces."""

    query: Node
    key: Node
    value: Node
    layout: str
    transposed: bool
    interior: tuple[Node, ...]


class Attention(Pass):
    """Finds attention and replaces each computation by one `fluxrewrite.attention` call."""

    kind = "attention"
    kernel = "attention"
    forms = ("sdpa", "spelled", "probed")
    looks_for = "scaled_dot_product_attention in any call form, matmul, softmax, matmul, or what does the same as these"

    def find(self, view: GraphView) -> list[Finding]:
        """One finding for each attention computation, found once per view."""
        return view.memo("attention_sites", self._find)

    def _find(self, view: GraphView) -> list[Finding]:
        return [c if isinstance(c, Miss) else self._site(view, c) for c in attention_calls(view)]

    def _site(self, view: GraphView, call: AttentionCall) -> Finding:
        path = view.path(call.node)
        if call.probed is not None:
            return self._probed(view, call, call.probed, path)
        problem = self._shapes(view, call, path) or self._dtypes(view, call, path)
        if problem is not None:
            return problem
        found = _without_permutes(view, call)
        out, out_layout, passed = _result(view, call)
        interior = tuple(
            n for n in dict.fromkeys([*found.interior, *call.interior, call.node, *passed]) if n is not out
        )
        operands = [found.query, found.key, found.value, call.mask]
        problem = blocked(self, view, path, interior, [out], operands)
        if problem is not None:
            return problem
        q = view.shape(call.query) or ()
        # Views below were traced on these strides: the call writes [B, S, H, D] where the traced result has that in memory.
        turned = out_layout == "bhsd" and len(q) == 4 and dense_as(view, out, BSHD_BHSD)
        return Site(
            kind=self.kind,
            form=call.form,
            path=path,
            operands={"q": found.query, "k": found.key, "v": found.value, "mask": call.mask},
            outputs=(out,),
            interior=interior,
            shapes=_sizes(q, view.shape(call.value) or ()),
            dtype=view.dtype(call.query) or torch.float32,
            facts=_facts(view, call),
            extra=AttentionDetails(
                call=call,
                layout=found.layout,
                out_layout="bshd" if turned else out_layout,
                turned=turned,
                transposed=found.transposed,
                rank=len(q),
                causal=call.is_causal,
            ),
        )

    def _probed(self, view: GraphView, call: AttentionCall, found: ProbedAttention, path: str) -> Finding:
        """The site of a computation found by what it does; only a proof confirms that it is attention."""
        operands, layout, out_layout = layouts_of(view, found)
        given = zip((found.query, found.key, found.value), operands.values(), strict=True)
        permutes = [n for node, end in given for n in view.between(node, end)]
        interior = tuple(dict.fromkeys((*permutes, *found.interior)))
        problem = self._dtypes(view, call, path) or blocked(
            self, view, path, interior, [call.node], [*operands.values(), call.mask]
        )
        if problem is not None:
            return problem
        sizes = sizes_of(view, found)
        return Site(
            kind=self.kind,
            form=call.form,
            path=path,
            operands={**operands, "mask": call.mask},
            outputs=(call.node,),
            interior=interior,
            shapes={k: size_of(v) for k, v in sizes.items()},
            dtype=view.dtype(call.query) or torch.float32,
            facts=_facts(view, call),
            extra=ProbedDetails(
                call=call,
                causal=call.is_causal,
                axes=found.axes,
                rank=len(found.axes["out"]),
                layout=layout,
                out_layout=out_layout,
            ),
            needs_proof=True,
        )

    def _shapes(self, view: GraphView, call: AttentionCall, path: str) -> Miss | None:
        q, k, v = (view.shape(t) or () for t in (call.query, call.key, call.value))
        if call.transposed:
            k = (*k[:-2], k[-1], k[-2])
        if {len(q), len(k), len(v)} not in ({3}, {4}):
            return self.miss(
                Code.AXES,
                f"query, key and value have {len(q)}, {len(k)}, {len(v)} axes; 3 or 4 expected",
                path,
                call.node,
            )
        heads, kv_heads = q[-3], k[-3]
        grouped = view.arg(call.node, "enable_gqa") is True
        agree = same_shape(k[:-1], v[:-1]) and same_shape(q[:-3], k[:-3])
        if not agree or not (grouped or same_dim(heads, kv_heads)):
            return self.miss(
                Code.AXES, f"query {q}, key {k} and value {v} do not go together without broadcasting", path, call.node
            )
        return None

    def _dtypes(self, view: GraphView, call: AttentionCall, path: str) -> Miss | None:
        dtypes = {view.dtype(t) for t in (call.query, call.key, call.value, call.node)}
        if len(dtypes) > 1:
            names = ", ".join(sorted(str(d) for d in dtypes))
            return self.miss(Code.MIXED_DTYPE, f"query, key, value and result are of {names}", path, call.node)
        odd = odd_dtype(view, call.interior, dtypes)
        if odd is not None:
            message = f"{odd.name} computes in {view.dtype(odd)}, the kernel in float32"
            return self.miss(Code.PRECISION, message, path, odd)
        return self._mask(view, call, path)

    def _mask(self, view: GraphView, call: AttentionCall, path: str) -> Miss | None:
        """A Miss unless the mask has the right dtype and broadcasts to the scores without widening them."""
        expected = {"none": None, "additive": view.dtype(call.query)}.get(call.masking, torch.bool)
        if view.dtype(call.mask) != expected:
            message = f"{call.masking} mask of {view.dtype(call.mask)}, expected {expected}"
            return self.miss(Code.MASK, message, path, call.mask)
        if call.mask is None:
            return None
        mask, q, v = (view.shape(t) or () for t in (call.mask, call.query, call.value))
        if call.probed is not None:
            return None  # the probe compared it with the scores, broadcasting included
        scores = (*q[:-1], v[-2])
        pairs = zip(reversed(mask), reversed(scores), strict=False)
        if not 2 <= len(mask) <= len(scores) or not all(same_dim(m, 1) or same_dim(m, n) for m, n in pairs):
            return self.miss(
                Code.MASK, f"mask {mask} does not broadcast to scores {scores} on 2 or more axes", path, call.mask
            )
        return None

    def emit(
        self, site: Site[AttentionDetails | ProbedDetails], builder: Builder, op: Callable[..., Any]
    ) -> Sequence[Node]:
        """The call, with views where heads are folded into the batch or the key comes transposed.

        A result that is [B, H, S, D] in shape but [B, S, H, D] in memory keeps both.
        """
        details, call = site.extra, site.extra.call
        if isinstance(details, ProbedDetails):
            return emit_probed(site.operands, details, builder, op, _mask_for(builder, call, site.dtype))
        q, k, v = (site.operands[name] for name in ("q", "k", "v"))
        if details.transposed:
            k = builder.call("transpose", k, -1, -2)
        if details.rank == 3:
            q, k, v = (builder.call("unsqueeze", t, 0) for t in (q, k, v))
        mask = _mask_for(builder, call, site.dtype)
        out = builder.call(op, q, k, v, mask, call.scale, call.is_causal, details.layout, details.out_layout)
        if details.turned:
            return [builder.call("permute", out, *BSHD_BHSD)]
        return [builder.call("squeeze", out, 0) if details.rank == 3 else out]


def _sizes(q: Sequence[Any], v: Sequence[Any]) -> dict[str, int | str]:
    """Sizes of attention on a query [B, H, S, D], or without B, and a value of the same rank, by name."""
    sizes = {
        "batch": q[0] if len(q) == 4 else 1, "heads": q[-3], "kv_heads": v[-3], "sequence": q[-2], "kv_sequence": v[-2],
        "head_size": q[-1], **({} if same_dim(q[-1], v[-1]) else {"value_size": v[-1]}),
    }  # fmt: skip
    return {k: size_of(v) for k, v in sizes.items()}


def _facts(view: GraphView, call: AttentionCall) -> dict[str, Any]:
    """The facts that limits refer to."""
    mask = "none" if call.mask is None else "bool" if view.dtype(call.mask) == torch.bool else "additive"
    return {"mask": mask, "scale": call.scale}


def _without_permutes(view: GraphView, call: AttentionCall) -> _Operands:
    given = (call.query, call.key, call.value)
    bare = [view.bare(t) for t in given]
    permutes = (BSHD_BHSD, (0, 2, 3, 1) if call.transposed else BSHD_BHSD, BSHD_BHSD)
    bshd = [s for t, dims in zip(bare, permutes, strict=True) if (s := view.permuted(t, dims)) is not None]
    rank = len(view.shape(call.key) or ())
    source = view.permuted(bare[1], (*range(rank - 2), rank - 1, rank - 2)) if call.transposed else None
    layout, transposed = "bhsd", call.transposed
    if len(bshd) == 3:
        bare, layout, transposed = bshd, "bshd", False
    elif source is not None:
        bare[1], transposed = source, False
    passed = (n for t, end in zip(given, bare, strict=True) for n in view.between(t, end))
    query, key, value = bare
    return _Operands(query, key, value, layout=layout, transposed=transposed, interior=tuple(passed))


def _result(view: GraphView, call: AttentionCall) -> tuple[Node, str, list[Node]]:
    """The result, its layout, and the views passed: below a permute back to [B, S, H, D] if nothing else reads the attention."""
    node, passed = call.node, []
    while len(users := [u for u in node.users if not only_checks(u)]) == 1 and view.source(users[0]) is not None:
        passed.append(node)
        (node,) = users
        if view.permuted(node, BSHD_BHSD) is call.node:
            return node, "bshd", passed
    return call.node, "bhsd", []


def _mask_for(builder: Builder, call: AttentionCall, dtype: torch.dtype) -> Any:
    """The mask as the op takes it: bool (True takes part) where masked scores become -inf, else added to the scores."""
    if call.masking in ("none", "additive", "bool"):
        return call.mask
    if call.fill == float("-inf"):
        return call.mask if call.masking == "keep" else builder.call(torch.logical_not, call.mask)
    dropped = builder.call(torch.logical_not, call.mask) if call.masking == "keep" else call.mask
    # A fill below the dtype's range would overflow to -inf, and 0 * -inf is NaN where nothing is masked.
    return builder.call(torch.mul, builder.call("to", dropped, dtype), max(call.fill, torch.finfo(dtype).min))
