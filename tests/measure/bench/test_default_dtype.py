"""How much slower this processor multiplies in bfloat16."""

from __future__ import annotations

import itertools

import torch

from fluxrewrite.measure.bench import default_dtype
from fluxrewrite.measure.bench.default_dtype import bfloat16_slowdown


def test_the_slowdown_is_the_ratio_of_the_fastest_products(monkeypatch):
    seconds = {torch.bfloat16: [9, 6, 8, 7, 9], torch.float32: [5, 4, 3, 2, 3]}
    given = [at for d in seconds for took in seconds[d] for at in (0, took)]
    monkeypatch.setattr(default_dtype.time, "perf_counter", itertools.chain(given).__next__)
    assert bfloat16_slowdown() == 3.0


def test_a_product_takes_time_in_both():
    assert 0.01 < bfloat16_slowdown() < 1000


def test_products_are_made_in_the_dtype_that_is_timed(monkeypatch):
    made = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: made.append(linear(x, w).dtype))
    bfloat16_slowdown()
    assert made == [torch.bfloat16] * 5 + [torch.float32] * 5
