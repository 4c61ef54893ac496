import pytest
import torch
from torch.fx import Graph

from fluxrewrite.graph import GraphView
from fluxrewrite.pattern import Attempt, Const, Either, Join, Lanes, Maybe, Op, Pattern, Value, joined, match

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


def test_numbers_are_no_tensors_and_bools_no_numbers(trace):
    failed = attempt(trace, Op("add", x, y), lambda a, b: a + 1.0, **A)
    assert "expected a tensor for" in failed.failure
    view = failed.view
    assert not Const("n").match(Attempt(view), True)
    tried = Attempt(view)
    assert Const("n").match(tried, 3)
    assert not Const("n").match(tried, 4)
    assert Const("n").match(tried, 3)


def test_a_mismatch_before_anything_matched_is_at_no_node(trace):
    tried = Attempt(GraphView(Graph()))
    assert not x.match(tried, 3)
    assert tried.failed_at is None


def test_named_arguments_must_be_as_named(trace):
    pattern = Op("add", x, y, alpha=2)
    assert attempt(trace, pattern, lambda a, b: torch.add(a, b, alpha=2), **A).matched
    assert not attempt(trace, pattern, lambda a, b: torch.add(a, b, alpha=3), **A).matched


def test_an_operation_without_its_operands_does_not_match():
    graph = Graph()
    node = graph.call_function(torch.neg, ())
    failed = match(Op("neg", x), GraphView(graph), node)
    assert "with arguments" in failed.failure


def test_a_tag_is_the_same_alternative_everywhere(trace):
    def one(value):
        return Either("which", sine=Op("sin", value), cosine=Op("cos", value))

    pattern = Op("add", one(x), one(y))
    assert attempt(trace, pattern, lambda a, b: a.cos() + b.cos(), **A).tags == {"which": "cosine"}
    assert not attempt(trace, pattern, lambda a, b: a.sin() + b.cos(), **A).matched


def half_of(trace, fn, **inputs):
    """Whether `fn` gives the first or second members of pairs of its input."""
    return [
        attempt(trace, Op("cos", Lanes(x, index)), lambda a: fn(a).cos(), "cos", **inputs).matched for index in (0, 1)
    ]


@pytest.mark.parametrize(
    ("fn", "shape"),
    [
        (lambda a: a[..., :1], (4, 3)),  # 3 members are no pairs
        (lambda a: a.reshape(2, 16)[:, :8].reshape(4, 4), (4, 8)),  # half of the rows, each in two
        (lambda a: a.t().reshape(8, 3)[:4], (4, 6)),
        (lambda a: a[..., :2].transpose(0, 1), (2, 2, 4)),  # of other rows
        (lambda a: a.reshape(1), ()),
        (lambda a: a[..., :3], (4, 7)),  # 7 members are no pairs
        (lambda a: a[..., 3:6], (4, 7)),
        (lambda a: a[..., :2], (4, 8)),  # a quarter
    ],
)
def test_values_with_the_shape_of_a_half_that_are_not_one(trace, fn, shape):
    assert half_of(trace, fn, a=torch.randn(shape)) == [False, False]
    assert half_of(trace, lambda a: a[..., 2:], a=torch.randn(4, 4)) == [False, True]


def test_both_joins_put_pairs_together_alike(trace):
    pattern = Op("add", Join("style", x, y), Join("style", x, y))
    inputs = {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}
    assert attempt(trace, pattern, lambda a, b: torch.cat([a, b], -1) + torch.cat([a, b], 1), **inputs).matched
    failed = attempt(trace, pattern, lambda a, b: torch.cat([a, b], -1) + torch.stack([a, b], -1).flatten(1), **inputs)
    assert not failed.matched


@pytest.mark.parametrize(
    ("fn", "shape"),
    [
        (lambda a, b: torch.stack([a, b], -1).transpose(1, 2).reshape(4, 6), (4, 3)),
        (lambda a, b: torch.stack([a, b], -1).flatten(1)[:, :4], (4, 3)),
        (lambda a, b: torch.cat([a, b], -1).flatten(1), (4, 3, 1)),  # pieces that were never without the axis
        (lambda a, b: torch.cat([a, b], -1).flatten(1), (4, 3, 2)),
        (lambda a, b: torch.cat([a, b], -1), (4, 3, 1)),  # the two of each pair, whatever the pairs are of
        (lambda a, b: torch.cat([a, b[:, :2]], -1), (4, 3)),
        (lambda a, b: torch.stack([a, b], -1).reshape(2, 12), (4, 3)),
    ],
)
def test_what_puts_two_tensors_together_otherwise(trace, fn, shape):
    view = GraphView(trace(lambda a, b: fn(a, b).cos(), a=torch.randn(shape), b=torch.randn(shape)).graph)
    (user,) = view.with_op("cos")
    assert joined(view, user.args[0]) is None


@pytest.mark.parametrize(
    "fn",
    [
        lambda pairs: pairs.flatten().view(4, 6),
        lambda pairs: torch.cat([pairs], 0).flatten(1),
        lambda pairs: pairs.transpose(0, 1).transpose(0, 1).flatten(1),
    ],
)
def test_views_of_two_tensors_put_together(trace, fn):
    gm = trace(lambda a, b: fn(torch.stack([a, b], -1)).cos(), a=torch.randn(4, 3), b=torch.randn(4, 3))
    view = GraphView(gm.graph)
    (user,), (stack,) = view.with_op("cos"), view.with_op("stack")
    assert joined(view, user.args[0])[:2] == ("interleaved", stack)


def test_what_was_not_traced_joins_nothing():
    graph = Graph()
    pieces = [graph.placeholder("a"), graph.placeholder("b")]
    whole = graph.call_function(torch.cat, (pieces, -1))
    assert joined(GraphView(graph), whole) is None
    for piece in pieces:
        piece.meta["val"] = torch.empty(2, 2)
    assert joined(GraphView(graph), whole) is None


def test_joined_tensors_that_the_graph_does_not_name():
    graph = Graph()
    pieces = graph.placeholder("pieces")
    whole = graph.call_function(torch.cat, (pieces, -1))
    other = graph.call_function(torch.cat, ([pieces, pieces], -1))
    traced = graph.placeholder("traced")
    traced.meta["val"] = torch.empty(2, 2)
    half = graph.call_function(torch.cat, ([pieces, traced], -1))
    for node in (whole, other, half):
        node.meta["val"] = torch.empty(2, 4)
        assert joined(GraphView(graph), node) is None
