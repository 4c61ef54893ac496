import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import Graph

from fluxrewrite.fusion.boundary.executables import segments
from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection

VALUE = torch.empty(2, device="meta")


def build(parents):
    """A graph with one operation for each list of parents, numbers of earlier operations."""
    graph = Graph()
    start = graph.placeholder("x")
    made = []
    for numbers in parents:
        inputs = [made[n] for n in numbers] or [start]
        made.append(graph.call_function(torch.stack, (inputs,)))
    graph.output(tuple(made))
    for node in graph.nodes:
        if node.op != "output":
            node.meta["example_value"] = VALUE
    return GraphView(graph), made


def fewest(parents, called):
    """The least number of sets of operations such that none holds two of which one needs the other through a call."""
    needs = [set() for _ in parents]  # everything that an operation needs
    through = [set() for _ in parents]  # and what of that through a call
    for n, inputs in enumerate(parents):
        for i in inputs:
            needs[n] |= {i} | needs[i]
            through[n] |= through[i] | (needs[i] if i in called else set())
    work = [n for n in range(len(parents)) if n not in called]
    best = len(work)

    def place(index, sets):
        nonlocal best
        if len(sets) >= best:
            return
        if index == len(work):
            best = len(sets)
            return
        n = work[index]
        for one in sets:
            if not any(m in through[n] or n in through[m] for m in one):
                one.append(n)
                place(index + 1, sets)
                one.pop()
        place(index + 1, [*sets, [n]])

    place(0, [])
    return best


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 7))
    parents = [sorted(draw(st.sets(st.integers(0, n - 1), max_size=3))) if n else [] for n in range(count)]
    return parents, draw(st.sets(st.integers(0, count - 1)))


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_as_few_as_can_be(case):
    parents, called = case
    view, made = build(parents)
    assert segments(view, [made[n] for n in called]) == fewest(parents, called)


CHAIN = [[], [0], [1], [2], [3]]


@pytest.mark.parametrize(
    ("parents", "called", "count"),
    [
        (CHAIN, [], 1),
        (CHAIN, [2], 2),
        (CHAIN, [1, 3], 3),
        (CHAIN, [1, 2], 2),  # two calls in a row: nothing between them
        (CHAIN, [0], 1),
        (CHAIN, [4], 1),
        (CHAIN, [0, 1, 2, 3, 4], 0),
        ([[], [0], [0], [1], [2]], [1, 2], 2),  # independent calls share what comes before and after
        ([[], [0], [1], [0], [3], [4]], [1, 3, 4], 2),  # one call on one way, two in a row on the other
    ],
)
def test_by_hand(parents, called, count):
    view, made = build(parents)
    assert segments(view, [made[n] for n in called]) == count


def test_an_empty_graph_needs_none():
    view, _ = build([])
    assert segments(view, []) == 0


def test_views_need_no_executable_and_casts_do(trace):
    def viewed(x):
        return torch.sin(x).transpose(0, 1).flatten().unflatten(0, (2, 3))

    def cast(x):
        return torch.sin(x).double()

    for fn, count in ((viewed, 1), (cast, 2)):
        view = GraphView(trace(fn, x=torch.randn(3, 2)).graph)
        assert segments(view, list(view.with_op("sin"))) == count - 1


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def test_sites_count_as_the_calls_that_take_their_place(trace):
    def fn(x, cos, sin):
        return rotate(rotate(x.relu(), cos, sin) * 2, cos, sin) + 1

    gm = trace(fn, x=torch.randn(1, 2, 8, 16), cos=torch.randn(8, 16), sin=torch.randn(8, 16))
    view = GraphView(gm.graph)
    sites = [d.finding for d in make_plan(view, Selection.of("rope", "reference")).decisions]
    assert len(sites) == 2
    assert [segments(view, sites[:n]) for n in range(3)] == [1, 2, 3]
    half = view.nodes[: view.order(sites[0].outputs[0]) + 1]
    assert segments(view, sites[:1], half) == 1
