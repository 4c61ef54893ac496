"""Attention that no pattern knows: found by what it computes, and what is nearly one is not."""

import math

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.attention.attention import Attention
from torch import nn

import fluxrewrite
from fluxrewrite.graph import GraphView
from fluxrewrite.models.capture import capture
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.proof import Prover, Store
from fluxrewrite.rewrite.proof.probe import Limits, budget_of
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Code, Miss, Site

B, H, S, L, D = 2, 3, 6, 5, 8
KEEP = torch.ones(S, L, dtype=torch.bool).tril()


def qkv(keys=L, **sizes):
    return {n: torch.randn(B, H, S if n == "q" else keys, D) for n in "qkv"} | sizes


def turned(keys=L):
    return {n: t.transpose(1, 2).contiguous() for n, t in qkv(keys).items()}


def einsum(q, k, v):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(D)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def einsum_turned(q, k, v):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.3
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def einsum_letters(q, k, v):
    scores = torch.einsum("zkna,zqna->nzqk", k, q) * 0.3
    return torch.einsum("nzqk,zkna->qzna", scores.softmax(-1), v)


def by_hand(q, k, v):
    scores = q @ k.mT * 0.3
    powers = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (powers / powers.sum(-1, keepdim=True)) @ v


def by_hand_without_maximum(q, k, v):
    powers = torch.exp(q @ k.mT * 0.3)
    return (powers / powers.sum(-1, keepdim=True)) @ v


def divided_at_the_end(q, k, v):
    powers = torch.exp(q @ k.mT * 0.3)
    return (powers @ v) / powers.sum(-1, keepdim=True)


def by_logarithms(q, k, v):
    scores = q @ k.mT * 0.3
    return torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True)) @ v


def log_softmax(q, k, v):
    return F.log_softmax(q @ k.mT, -1).exp() @ v


def powers_of_two(q, k, v):
    powers = torch.exp2(q @ k.mT * (0.3 / math.log(2)))
    return (powers / powers.sum(-1, keepdim=True)) @ v


def transposed(q, k, v):
    """Weights with the keys in front of the queries."""
    return (k @ q.mT * 0.3).softmax(-2).mT @ v


def softmax_over_the_other_axis(q, k, v):
    return torch.einsum("bhkq,bhkd->bhqd", (k @ q.mT * 0.3).softmax(2), v)


def scaled_in_parts(q, k, v):
    return ((q @ k.mT + 2.0) * 0.5 * 0.6 - 1.0).softmax(-1) @ v


def scaled_sum(q, k, v):
    return torch.softmax(torch.add(q @ k.mT, 1.0, alpha=2), -1) @ v


def folded(q, k, v):
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    out = torch.baddbmm(torch.zeros(1, 1, 1), q, k.mT, beta=0.5, alpha=0.3).softmax(-1) @ v
    return out.unflatten(0, (B, H))


def a_head_at_a_time(q, k, v):
    def one(q, k, v):
        return torch.einsum("bqk,bkd->bqd", torch.einsum("bqd,bkd->bqk", q, k).softmax(-1), v)

    return torch.cat([one(*(t[:, h] for t in (q, k, v)))[:, None] for h in range(H)], 1)


FOUND = {
    einsum: qkv, einsum_turned: turned, einsum_letters: turned, by_hand: qkv, by_hand_without_maximum: qkv,
    divided_at_the_end: qkv, by_logarithms: qkv, log_softmax: qkv, powers_of_two: qkv, transposed: qkv,
    softmax_over_the_other_axis: qkv, scaled_in_parts: qkv, scaled_sum: qkv, folded: qkv, a_head_at_a_time: qkv,
}  # fmt: skip


def of(report):
    return [(s.form, s.choice) for s in report.sites]


