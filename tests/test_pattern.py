import pytest
import torch

from fluxrewrite.graph import GraphView
from fluxrewrite.pattern import Const, Either, Maybe, Op, Pattern, Value, match

x, y = Value("x"), Value("y")


def attempt(trace, pattern, fn, root="add", **inputs):
    view = GraphView(trace(fn, **inputs).graph)
    return match(pattern, view, list(view.with_op(root))[-1])


A = {"a": torch.randn(3), "b": torch.randn(3)}


def test_sums_and_products_commute_and_differences_do_not(trace):
    pattern = Op("add", Op("neg", x), y)
    assert attempt(trace, pattern, lambda a, b: b + (-a), **A).matched
    assert attempt(trace, pattern, lambda a, b: torch.add(other=a.neg(), input=b), **A).matched
    difference = Op("sub", Op("neg", x), y)
    assert attempt(trace, difference, lambda a, b: -a - b, "sub", **A).matched
    assert not attempt(trace, difference, lambda a, b: b - (-a), "sub", **A).matched
    assert attempt(trace, difference, lambda a, b: torch.sub(other=b, input=-a), "sub", **A).matched


def test_one_name_is_one_value(trace):
    square = Op("add", Op("mul", x, x), y)
    assert attempt(trace, square, lambda a, b: a * a.contiguous().float() + b, **A).matched
    failed = attempt(trace, square, lambda a, b: a * b + b, **A)
    assert not failed.matched
    assert "expected x to be" in failed.failure


def test_alternatives_keep_their_tag_and_forget_what_failed(trace):
    pattern = Either(
        "form", twice=Op("add", Op("mul", x, Const("n")), Op("sin", y)), once=Op("add", Op("mul", x, Const("n")), y)
    )
    found = attempt(trace, pattern, lambda a, b: a * 3.0 + b, **A)
    assert found.matched
    assert found.tags == {"form": "once"}
    assert found.captures["n"] == 3.0
    assert [found.view.op(n) for n in found.nodes].count("mul") == 1


@pytest.mark.parametrize(("fn", "tag"), [(lambda a, b: (a * 2) + b, "present"), (lambda a, b: a.cos() + b, "absent")])
def test_maybe(trace, fn, tag):
    pattern = Op("add", Maybe("scaled", lambda inner: Op("mul", inner, Const("s")), x), y)
    assert attempt(trace, pattern, fn, **A).tags == {"scaled": tag}


def test_arguments_that_no_pattern_names_must_be_default(trace):
    pattern = Op("add", x, y)
    assert attempt(trace, pattern, lambda a, b: torch.add(a, b, alpha=1), **A).matched
    failed = attempt(trace, pattern, lambda a, b: torch.add(a, b, alpha=2), **A)
    assert "alpha=2" in failed.failure
    assert attempt(trace, Op("add", x, y, ignore=("alpha",)), lambda a, b: torch.add(a, b, alpha=2), **A).matched
    assert (
        attempt(trace, Op("add", x, y, alpha=Const("k")), lambda a, b: torch.add(a, b, alpha=2), **A).captures["k"] == 2
    )


def test_the_deepest_mismatch_is_kept(trace):
    pattern = Op("add", Op("mul", Op("sin", x), y), y)
    failed = attempt(trace, pattern, lambda a, b: a.cos() * b + b, **A)
    assert failed.failure == "expected sin, found placeholder" or "cos" in failed.failure
    assert failed.failed_at is not None


def test_the_base_matches_nothing():
    with pytest.raises(TypeError):
        Pattern().match(None, None)
