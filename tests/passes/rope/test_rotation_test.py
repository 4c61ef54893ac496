"""When two made-up results count as equal."""

import math

import pytest
import torch
from fluxrewrite.passes.numeric import close

ONES = torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (ONES * (1 + 1e-12), True),
        (ONES * (1 + 1e-6), False),
        (torch.ones(()), True),
        (ONES * math.nan, False),
        (ONES * math.inf, False),
        (torch.tensor([1.0, 1.0, math.inf]), False),
    ],
)
def test_close(other, equal):
    assert close(ONES, other) is close(other, ONES) is equal


def test_nothing_is_equal_to_infinity_and_no_elements_are_equal():
    assert not close(ONES * math.inf, ONES * math.inf)
    assert close(ONES[:0], ONES[:0])