@pytest.mark.parametrize("keys", [L, S, D])
@pytest.mark.parametrize("fn", FOUND, ids=lambda f: f.__name__)
def test_found_and_equal(check, fn, keys):
    report = check(fn, "attention", **FOUND[fn](keys))
    assert of(report) == [("probed", "kernel")] * (H if fn is a_head_at_a_time else 1)
    assert {s.proof.status for s in report.sites} == {"proved"}


def test_query_key_and_value_of_one_batch_and_of_one_head(check):
    for batch, heads in ((1, H), (B, 1), (1, 1)):
        torch._dynamo.reset()
        given = {n: torch.randn(batch, S if n == "q" else L, heads, D) for n in "qkv"}
        assert of(check(einsum_turned, "attention", **given)) == [("probed", "kernel")]


def test_the_layout_of_the_call(check):
    report = check(einsum_turned, "attention", **turned())
    assert (report.sites[0].details["layout"], report.sites[0].details["out_layout"]) == ("bshd", "bshd")
    assert report.sites[0].shapes == {
        "batch": B, "heads": H, "kv_heads": H, "sequence": S, "kv_sequence": L, "head_size": D,
    }  # fmt: skip


def masked(change, **more):
    def fn(q, k, v, **given):
        scores = change(torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.3, **given)
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)

    return fn


MASKS = {
    "added": (lambda s, mask: s + mask, {"mask": torch.randn(B, 1, S, L)}, "additive"),
    "kept": (lambda s, mask: torch.where(mask, s, float("-inf")), {"mask": KEEP}, "bool"),
    "dropped": (lambda s, mask: s.masked_fill(mask, float("-inf")), {"mask": ~KEEP}, "bool"),
    "made in the graph": (
        lambda s: s + torch.zeros(S, L).masked_fill(torch.ones(S, L, dtype=torch.bool).triu(1), float("-inf")),
        {},
        "additive",
    ),
    "bias of each head": (lambda s, mask: s + mask, {"mask": torch.randn(H, 1, L)}, "additive"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(check, name):
    change, given, kind = MASKS[name]
    report = check(masked(change), "attention", **qkv(), **given)
    assert of(report) == [("probed", "kernel")]
    torch._dynamo.reset()
    (site,) = _findings(masked(change), **qkv(), **given)
    assert site.facts["mask"] == kind


def test_causal_masks_that_are_no_tensor(check):
    def fn(q, k, v):
        weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.3).exp().tril()
        return torch.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdim=True), v)

    report = check(fn, "attention", **qkv(S))
    assert of(report) == [("probed", "kernel")]
    assert report.sites[0].details["causal"] is True


def test_bfloat16(check):
    given = {n: t.bfloat16() for n, t in qkv().items()}
    assert of(check(einsum, "attention", tolerance=2e-2, **given)) == [("probed", "kernel")]


class Layers(nn.Module):
    def __init__(self, attend=einsum_turned):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(20, H * D) for _ in range(3))
        self.attend = attend

    def forward(self, x):
        return self.attend(*(f(x).unflatten(-1, (H, D)) for f in (self.q, self.k, self.v)))


def test_projections_are_found_through_it(check):
    report = check(Layers(), "qkv,attention", x=torch.randn(B, S, 20))
    assert sorted((s.kind, s.form, s.choice) for s in report.sites) == [
        ("attention", "probed", "kernel"),
        ("qkv", "triple", "kernel"),
    ]


def counted(q, k, v):
    return torch.einsum("bhqk,bkhd->bqhd", (torch.einsum("bqhd,bkhd->bhqk", q, k) / k.shape[1]).softmax(-1), v)


@pytest.mark.parametrize(("attend", "choice"), [(einsum_turned, "kernel"), (counted, "keep")])
def test_with_sizes_that_are_not_known(trace, tmp_path, attend, choice):
    """A number that changes with the sizes is none that can be written into a call."""
    gm = trace(Layers(attend), dynamic=True, x=torch.randn(B, 16, 20))
    plan = make_plan(GraphView(gm.graph), Selection.of("attention", "reference"), prove=Prover(Store(tmp_path)))
    (decision,) = plan.decisions
    assert decision.choice == choice, decision


