"""Which differences of measured times are differences."""

from __future__ import annotations

import random
import statistics

import pytest

from fluxrewrite.cost.noise import NEUTRAL, median_noise, threshold


@pytest.mark.parametrize(
    ("values", "noise"),
    [
        ([], 0.0),
        ([3.0], 0.0),
        ([1.0, 2.0], 1.0),
        ([1.0, 2.0, 5.0], 6.0),
        ([5.0, 1.0, 4.0], 6.0),  # in any order, and the wider side
        ([1.0] * 4 + [9.0], 16.0),
        ([1.0] * 5 + [9.0], 8.0),  # six: their range is enough
        ([1.0] * 6 + [9.0], 8.0),  # seven: the largest counts
        ([1.0] * 7 + [9.0], 0.0),
        ([1.0] * 6 + [9.0, 9.0], 8.0),
        ([0.1, 0.1, *[1.0] * 10], 0.0),
        ([*[0.1] * 3, *[1.0] * 9], 0.9),
    ],
)
def test_few_values_count_in_full_and_of_many_the_middle(values, noise):
    assert median_noise(values) == pytest.approx(noise)


@pytest.mark.parametrize(
    ("count", "share"), [(2, 0.68), (3, 0.9), (4, 0.9), (5, 0.95), (6, 0.95), (12, 0.95), (40, 0.95)]
)
def test_the_median_of_the_distribution_is_within_the_noise(count, share):
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        values = [draw.gauss(1, 0.1) for _ in range(count)]
        held += abs(statistics.median(values) - 1.0) <= median_noise(values)
    assert held / 2000 >= share


def test_more_runs_make_the_noise_smaller():
    draw = random.Random(0)
    values = [draw.gauss(1, 0.02) for _ in range(400)]
    assert median_noise(values) < median_noise(values[:12]) / 2


@pytest.mark.parametrize(
    ("noises", "share"), [((0.0, 0.0, 0.0), NEUTRAL), ((0.02, 0.01, 0.0), 0.03), ((0.02, 0.01, 0.05), 0.05)]
)
def test_the_largest_doubt_decides(noises, share):
    assert threshold(*noises) == pytest.approx(share)
