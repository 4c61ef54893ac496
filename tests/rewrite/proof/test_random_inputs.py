"""Masks leave something in every row, and small rows are among the numbers."""

import pytest
import torch

from fluxrewrite.rewrite.proof.random_inputs import Maker


def made(shape, dtype=torch.float64, mask=False, seed=0):
    return Maker(seed, 3)(torch.empty(shape, device="meta"), shape, dtype, mask)


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_boolean_masks_have_both(seed):
    mask = made((2, 3, 5, 7), torch.bool, seed=seed)
    assert mask.any(-1).all()
    assert (~mask).any(-1).all()


@pytest.mark.parametrize("shape", [(4, 1, 5, 2), (5, 2), (3, 1, 1, 9)])
def test_rows_of_additive_masks_have_a_finite_number(shape):
    masks = [made(shape, mask=True, seed=seed) for seed in range(20)]
    assert all(m.isfinite().any(-1).all() for m in masks)
    values = torch.cat([m.flatten() for m in masks])
    assert (values == float("-inf")).any()
    assert (values == 0).any()
    assert (values.isfinite() & (values != 0)).any()
    assert not values.isnan().any()


def test_rows_differ_in_size_and_vectors_do_not():
    rows = made((200, 64)).pow(2).mean(-1).sqrt()
    assert rows.max() > 0.5
    assert rows.min() < 0.02
    assert made((200,)).abs().mean() > 0.5


def test_indices_and_complex_numbers():
    indices = made((50,), torch.int64)
    assert (indices.min(), indices.max()) == (0, 2)
    assert made((3, 4), torch.complex128).imag.abs().max() > 0.1


def test_axes_are_in_memory_in_the_order_of_the_traced_ones():
    like = torch.empty(2, 5, 3, 4, device="meta").transpose(1, 2)
    found = Maker(0, 2)(like, (2, 3, 5, 4), torch.float64)
    assert found.shape == (2, 3, 5, 4)
    assert found.transpose(1, 2).is_contiguous()


def test_the_same_seed_makes_the_same():
    assert torch.equal(made((3, 4), seed=5), made((3, 4), seed=5))
    assert not torch.equal(made((3, 4), seed=5), made((3, 4), seed=6))