def band(s):
    """Nothing is seen of it at fewer than 30 positions."""
    there = torch.arange(s.shape[-1]) - torch.arange(s.shape[-2])[:, None]
    return there.abs() < 30


AT_SIZE = {
    "window": lambda s: torch.where(band(s), s, float("-inf")),
    "triangle": lambda s: s.masked_fill(s.isnan().logical_not().triu(30), float("-inf")),
    "count": lambda s: s / torch.ones(s.shape[-1]).sum(),
    "roll": lambda s: s.roll(s.shape[-1] // 2, -2),
}


@pytest.mark.parametrize("name", AT_SIZE)
def test_what_shows_at_large_sizes_only(check, name):
    report = check(masked(AT_SIZE[name]), "attention", **{n: torch.randn(1, 2, 48, D) for n in "qkv"})
    assert of(report) == [("probed", "keep")]


def _findings(fn, limits=None, **inputs):
    (gm,) = capture(fn, inputs).graphs
    view = GraphView(gm.graph)
    if limits is not None:
        budget_of(view, limits)
    return Attention().find(view)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(work=20), "more than 20 steps of work"),
        (Limits(probes=0), "0 other regions of the graph were probed"),
        (Limits(elements=10), "more than 10"),
    ],
)
def test_limits(limits, said):
    (miss,) = _findings(einsum, limits, **qkv())
    assert miss.reason.code == Code.NOT_PROBED
    assert said in miss.reason.message


def test_products_too_far_apart_are_not_looked_at():
    assert _findings(by_hand, Limits(nodes=3), **qkv()) == []


def test_other_softmaxes_and_exponentials_are_nothing():
    def fn(q, k, v):
        routed = (q @ torch.ones(D, 4)).softmax(-1)
        linear = k.softmax(-1) @ (v.softmax(-2).mT @ v)
        return routed.topk(2).values, linear, torch.exp(q) @ torch.ones(D, D)

    assert [f for f in _findings(fn, **qkv()) if isinstance(f, Site)] == []


def test_more_than_a_region_is_worth_is_not_probed():
    """One limit for all passes of a graph, by what was run; the next compile starts anew."""
    gm = capture(einsum, qkv()).graphs[0]
    views = [GraphView(gm.graph) for _ in range(2)]
    for view in views:
        assert isinstance(Attention().find(view)[0], Site)
    assert budget_of(views[0]).work == budget_of(views[1]).work <= Limits().work / 5


def test_without_a_proof_it_is_left_alone(tmp_path):
    for proof, expected in (("structural", {"needs_proof"}), ("numeric", set())):
        torch._dynamo.reset()
        backend = fluxrewrite.backend("eager", "attention", provider="reference", proof=proof, cache_dir=tmp_path)
        with torch.no_grad():
            torch.compile(einsum, backend=backend)(**qkv())
        (site,) = backend.reports[0].sites
        assert {r.code for r in site.reasons} == expected
        assert site.choice == ("keep" if expected else "kernel")


def test_near_misses_of_patterns_say_what_a_probe_found(find):
    def capped(q, k, v):
        return (torch.tanh(q @ k.mT / 5) * 5).softmax(-1) @ v

    (miss,) = find("attention", capped, **qkv())
    assert miss.reason.code == Code.PATTERN
    assert "found tanh; run on random inputs, " in miss.reason.message
    assert "not a multiple of q k^T" in miss.reason.message


def test_refused_forms_are_not_probed(trace):
    def fn(q, k, v):
        return F.dropout(torch.softmax(q @ k.mT, -1), 0.5, True) @ v

    view = GraphView(trace(fn, **qkv()).graph)
    (miss,) = Attention().find(view)
    assert isinstance(miss, Miss)
    assert miss.reason.code == Code.DROPOUT
    assert budget_of(view).probes == 0
