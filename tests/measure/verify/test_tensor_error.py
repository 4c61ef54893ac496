import math

import pytest
import torch

from fluxrewrite.measure.verify.tensor_error import (
    COSINE,
    NORM,
    TOLERANCES,
    TensorError,
    difference,
    least_cosine,
    moments,
    tolerance_of,
    worst,
)

A = torch.tensor([3.0, -4.0, 0.0])


def test_figures_of_known_vectors():
    found = difference(torch.tensor([3.0, -4.0, 1.0]), A)
    assert found.max_abs == 1
    assert found.relative == 1 / 4
    assert found.norm == pytest.approx(1 / 5)
    assert found.cosine == pytest.approx(25 / (5 * math.sqrt(26)))
    assert found.note == ""


def test_equal_tensors_differ_by_nothing():
    for value in (A, torch.zeros(3), torch.randn(5, 7).bfloat16(), torch.empty(0)):
        assert difference(value.clone(), value) == TensorError(0.0, 0.0, 0.0, 1.0)


def test_pieces_add_up(monkeypatch):
    torch.manual_seed(0)
    a, b = torch.randn(10, 7).t(), torch.randn(10, 7).t()  # not contiguous
    whole = difference(a, b)
    monkeypatch.setattr("fluxrewrite.measure.verify.tensor_error._CHUNK", 8)
    pieces = difference(a, b)
    for name in ("max_abs", "relative", "norm", "cosine"):
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    x, y = a.double(), b.double()
    assert whole.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), 0)))
    assert whole.norm == pytest.approx(float((x - y).norm() / y.norm()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_have_no_figures(bad):
    wrong = torch.tensor([3.0, bad, 0.0])
    assert "the replacement computes NaN or inf" in difference(wrong, A).note
    assert "the original computes NaN or inf" in difference(A, wrong).note
    assert math.isnan(difference(wrong, A).cosine)
    assert moments(wrong).mean is None


def test_zeros():
    assert "values up to 4, expected only zeros" in difference(A, torch.zeros(3)).note
    found = difference(torch.zeros(3), A)
    assert (found.relative, found.norm, found.cosine) == (1, 1, 0)


def test_a_different_shape_or_dtype_is_reported():
    assert "float32 (1, 3), expected float32 (3,)" in difference(A[None], A).note
    assert "bfloat16 (3,), expected float32 (3,)" in difference(A.bfloat16(), A).note


def test_worst_of_several():
    a, b = TensorError(1, 2, 3, 0.5), TensorError(2, 1, 4, 0.9)
    assert worst([a, b]) == TensorError(2, 2, 4, 0.5)
    assert worst([a, TensorError.none("why"), b]).note == "why"


def test_moments():
    found = moments(torch.tensor([[1.0, 3.0]]))
    assert (found.min, found.max, found.mean, found.std) == (1, 3, 2, 1)


def test_limits():
    assert {tolerance_of(d) for d in TOLERANCES} == {1e-5, 1e-2, 1.25e-3}
    assert tolerance_of(torch.float64) == 1e-5
    assert tolerance_of(torch.float32, 0.5) == 0.5
    assert least_cosine(1e-2) == COSINE
    assert least_cosine(0.1) == pytest.approx(0.995)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_rounding_is_within_the_limits_and_one_percent_is_not(dtype):
    """Two ways to round each value, against a factor of 1.01: the limits lie between the two."""
    torch.manual_seed(0)
    exact = torch.randn(10_000, dtype=torch.float64)
    once = exact.to(dtype)
    other = (exact * (1 + torch.finfo(dtype).eps * (torch.rand_like(exact) - 0.5))).to(dtype)
    tolerance = tolerance_of(dtype)
    near, far = difference(other, once), difference((exact * 1.01).to(dtype), once)
    assert 0 < near.relative <= tolerance
    assert 0 < near.norm <= NORM * tolerance
    assert far.norm > NORM * tolerance
