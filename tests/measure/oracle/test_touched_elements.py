import numpy as np
import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from fluxrewrite.measure.oracle.touched_elements import Access, touched

R, C = sympy.symbols("r c", integer=True, nonnegative=True)


@pytest.mark.parametrize(
    ("size", "accesses", "expected"),
    [
        (12, [Access(R, (R,), (12,))], 12),
        (12, [Access(2 * R, (R,), (6,))], 6),
        (12, [Access(2 * R, (R,), (6,)), Access(2 * R + 1, (R,), (6,))], 12),
        (12, [Access(4 * R + C, (R, C), (3, 2))], 6),  # two columns of four
        (12, [Access(C, (R, C), (3, 2))], 2),  # broadcast over rows
        (12, [Access(R, (R,), (6,)), Access(R + 3, (R,), (6,))], 9),  # overlapping
        (12, [Access(sympy.Integer(5))], 1),
        (12, [Access(None)], 12),
        (12, [Access(R, (R,), (3,)), Access(None)], 12),
        (12, [], 0),
        (12, [Access(R, (R,), (0,))], 0),
        (0, [Access(None)], 0),
        (12, [Access(R - 2, (R,), (6,))], 4),  # a masked load starts before the buffer
        (12, [Access(R + 8, (R,), (6,))], 4),
        (12, [Access(11 - R, (R,), (3,))], 3),
        (12, [Access(FloorDiv(R, 2), (R,), (12,))], 6),
        (12, [Access(ModularIndexing(R, 2, 3), (R,), (12,))], 3),
        (12, [Access(ModularIndexing(R, 1, 4) + 4 * FloorDiv(R, 4), (R,), (12,))], 12),
    ],
)
def test_elements_count_once(size: int, accesses: list[Access], expected: int) -> None:
    assert touched(size, accesses) == expected


def test_linear_accesses_agree_with_counting() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        sizes = tuple(int(n) for n in generator.integers(1, 5, 2))
        steps = [int(n) for n in generator.integers(-3, 8, 2)]
        offset, size = int(generator.integers(0, 10)), int(generator.integers(1, 40))
        addresses = {offset + steps[0] * i + steps[1] * j for i in range(sizes[0]) for j in range(sizes[1])}
        access = Access(offset + steps[0] * R + steps[1] * C, (R, C), sizes)
        assert touched(size, [access]) == len([a for a in addresses if 0 <= a < size])
