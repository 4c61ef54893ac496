"""Hints of sizes: the traced value of each symbol, a fallback for sizes that only a run determines, or an error."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fluxrewrite.errors import RewriteError
from fluxrewrite.graph.shapes import LEFT_OUT, hint, hints
from fluxrewrite.rewrite.proof.region import UNKNOWN

FALLBACKS = [LEFT_OUT, UNKNOWN, None]  # of predictions, of proofs, of parts of a graph


@pytest.fixture
def env():
    return ShapeEnv()


@pytest.fixture
def sizes(env):
    """(s0, u0): a size that was 6 when it was traced, and the number of rows of `nonzero`, which no trace knows."""
    mode = FakeTensorMode(shape_env=env)
    traced = mode.from_tensor(torch.ones(6, 5), static_shapes=False)
    with mode:
        rows = torch.nonzero(traced)
    s0, u0 = traced.shape[0], rows.shape[0]
    assert s0.node.has_hint()
    assert not u0.node.has_hint()
    return s0, u0


@pytest.mark.parametrize("unknown", FALLBACKS)
@pytest.mark.parametrize("number", [0, 7, 2.5, True], ids=repr)
def test_plain_numbers_are_returned_unchanged(number, unknown):
    assert hint(number, unknown) is number


@pytest.mark.parametrize("unknown", FALLBACKS)
def test_a_backed_symbol_has_its_traced_value(sizes, unknown):
    s0, _ = sizes
    assert hint(s0, unknown) == 6
    assert hint(s0 * 2 + 1, unknown) == 13
    assert type(hint(s0, unknown)) is int


def test_an_unbacked_symbol_has_the_fallback(sizes):
    _, u0 = sizes
    assert hint(u0, LEFT_OUT) == 1
    assert hint(u0, UNKNOWN) == 40
    assert type(hint(u0, UNKNOWN)) is int


def test_in_an_expression_only_the_unbacked_symbol_has_the_fallback(sizes):
    s0, u0 = sizes
    assert hint(u0 * s0, LEFT_OUT) == 6
    assert hint(u0 * s0, UNKNOWN) == 240
    assert hint(u0 * s0 + s0 + 2, UNKNOWN) == 248


def test_without_a_fallback_an_unbacked_symbol_is_an_error(sizes):
    s0, u0 = sizes
    for size in (u0, u0 * s0):
        with pytest.raises(RewriteError, match=r"is not known before the model runs$") as error:
            hint(size, None)
        assert str(size) in str(error.value)


def test_floats_and_bools_have_their_traced_value_but_no_fallback(sizes):
    s0, u0 = sizes
    known = torch.sym_float(s0)
    assert isinstance(known, torch.SymFloat)
    assert [hint(known, unknown) for unknown in FALLBACKS] == [6.0] * 3
    floating, truth = torch.sym_float(u0), u0 > 100
    assert isinstance(floating, torch.SymFloat)
    assert isinstance(truth, torch.SymBool)
    for number in (floating, truth):
        for unknown in FALLBACKS:
            with pytest.raises(RewriteError, match="is not known before the model runs"):
                hint(number, unknown)


def test_hints_of_a_shape(sizes):
    s0, u0 = sizes
    assert hints((), None) == ()
    assert hints((2, s0, 3), None) == (2, 6, 3)
    assert hints((2, u0, s0 * u0), LEFT_OUT) == (2, 1, 6)
    assert hints(torch.Size([2, 3]), UNKNOWN) == (2, 3)
    with pytest.raises(RewriteError, match="is not known before the model runs"):
        hints((2, s0, u0), None)


def test_a_hint_adds_no_guard(sizes, env):
    s0, u0 = sizes
    before = len(env.guards)
    hints((s0, u0, u0 * s0), UNKNOWN)
    assert len(env.guards) == before
    assert s0 == 6  # as a condition, it does
    assert len(env.guards) > before
