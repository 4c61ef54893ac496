"""Every reason code is made to fire once, and each message names what it is about."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from quantised import quantise
from torch import nn

import fluxrewrite
from fluxrewrite.analysis import analyse
from fluxrewrite.fusion.boundary.target import Target
from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.proof import Prover, Store
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Code, Miss

B, S, H, D = 2, 5, 4, 8
W = H * D


def attend(q, k, v):
    q, k, v = (t.unflatten(-1, (-1, D)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)


class Layers(nn.Module):
    """Projections called a, b, c; `fn(layers, **inputs)` is what is traced."""

    def __init__(self, fn):
        super().__init__()
        self.a, self.b, self.c, self.packed = nn.Linear(W, W), nn.Linear(W, W), nn.Linear(W, W), nn.Linear(W, 3 * W)
        self.fn = fn

    def forward(self, **inputs):
        return self.fn(self, **inputs)


def rotate(x, cos, sin, join=torch.cat):
    first, second = x.chunk(2, dim=-1)
    return x * cos + join((-second, first), dim=-1) * sin


def less(m, x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos - torch.cat((-second, first), dim=-1) * sin


def used_inside(m, x):
    y = m.packed(x)
    return attend(*y.chunk(3, -1)).sum() + y


def mutated(m, x):
    q, k = m.a(x), m.b(x)
    x.mul_(2.0)
    return attend(q, k, m.c(x))


def half_autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.softmax(x @ x.mT, -1) @ x  # bfloat16
        scores = y @ y.mT
    return torch.softmax(scores, -1) @ y


def late_bias(m, x):
    q = m.a(x)
    bias = q.mean((0, 1))
    return attend(q, m.b(x), F.linear(x, m.c.weight, bias))


def long_way(m, x):
    q = m.a(x)
    for _ in range(600):
        q = q * 1.0001
    return attend(q, m.b(x), m.c(x))


def wide_rope(m, x, cos, sin):
    return rotate(x.double(), cos, sin).float()


def turned(x, cos, sin, sign=-1):
    """No known form: halves turned by addcmul; with another sign no rotation."""
    (a, b), (c, s) = x.chunk(2, -1), (cos[:, : D // 2], sin[:, : D // 2])
    return torch.cat((torch.addcmul(a * c, b, s, value=sign), torch.addcmul(b * c, a, s)), -1)


def with_turned(change):
    def fn(m, x, cos, sin):
        q, k, v = (f(x).unflatten(-1, (-1, D)).transpose(1, 2) for f in (m.a, m.b, m.c))
        return F.scaled_dot_product_attention(change(q, cos, sin), k, v)

    return fn


X = torch.randn(B, S, W)
HEADS = torch.randn(B, H, S, D)
TABLE = {"cos": torch.randn(S, D), "sin": torch.randn(S, D)}
ONE_ROW = {"cos": torch.randn(D), "sin": torch.randn(D)}

CASES = {
    Code.PATTERN: ("rope", less, {"x": HEADS, **TABLE}, "sub"),
    Code.INNER_USE: ("qkv", used_inside, {"x": X}, "add"),
    Code.AUTOCAST: ("attention", half_autocast, {"x": HEADS}, "different settings of torch.autocast"),
    Code.MUTATION: ("qkv", mutated, {"x": X}, "mul_"),
    Code.DROPOUT: (
        "attention",
        lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.25),
        {"x": HEADS},
        "0.25",
    ),
    Code.MASK: (
        "attention",
        lambda m, x: torch.softmax((x @ x.mT).masked_fill(torch.ones(S, S).triu().bool(), -5.0), -1) @ x,
        {"x": HEADS},
        "-5.0",
    ),
    Code.AXES: ("attention", lambda m, x: F.scaled_dot_product_attention(x[None], x[None], x[None]), {"x": HEADS}, "5"),
    Code.TABLE: ("rope", lambda m, x, cos, sin: rotate(x, cos, sin), {"x": HEADS, **ONE_ROW}, f"({D},)"),
    Code.MIXED_DTYPE: (
        "attention",
        lambda m, x: torch.softmax(x @ x.mT, -1).double() @ x.double(),
        {"x": HEADS},
        "float64",
    ),
    Code.PRECISION: ("rope", wide_rope, {"x": HEADS, **TABLE}, "float64"),
    Code.PROBED: ("rope", with_turned(lambda *t: turned(*t, sign=1)), {"x": X, **TABLE}, "[[c, s], [s, c]]"),
    Code.NOT_PROBED: (
        "rope",
        with_turned(lambda x, cos, sin: turned(x, F.dropout(cos, 0.5, True), sin)),
        {"x": X, **TABLE},
        "draws random numbers",
    ),
    Code.NEEDS_PROOF: ("rope", with_turned(turned), {"x": X, **TABLE}, "proof='numeric'"),
    Code.NO_PROJECTION: ("qkv", lambda m, x: attend(x.sin(), m.b(x), m.c(x)), {"x": X}, "sin"),
    Code.DIFFERENT_INPUTS: (
        "qkv",
        lambda m, x, y: attend(m.a(x), m.b(y), m.c(x + y)),
        {"x": X, "y": X.clone()},
        "query",
    ),
    Code.SHARED_ROWS: ("qkv", lambda m, x: attend(m.a(x), *[m.b(x)] * 2), {"x": X}, "key"),
    Code.PACKED_LAYOUT: (
        "qkv",
        lambda m, x: attend(*(t.flatten(2) for t in m.packed(x).unflatten(-1, (H, 3, D)).unbind(3))),
        {"x": X},
        f"{H} every {3 * D}",
    ),
    Code.ORDER: ("qkv", late_bias, {"x": X}, "bias"),
    Code.SEARCH_LIMIT: ("qkv", long_way, {"x": X}, "512"),
    Code.LIMIT: (
        "attention",
        lambda m, x: F.scaled_dot_product_attention(x, x, x),
        {"x": torch.randn(1, 2, 3, 192)},
        "192",
    ),
}


@pytest.mark.parametrize("code", CASES)
def test_code_fires_with_its_numbers(find, code):
    kind, fn, inputs, told = CASES[code]
    findings = find(kind, Layers(fn), **inputs)
    reasons = [r for f in findings for r in ([f.reason] if isinstance(f, Miss) else f.reasons)]
    assert code in {r.code for r in reasons}, reasons
    assert any(told in r.message for r in reasons if r.code == code), reasons
    assert all(r.node for r in reasons)


def codes(gm, kernels=None, policy="all"):
    plan = make_plan(GraphView(gm.graph), Selection.of(kernels), policy)
    return {r.code for d in plan.decisions for r in d.reasons}


def triple(m, x):
    return attend(m.a(x), m.b(x), m.c(x))


def check_no_shape(trace):
    gm = torch.fx.symbolic_trace(lambda q, cos, sin: F.scaled_dot_product_attention(rotate(q, cos, sin), q, q))
    assert codes(gm, "rope") == {Code.NO_SHAPE}
    assert codes(gm, "attention") == {Code.NO_SHAPE}
    traced = trace(Layers(triple), x=X)
    next(n for n in traced.graph.nodes if n.target is F.linear).meta.clear()
    assert codes(traced, "qkv") == {Code.NO_SHAPE}


def check_rewritten(trace):
    gm = trace(Layers(triple), x=X)
    once, _ = apply(gm, make_plan(GraphView(gm.graph), Selection.of("qkv")))
    assert codes(once, "qkv") == {Code.REWRITTEN}


def check_requires_grad(trace):
    backend = fluxrewrite.backend(inner="eager")
    torch.compile(Layers(triple), backend=backend)(x=X)
    assert {r.code for s in backend.reports[0].sites for r in s.reasons} == {"requires_grad"}


def check_no_kernel(trace):
    gm = trace(Layers(triple), x=X)
    selection = Selection.of("qkv")
    plan = make_plan(GraphView(gm.graph), Selection(selection.passes, {}, selection.forms))
    assert [r.code for d in plan.decisions for r in d.reasons] == [Code.NO_KERNEL]


def check_not_selected(trace):
    assert codes(trace(Layers(triple), x=X), "qkv:packed") == {Code.NOT_SELECTED}


def check_covered(trace):
    def fn(q, k, v, cos, sin, gain):
        q, k = (rotate(F.rms_norm(t, (D,), gain, 1e-6), cos[:, None], sin[:, None]) for t in (q, k))
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    heads = {name: torch.randn(B, S, H, D) for name in "qkv"}
    gm = trace(fn, **heads, **TABLE, gain=torch.ones(D))
    plan = make_plan(GraphView(gm.graph), Selection.of(provider="reference"))
    assert [d.finding.kind for d in plan.decisions if d.choice == "kernel"] == ["norm_rope_attention"]
    covered = [d.finding.kind for d in plan.decisions if [r.code for r in d.reasons] == [Code.COVERED]]
    assert covered == ["attention", "rope", "rope"]


def check_policy(trace):
    gm = trace(Layers(triple), x=X)
    assert codes(gm, policy="none") == {Code.POLICY}
    assert codes(gm, policy=lambda site: site.kind == "qkv") == {Code.POLICY}
    analysed, _ = analyse(gm, Selection.of(provider="reference"), "auto", Target.of("trn2"))
    reasons = [r for d in analysed.plan.decisions for r in d.reasons]
    assert {r.code for r in reasons} == {Code.POLICY}
    assert all("policy 'auto' keeps it: no set of kernels with it makes its block faster" in r.message for r in reasons)
    assert all(r.node for r in reasons)


def check_replacement(trace):
    gm = trace(Layers(triple), x=X)
    linear = next(n for n in gm.graph.nodes if n.target is F.linear)
    plan = make_plan(GraphView(gm.graph), Selection.of("qkv"))
    linear.meta["example_value"] = torch.empty(1)
    rewritten, carried_out = apply(gm, plan)
    assert [r.code for d in carried_out.decisions for r in d.reasons] == [Code.REPLACEMENT]
    assert [n.target for n in rewritten.graph.nodes] == [n.target for n in gm.graph.nodes]


def check_failed(trace):
    gm = trace(Layers(triple), x=X)
    plan = make_plan(GraphView(gm.graph), Selection.of("qkv"), failed=lambda site, kernel: f"{kernel.name} is broken")
    assert [(r.code, r.message) for d in plan.decisions for r in d.reasons] == [(Code.FAILED, "qkv is broken")]


class Doubled(type(Selection.of("rope").passes["rope"])):
    def emit(self, site, builder, op):
        return [builder.call("mul", node, 1.01) for node in super().emit(site, builder, op)]


class Unnamed(Doubled):
    """Reads a value that its site does not name."""

    def emit(self, site, builder, op):
        return [builder.call(op, site.operands["x"].args[0], *super().emit(site, builder, op)[0].args[1:])]


def proved_with(rewriter, trace, tmp_path, fn=rotate):
    selection = Selection.of("rope", "reference")
    selection = Selection({"rope": rewriter}, selection.kernels, selection.forms)
    gm = trace(lambda x, cos, sin: fn(x, cos, sin), x=HEADS, **TABLE)
    plan = make_plan(GraphView(gm.graph), selection, prove=Prover(Store(tmp_path)))
    assert apply(gm, plan)[0] is gm
    (decision,) = plan.decisions
    return decision.reasons


def check_not_equivalent(trace, tmp_path):
    (reason,) = proved_with(Doubled(), trace, tmp_path)
    assert reason.code == Code.NOT_EQUIVALENT
    assert (
        reason.message == "on random inputs the replacement differs: it is off by 0.01 of the largest value (float64)"
    )
    assert reason.node


def check_unproved(trace, tmp_path):
    (reason,) = proved_with(Unnamed(), trace, tmp_path, lambda x, cos, sin: rotate(x.exp(), cos, sin))
    assert reason.code == Code.UNPROVED
    assert "the replacement reads l_inputs_x_, which its site does not name" in reason.message
    assert "proof='structural'" in reason.message


PROOFS = {Code.NOT_EQUIVALENT: check_not_equivalent, Code.UNPROVED: check_unproved}


def check_subclass(trace):
    model = Layers(triple)
    assert quantise(model, ("b",)) == 1
    assert codes(trace(model, x=X), "qkv") == {Code.SUBCLASS}


def check_subgraph(trace):
    def fn(m, x):
        return torch.utils.checkpoint.checkpoint(lambda y: triple(m, y), x, use_reentrant=False)

    gm = trace(Layers(fn), x=X)
    plan = make_plan(GraphView(gm.graph), Selection.of(("qkv", "attention")))
    reasons = [r for d in plan.decisions for r in d.reasons]
    assert [r.code for r in reasons] == [Code.SUBGRAPH, Code.SUBGRAPH]
    assert all("checkpoint" in r.message and r.node for r in reasons)


OTHERS = {
    Code.NO_SHAPE: check_no_shape,
    Code.REWRITTEN: check_rewritten,
    Code.REQUIRES_GRAD: check_requires_grad,
    Code.NO_KERNEL: check_no_kernel,
    Code.NOT_SELECTED: check_not_selected,
    Code.COVERED: check_covered,
    Code.POLICY: check_policy,
    Code.FAILED: check_failed,
    Code.SUBCLASS: check_subclass,
    Code.SUBGRAPH: check_subgraph,
    Code.REPLACEMENT: check_replacement,
}


@pytest.mark.parametrize("code", OTHERS)
def test_code_of_plan_and_rewrite_fires(trace, code):
    OTHERS[code](trace)


@pytest.mark.parametrize("code", PROOFS)
def test_code_of_proof_fires(trace, tmp_path, code):
    PROOFS[code](trace, tmp_path)


def test_every_code_has_a_case():
    assert set(CASES) | set(OTHERS) | set(PROOFS) == set(Code)
