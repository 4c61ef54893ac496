"""What a probe is not asked of, and what it refuses of attention: too far, of other axes, masks that the op cannot take."""

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.attention.attention import Attention

from fluxrewrite.graph import GraphView
from fluxrewrite.models.capture import capture
from fluxrewrite.rewrite.proof.probe import Limits, budget_of
from fluxrewrite.site import Code

B, H, S, L, D = 2, 3, 6, 5, 8


def qkv(keys=L, **more):
    return {n: torch.randn(B, H, S if n == "q" else keys, D) for n in "qkv"} | more


def _findings(fn, limits=None, **inputs):
    (gm,) = capture(fn, inputs).graphs
    view = GraphView(gm.graph)
    budget_of(view, limits or Limits())
    return Attention().find(view)


def scores_of(q, k):
    return torch.einsum("bhqd,bhkd->bhqk", q, k)


def weighted(scores, v):
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def far_above(q, k, v):
    scores = scores_of(q, k)
    for _ in range(8):
        scores = scores + 1.0
    return weighted(scores, v)


def another_product_nearer(q, k, v):
    other = (v[0, 0] @ torch.ones(D, L)).sin().sin()
    return torch.einsum("bhqk,bhkd->bhqd", scores_of(q, k).softmax(-1) * other[:1], v)


@pytest.mark.parametrize(("fn", "nodes"), [(far_above, 6), (another_product_nearer, 5)])
def test_products_that_are_not_reached_are_none(fn, nodes):
    assert _findings(fn, Limits(nodes=nodes), **qkv()) == []


def of_weights_alone(q, k, v):
    weights = scores_of(q, k).softmax(-1)
    return torch.einsum("bhqk,bhlk->bhql", weights, weights.neg()) + v.sum()


NO_REGION = {
    "scores of a tensor by itself": lambda q, k, v: weighted(torch.matmul(s := k[..., :L], s), v),
    "scores of three tensors": lambda q, k, v: weighted(torch.einsum("bhqd,bhkd,bhkd->bhqk", q, k, v), v),
    "a result of three tensors": lambda q, k, v: torch.einsum(
        "bhqk,bhkd,bhkd->bhqd", scores_of(q, k).softmax(-1), k, v
    ),
    "a result of weights alone": of_weights_alone,
}


@pytest.mark.parametrize("name", NO_REGION)
def test_what_is_not_made_of_three_tensors_is_nothing(name):
    assert _findings(NO_REGION[name], **qkv()) == []


def test_a_product_behind_a_layer_is_not_that_of_the_scores(check):
    def fn(q, k, v, near, weight):
        return weighted(scores_of(q, k) + F.linear(near @ near.mT, weight), v)

    report = check(fn, "attention", **qkv(), near=torch.randn(S, 4), weight=torch.randn(L, S))
    assert [(s.form, s.choice) for s in report.sites] == [("probed", "kernel")]


def divided_for_more_batches(q, k, v):
    powers = scores_of(q, k).exp()
    return torch.einsum("bhqk,bhkd->bhqd", powers, v) / powers.sum(-1, keepdim=True).expand(2, -1, -1, -1)


def test_a_quotient_of_another_shape_is_no_part_of_it(trace):
    given = {n: t[:1] for n, t in qkv().items()}
    view = GraphView(trace(divided_for_more_batches, **given).graph)
    (miss,) = Attention().find(view)
    assert view.op(view.named[miss.reason.node]) == "einsum"
    assert "do not add up to 1" in miss.reason.message


def two_masks(q, k, v, masks):
    first, second = masks.chunk(2, -2)
    return weighted(scores_of(q, k) + first + second, v)


def over_all_batches(q, k, v):
    return torch.einsum("hqk,ohkd->ohqd", torch.einsum("bhqd,bhkd->hqk", q, k).softmax(-1), v)


def over_two_axes(q, k, v):
    return weighted(torch.einsum("bhqd,bhkdx->bhqk", q, k), v)


def without_batch_and_heads(q, k, v):
    return torch.einsum("qk,kd->qd", torch.einsum("qd,kd->qk", q, k).softmax(-1), v)


def biased(q, k, v, mask):
    return weighted(scores_of(q, k) + mask, v)


def triangle(q, k, v):
    powers = scores_of(q, k).exp().tril()
    return torch.einsum("bhqk,bhkd->bhqd", powers / powers.sum(-1, keepdim=True), v)


def triangle_that_is_small(q, k, v):
    return weighted(scores_of(q, k).masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -1e9), v)


def attention(q, k, v):
    return weighted(scores_of(q, k), v)


def of_shapes(q, k, v, **more):
    return {n: torch.randn(shape) for n, shape in zip("qkv", (q, k, v), strict=True)} | more


NO_ATTENTION = {
    "of one query's batch": (attention, of_shapes((1, H, S, D), (B, H, L, D), (B, H, L, D)), "are not those of all"),
    "of one key's batch": (attention, of_shapes((B, H, S, D), (1, H, L, D), (B, H, L, D)), "are not those of all"),
    "batches summed": (over_all_batches, of_shapes((B, H, S, D), (B, H, L, D), (1, H, L, D)), "do not go together"),
    "an axis more": (over_two_axes, of_shapes((1, 1, S, D), (1, 1, L, D, 1), (1, 1, L, D)), "no axis of the result"),
    "two axes": (without_batch_and_heads, of_shapes((S, D), (L, D), (L, D)), "no axis of the result"),
    "one key": (attention, qkv(1), "no axis of the result"),
    "a scale that is made": (lambda q, k, v: weighted(scores_of(q, k) / torch.ones(3, 7).sum(), v), qkv(), "by 0.047619, "),
    "two masks of a split": (two_masks, qkv(masks=torch.randn(2 * S, L)), "by something that is not a value"),
    "a triangle of other lengths": (triangle, qkv(), "by something that is not a value"),
    "a triangle that is small": (triangle_that_is_small, qkv(S), "does not remove keys"),
    "a bias of each key": (biased, qkv(mask=torch.randn(L)), "by something that is not a value"),
    "a bias of whole numbers": (biased, qkv(mask=torch.randint(0, 9, (S, L))), "by something that is not a value"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_what_the_op_cannot_say_is_told(name):
    fn, given, said = NO_ATTENTION[name]
    (miss,) = _findings(fn, **given)
    assert miss.reason.code == Code.PROBED
    assert said in miss.reason.message


def test_a_result_that_others_read_before_it_is_divided_is_no_weighted_mean():
    def fn(q, k, v):
        powers = scores_of(q, k).exp()
        total = torch.einsum("bhqk,bhkd->bhqd", powers, v)
        return total / powers.sum(-1, keepdim=True), total

    assert [f.reason.code for f in _findings(fn, **qkv())] == [Code.PROBED]
