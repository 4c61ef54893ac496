"""What a probe runs, and what it does not."""

import pytest
from torch.fx import Graph

from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.proof.probe import is_random


@pytest.mark.parametrize(
    ("method", "random"),
    [("__eq__", False), ("exp", False), ("bernoulli_", True), ("normal_", True), ("no_method_of_torch", False)],
)
def test_what_draws_random_numbers(method, random):
    graph = Graph()
    node = graph.call_method(method, (graph.placeholder("x"),))
    graph.output(node)
    assert is_random(GraphView(graph), node) is random
