"""What is nearly attention is left alone, and the reason says what it is."""

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.attention.attention import Attention

from fluxrewrite.graph import GraphView
from fluxrewrite.models.capture import capture
from fluxrewrite.site import Code

B, H, S, D = 2, 3, 6, 8


def _findings(fn, inputs):
    (gm,) = capture(fn, inputs).graphs
    return Attention().find(GraphView(gm.graph))


def softly_capped(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", (torch.tanh(q @ k.mT / 5) * 5).softmax(-1), v)


def not_normalised(q, k, v):
    return torch.exp(q @ k.mT * 0.3) @ v


def with_a_sink(q, k, v):
    powers = torch.exp(q @ k.mT * 0.3)
    return (powers / (1 + powers.sum(-1, keepdim=True))) @ v


def with_an_epsilon(q, k, v):
    powers = torch.exp(q @ k.mT * 0.3)
    return (powers / (powers.sum(-1, keepdim=True) + 1e-12)) @ v


def softmax_over_queries(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT).softmax(-2), v)


def softmax_over_heads(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT).softmax(1), v)


def absolute_scores(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT).abs().softmax(-1), v)


def scaled_by_a_tensor(q, k, v, given):
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT * given).softmax(-1), v)


def scaled_by_the_key(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT * k.amax()).softmax(-1), v)


def half_of_a_causal_mask(q, k, v):
    weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.3).exp()
    weights = torch.cat((weights[:, :, :3].tril(), weights[:, :, 3:]), 2)
    return torch.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdim=True), v)


def small_fill(q, k, v, given):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k).masked_fill(given > 0, -1e9)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def masked_after(q, k, v, given):
    weights = (q @ k.mT).softmax(-1).masked_fill(given > 0, 0.0)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def roots_of_negative_numbers(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT).softmax(-1).log().sqrt(), v)


def dropped_out(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", F.dropout((q @ k.mT).softmax(-1), 0.5, True), v)


def written_into(q, k, v):
    scores = q @ k.mT
    scores[..., 0] = 0.0
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def heads_mixed(q, k, v):
    return torch.einsum("bhqk,bgkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


def mean_in_place_of_a_sum(q, k, v):
    powers = torch.exp(q @ k.mT * 0.3)
    return (powers / powers.mean(-1, keepdim=True)) @ v


def a_scale_for_each_head(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT * torch.linspace(0.3, 0.4, H)[:, None, None]).softmax(-1), v)


def a_key_scaled_a_little(q, k, v):
    scores = q @ k.mT
    scores = torch.cat((scores[..., :1] * 1.001, scores[..., 1:]), -1)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def a_weight_scaled_a_little(q, k, v):
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", torch.cat((weights[..., :1] * 1.001, weights[..., 1:]), -1), v)


def masked_in_one_head(q, k, v, given):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
    scores = torch.cat((scores[:, :1] + given, scores[:, 1:]), 1)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def with_a_tiny_epsilon(q, k, v):
    powers = torch.exp(q @ k.mT * 0.3)
    return (powers / (powers.sum(-1, keepdim=True) + 1e-30)) @ v


def limited(most):
    def fn(q, k, v):
        return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT).clamp(max=most).softmax(-1), v)

    return fn


limited_at_50, limited_at_10000 = limited(50.0), limited(1e4)


def small_weights_dropped(q, k, v):
    scores = q @ k.mT
    scores = torch.maximum(scores, scores.amax(-1, keepdim=True) - 20.0)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def mask_with_a_limit(q, k, v, given):
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) + given
    return torch.einsum("bhqk,bhkd->bhqd", torch.where(given < -1000, 0.0, scores).softmax(-1), v)


def on_another_input(q, k, v, given):
    scores = torch.where(given.exp() < 1e9, torch.einsum("bhqd,bhkd->bhqk", q, k), 0.0)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def positions_rolled(q, k, v):
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1).roll(1, -1), v)


WRONG = {
    softly_capped: "not a multiple of q k^T", not_normalised: "do not add up to 1", with_a_sink: "do not add up to 1",
    with_an_epsilon: "", softmax_over_queries: "", softmax_over_heads: "", absolute_scores: "not a multiple of q k^T",
    scaled_by_a_tensor: "the scale of the scores is not a constant", scaled_by_the_key: "",
    half_of_a_causal_mask: "not a value of the graph", small_fill: "does not remove keys", masked_after: "do not add up to 1",
    dropped_out: "draws random numbers", written_into: "in place", heads_mixed: "", positions_rolled: "",
    roots_of_negative_numbers: "not finite", mean_in_place_of_a_sum: "do not add up to 1",
    a_scale_for_each_head: "not a multiple of q k^T",
    a_key_scaled_a_little: "not a multiple of q k^T", a_weight_scaled_a_little: "do not add up to 1",
    masked_in_one_head: "not a value of the graph", with_a_tiny_epsilon: "a number added to all scores",
    limited_at_50: "a number added to all scores", limited_at_10000: "a number added to all scores",
    small_weights_dropped: "", mask_with_a_limit: "a number added to all scores", on_another_input: "for other values",
}  # fmt: skip


@pytest.mark.parametrize("fn", WRONG, ids=lambda f: f.__name__)
def test_what_is_nearly_attention_is_left_alone_with_what_it_is(check, fn):
    given = dict.fromkeys(
        (small_fill, masked_after, masked_in_one_head, mask_with_a_limit, on_another_input), torch.randn(S, S)
    )
    given[scaled_by_a_tensor] = torch.tensor(0.3)
    inputs = {n: torch.randn(B, H, S, D) for n in "qkv"} | ({"given": given[fn]} if fn in given else {})
    if fn is not dropped_out:
        report = check(fn, "attention", equal_nan=fn is roots_of_negative_numbers, **inputs)
        assert {s.choice for s in report.sites} == {"keep"}
        torch._dynamo.reset()
    (miss,) = _findings(fn, inputs)
    expected = Code.NOT_PROBED if fn in (dropped_out, written_into) else Code.PROBED
    assert (miss.reason.code, miss.form) == (expected, "probed")
    assert WRONG[fn] in miss.reason.message
    assert miss.reason.node
