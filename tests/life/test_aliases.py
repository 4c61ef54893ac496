"""In-place operations on values that share memory with what a site gives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Packed(nn.Module):
    def __init__(self, spoil):
        super().__init__()
        self.qkv = nn.Linear(16, 64)
        self.spoil = spoil

    def forward(self, x):
        y = self.qkv(x)
        q, k, v, rest = y.chunk(4, -1)
        more = self.spoil(x, y, q, k, v, rest)
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v))
        return (F.scaled_dot_product_attention(q, k, v), more)


def overlap(x, y, q, k, v, rest):
    both = y[..., :32]
    q.mul_(2)
    return both + 1


def overlap_rest(x, y, q, k, v, rest):
    part = y[..., 40:60]
    rest.mul_(2)
    return part * 3


def twice(x, y, q, k, v, rest):
    again = y[..., :16]
    q.mul_(2)
    return again + 1


def head(x, y, q, k, v, rest):
    first = q[..., :8]
    first.zero_()
    return first + q[..., 8:]


def rest_whole(x, y, q, k, v, rest):
    rest.add_(1)
    return rest


def whole(x, y, q, k, v, rest):
    y.mul_(2)
    return rest


def given(x, y, q, k, v, rest):
    x.mul_(2)
    return x + rest


def strided(x, y, q, k, v, rest):
    every = y[..., ::2]
    q.mul_(3)
    return every + 0


CASES = [overlap, overlap_rest, twice, head, rest_whole, whole, given, strided]


@pytest.mark.parametrize("inner", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("spoil", CASES, ids=lambda c: c.__name__)
def test_packed(spoil, inner, plugin):
    model = Packed(spoil)
    x = torch.randn(2, 5, 16)
    a, b = x.clone(), x.clone()
    run = torch.compile(model, backend=plugin("all", inner))
    with torch.no_grad():
        for found, expected in zip(run(a), model(b), strict=True):
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(a, b)


class Three(nn.Module):
    def __init__(self, spoil):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.spoil = spoil

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        more = self.spoil(x, q, k, v)
        heads = [t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v)]
        return (F.scaled_dot_product_attention(*heads), more)


def q_written(x, q, k, v):
    part = q[..., :4]
    q.mul_(2)
    return part + 0


def view_written(x, q, k, v):
    q[..., :4].zero_()
    k.view(-1)[:3].fill_(7)
    return v * 2


def input_written(x, q, k, v):
    x.mul_(2)
    return x + q


@pytest.mark.parametrize("inner", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("spoil", [q_written, view_written, input_written], ids=lambda c: c.__name__)
def test_triple(spoil, inner, plugin):
    model = Three(spoil)
    x = torch.randn(2, 5, 16)
    a, b = x.clone(), x.clone()
    run = torch.compile(model, backend=plugin("inline", inner, strict=False))  # a slice of a row cannot be viewed flat
    with torch.no_grad():
        for found, expected in zip(run(a), model(b), strict=True):
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("inner", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_outputs_of_attention_written_through_a_view(inner, plugin):
    def f(q, k, v):
        y = F.scaled_dot_product_attention(q, k, v)
        turned = y.transpose(1, 2)
        turned[:, 0].zero_()
        y.mul_(2)
        return y, turned

    q, k, v = torch.randn(3, 2, 2, 5, 8)
    run = torch.compile(f, backend=plugin("all", inner))
    with torch.no_grad():
        for found, expected in zip(run(q, k, v), f(*copy.deepcopy((q, k, v))), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("inner", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_inputs_that_share_memory(inner, plugin):
    def f(q, k, v, base):
        y = F.scaled_dot_product_attention(q, k, v)
        base.mul_(2)
        return y + F.scaled_dot_product_attention(q, k, v)

    base = torch.randn(3, 2, 2, 5, 8)
    other = base.clone()
    run = torch.compile(f, backend=plugin("all", inner))
    with torch.no_grad():
        torch.testing.assert_close(run(*base, base), f(*other, other))
