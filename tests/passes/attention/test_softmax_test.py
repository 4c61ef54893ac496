"""What weights of a mean are no softmax of q k^T, seen from a function of three tensors; and what a mask may be."""

import math

import pytest
import torch
from fluxrewrite.passes.attention.softmax_test import (
    SHIFT,
    NotAttention,
    _axis_roles,
    _broadcast,
    _check_new_values,
    _check_shifts,
    _probabilities,
    _scale,
)

S, L, D = 6, 5, 8


def made(queries=S, keys=L):
    torch.manual_seed(0)
    sizes = {"q": queries, "k": keys, "v": keys}
    return {n: torch.randn(2, 3, size, D, dtype=torch.float64) for n, size in sizes.items()}


def scores(values):
    return values["q"] @ values["k"].mT


def attention(values):
    return scores(values).softmax(-1) @ values["v"]


def test_the_scale_of_attention_and_its_weights_for_a_query_of_zeros():
    scale, unscored = _scale(attention, made())
    assert math.isclose(scale, 1.0)
    torch.testing.assert_close(unscored, torch.full((2, 3, S, L), 1 / L, dtype=torch.float64))


WEIGHTS = {
    "infinite": (lambda t: attention(t) + math.inf, "negative or infinite"),
    "negative": (lambda t: (2 * scores(t).softmax(-1) - 1 / L) @ t["v"], "negative or infinite"),
    "of a sum that is not 1": (lambda t: scores(t).exp() @ t["v"], "do not add up to 1"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_those_of_no_mean(name):
    run, said = WEIGHTS[name]
    with pytest.raises(NotAttention, match=said):
        _probabilities(run, made())


UNSCALED = {
    "values passed on": (lambda t: t["v"], L),
    "a mean": (lambda t: (0.0 * scores(t)).softmax(-1) @ t["v"], S),
    "small scores left out": (lambda t: scores(t).masked_fill(scores(t) < -1, -math.inf).softmax(-1) @ t["v"], S),
}


@pytest.mark.parametrize("name", UNSCALED)
def test_weights_that_no_factor_on_q_k_explains(name):
    run, queries = UNSCALED[name]
    with pytest.raises(NotAttention, match="do not depend on q k"):
        _scale(run, made(queries))


def test_a_value_shared_by_all_heads_is_told_by_the_axis_roles():
    q, k, v = (torch.empty(2, heads, n, D) for heads, n in ((3, S), (3, L), (1, L)))
    with pytest.raises(NotAttention, match="batches and heads of the result"):
        list(_axis_roles(({0: 0, 1: 1, 2: 2}, {0: 0, 1: 1}, {0: 0, 3: 3}), torch.empty(2, 3, S, D), [q, k, v]))


def test_only_at_numbers_far_off_may_the_result_overflow():
    wanted, broken = torch.ones(S), torch.full((S,), math.inf)
    _check_shifts(wanted, lambda shift: wanted if abs(shift) == SHIFT else broken)
    with pytest.raises(NotAttention, match="a number added to all scores"):
        _check_shifts(wanted, lambda shift: broken if abs(shift) == SHIFT else wanted)
    _check_new_values(lambda t: attention(t) if t["q"].abs().max() < 100 else broken, made(), 1.0, None)
    with pytest.raises(NotAttention, match="other values"):
        _check_new_values(lambda t: broken if t["q"].abs().max() < 100 else attention(t), made(), 1.0, None)


MASKS = {
    "no tensor": (None, False),
    "pieces": ((torch.randn(S, L), torch.randn(S, L)), False),
    "one axis": (torch.randn(L), False),
    "an axis more": (torch.randn(1, 2, 3, S, L), False),
    "complex": (torch.randn(S, L, dtype=torch.complex64), False),
    "integers": (torch.ones(S, L, dtype=torch.int64), False),
    "other sizes": (torch.randn(S + 1, L), False),
    "of all rows": (torch.randn(1, L), True),
    "of each head": (torch.randn(3, S, L), True),
    "booleans": (torch.ones(S, L, dtype=torch.bool), True),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_may_be_a_mask(name):
    value, may = MASKS[name]
    found = _broadcast(value, torch.randn(2, 3, S, L))
    assert (found is not None) == may
    assert not may or found.shape == (2, 3, S, L)
