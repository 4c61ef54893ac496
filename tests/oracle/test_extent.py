import numpy as np
import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from fluxrewrite.oracle.extent import Access, touched

I, J = sympy.symbols("i j", integer=True, nonnegative=True)


@pytest.mark.parametrize(
    ("size", "accesses", "expected"),
    [
        (12, [Access(I, (I,), (12,))], 12),
        (12, [Access(2 * I, (I,), (6,))], 6),
        (12, [Access(2 * I, (I,), (6,)), Access(2 * I + 1, (I,), (6,))], 12),
        (12, [Access(4 * I + J, (I, J), (3, 2))], 6),  # two columns of four
        (12, [Access(J, (I, J), (3, 2))], 2),  # broadcast over i
        (12, [Access(I, (I,), (6,)), Access(I + 3, (I,), (6,))], 9),  # overlapping
        (12, [Access(sympy.Integer(5))], 1),
        (12, [Access(None)], 12),
        (12, [Access(I, (I,), (3,)), Access(None)], 12),
        (12, [], 0),
        (12, [Access(I, (I,), (0,))], 0),
        (0, [Access(None)], 0),
        (12, [Access(I - 2, (I,), (6,))], 4),  # a masked load starts before the buffer
        (12, [Access(I + 8, (I,), (6,))], 4),
        (12, [Access(11 - I, (I,), (3,))], 3),
        (12, [Access(FloorDiv(I, 2), (I,), (12,))], 6),
        (12, [Access(ModularIndexing(I, 2, 3), (I,), (12,))], 3),
        (12, [Access(ModularIndexing(I, 1, 4) + 4 * FloorDiv(I, 4), (I,), (12,))], 12),
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
        access = Access(offset + steps[0] * I + steps[1] * J, (I, J), sizes)
        assert touched(size, [access]) == len([a for a in addresses if 0 <= a < size])
