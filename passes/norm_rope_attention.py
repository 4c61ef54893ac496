"""The whole region between the projections and the output projection.

    q = rope(rms_norm(q))                                    single    (one stream)
    q = rope(cat([rms_norm(text_q), rms_norm(image_q)]))     joint     (streams joined between the norms and RoPE)

and the same for k with the same tables; v joined alike; bidirectional attention without a mask. The pass combines the sites of
the rope and attention passes, so it knows every spelling that they know.

    before                                                        after
    q, k = rope(norm_q(q), cos, sin), rope(norm_k(k), cos, sin)   fluxrewrite.norm_rope_attention(
    attention(q, k, v)                                                [q], [k], [v], [gq], [gk], [eps], cos, sin, True)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxrewrite.passes.attention.attention import Attention
from fluxrewrite.passes.attention.call import AttentionDetails
from fluxrewrite.passes.rope.rope import Rope
from fluxrewrite.passes.rope.tables import RopeDetails, emit_tables
from torch.fx import Node

from fluxrewrite.graph import GraphView
from fluxrewrite.graph.shapes import same_dim
from fluxrewrite.rewrite import Builder, Pass, blocked
from fluxrewrite.site import Code, Finding, Miss, Site

__all__ = ["NormRopeAttention", "NormRopeDetails"]


@dataclass(frozen=True)
class NormRopeDetails:
    """`Site.extra` of a norm_rope_attention region.

    Attributes:
        eps: of the norms of each stream.
        rope: the rotation of the query, whose tables the call takes.
        scale: factor on the scores; None for 1 / sqrt(D).
        interleaved: rotated pairs are neighbouring channels, else channels half a head apart.
    """

    eps: list[float]
    rope: Site[RopeDetails]
    scale: float | None
    interleaved: bool


@dataclass(frozen=True)
class _Stream:
    """The raw value of one stream, and its norm where it has one; `views` lie between the norm and the joined value."""

    raw: Node
    norm: Node | None
    gamma: Node | None
    eps: float
    views: tuple[Node, ...] = ()


class NormRopeAttention(Pass):
    """Finds norms, RoPE, joining and attention in one region, and replaces it by one call."""

    kind = "norm_rope_attention"
    kernel = "norm_rope_attention"
    forms = ("single", "joint")
    looks_for = (
        "attention whose query and key are RMS-normed, joined from one or more streams, and rotated by the same tables"
    )

    def find(self, view: GraphView) -> list[Finding]:
        """One finding for each attention whose query or key is rotated; other attention is no near miss of this pass."""
        # A probed rotation or attention needs a proof of its own, and other details than the call here is built from.
        found = [s for s in Rope().find(view) if isinstance(s, Site) and not s.needs_proof]
        ropes = {view.bare(s.outputs[0]): s for s in found}
        findings: list[Finding] = []
        for site in Attention().find(view):
            if isinstance(site, Site) and not site.needs_proof:
                query, key = (ropes.get(view.bare(site.operands[name])) for name in ("q", "k"))
                if query is not None or key is not None:
                    findings.append(self._region(view, site, query, key))
        return findings

    def _region(
        self,
        view: GraphView,
        site: Site[AttentionDetails],
        query: Site[RopeDetails] | None,
        key: Site[RopeDetails] | None,
    ) -> Finding:
        details, call = site.extra, site.extra.call
        path, at = site.path, site.outputs[0]
        if query is None or key is None:
            return self.miss(Code.PATTERN, f"the {'key' if query else 'query'} is not rotated", path, at)
        if call.masking != "none" or call.is_causal:
            return self.miss(
                Code.MASK, f"attention with {'a causal' if call.is_causal else call.masking} mask", path, at
            )
        if (details.layout, details.out_layout, details.turned) != ("bshd", "bshd", False):
            return self.miss(Code.AXES, "query, key, value or result is not [B, S, H, D] in memory", path, at)
        rotations = [(r.form, r.extra.axis, r.extra.out_dtype, r.extra.turned, r.dtype) for r in (query, key)]
        tables = [(r.operands["cos"], r.operands["sin"]) for r in (query, key)]
        if rotations[0] != rotations[1] or tables[0] != tables[1] or rotations[0][1:4] != (1, None, False):
            return self.miss(
                Code.TABLE, "query and key are rotated differently, or not along axis 1 in their own dtype", path, at
            )
        streams = {
            "q": self._streams(view, query.operands["x"], normed=True),
            "k": self._streams(view, key.operands["x"], normed=True),
            "v": self._streams(view, site.operands["v"], normed=False),
        }
        return self._site(view, site, (query, key), streams)

    def _streams(self, view: GraphView, node: Node, normed: bool) -> list[_Stream] | str:
        """The streams that `node` joins along the sequence, or why there are none that the call could take."""
        node = view.bare(node)
        joins = view.op(node) == "cat" and view.arg(node, "dim") in (1, -3)
        parts = list(view.arg(node, "tensors")) if joins else [node]
        streams: list[_Stream] = []
        for part in parts:
            bare = view.bare(part)
            if not normed:
                streams.append(_Stream(bare, None, None, 0.0))
                continue
            if view.op(bare) != "rms_norm":
                return f"{bare.name} is {view.op(bare)}, expected rms_norm"
            size, gamma, eps = (view.arg(bare, name) for name in ("normalized_shape", "weight", "eps"))
            if len(size) != 1 or not isinstance(gamma, Node) or view.number(eps) is None:
                return f"{bare.name} norms over {tuple(size)} with gain {gamma} and eps {eps}"
            raw, views = view.bare(view.arg(bare, "input")), tuple(view.between(part, bare))
            streams.append(_Stream(raw, bare, gamma, float(view.number(eps) or 0.0), views))
        return streams

    def _site(
        self,
        view: GraphView,
        site: Site[AttentionDetails],
        ropes: tuple[Site[RopeDetails], Site[RopeDetails]],
        streams: Mapping[str, list[_Stream] | str],
    ) -> Finding:
        out, path = site.outputs[0], site.path
        roles: list[list[_Stream]] = []
        for found in streams.values():
            if isinstance(found, str):
                return self.miss(Code.PATTERN, found, path, out)
            roles.append(found)
        q, k, v = roles
        problem = self._mismatch(view, site, q, k, v)
        if problem is not None:
            return problem
        interior = self._interior(view, site, ropes, (*q, *k, *v))
        operands = {name: [s.raw for s in role] for name, role in zip("qkv", (q, k, v), strict=True)}
        read = [*(t for ts in operands.values() for t in ts), ropes[0].operands["cos"], ropes[0].operands["sin"]]
        problem = blocked(self, view, path, interior, [out], read)
        if problem is not None:
            return problem
        return Site(
            kind=self.kind,
            form="single" if len(q) == 1 else "joint",
            path=path,
            operands={**operands, "gamma_q": [s.gamma for s in q], "gamma_k": [s.gamma for s in k]},
            outputs=(out,),
            interior=interior,
            shapes={**site.shapes, "streams": len(q)},
            dtype=site.dtype,
            facts={**ropes[0].facts, **site.facts, "eps": min(s.eps for s in q)},
            extra=NormRopeDetails(
                eps=[s.eps for s in q],
                rope=ropes[0],
                scale=site.extra.call.scale,
                interleaved=ropes[0].form != "rotate_half",
            ),
        )

    def _mismatch(
        self, view: GraphView, site: Site, q: Sequence[_Stream], k: Sequence[_Stream], v: Sequence[_Stream]
    ) -> Miss | None:
        """Why query, key and value are not one list of streams: lengths, eps or dtypes differ; None where they are."""
        path, out = site.path, site.outputs[0]
        lengths = [[(view.shape(s.raw) or (0, 0))[1] for s in role] for role in (q, k, v)]
        same = len(q) == len(k) == len(v) and all(
            same_dim(a, b) and same_dim(a, c) for a, b, c in zip(*lengths, strict=True)
        )
        if not same or [s.eps for s in q] != [s.eps for s in k]:
            message = f"streams of query, key and value have lengths {lengths} and eps {[s.eps for s in (*q, *k)]}"
            return self.miss(Code.PATTERN, message, path, out)
        tensors = {view.dtype(t) for s in (*q, *k, *v) for t in (s.raw, s.gamma, s.norm) if t is not None}
        if tensors != {site.dtype}:
            named = ", ".join(sorted(map(str, tensors)))
            return self.miss(Code.MIXED_DTYPE, f"streams and gains are of {named}", path, out)
        return None

    def _interior(
        self, view: GraphView, site: Site, ropes: Sequence[Site], streams: Sequence[_Stream]
    ) -> tuple[Node, ...]:
        """Everything from the norms to the result; views of a raw value stay, since others may use them."""
        nodes = [*site.interior]
        for rope in ropes:
            x = rope.operands["x"]
            nodes += [*rope.interior, *rope.outputs, *view.between(x, view.bare(x)), view.bare(x)]
        nodes += [n for s in streams if s.norm is not None for n in (*s.views, s.norm)]
        joined = view.bare(site.operands["v"])
        nodes += [joined] if len(streams) > 3 else []
        return tuple(n for n in dict.fromkeys(nodes) if n not in site.outputs)

    def emit(self, site: Site[NormRopeDetails], builder: Builder, op: Callable[..., Any]) -> Sequence[Node]:
        """One call with the streams as lists."""
        details = site.extra
        lists = [site.operands[name] for name in ("q", "k", "v", "gamma_q", "gamma_k")]
        tables = emit_tables(details.rope, builder)
        return [builder.call(op, *lists, details.eps, *tables, details.interleaved, details.scale)]
