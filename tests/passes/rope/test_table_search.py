"""Which values hold the factors of a rotation: values that are no tables, tables of other pairs, and what lies above them."""

from types import SimpleNamespace

import pytest
import torch
from fluxrewrite.passes.rope.rotation_test import Factors
from fluxrewrite.passes.rope.table_search import NamedTables, _unbroadcast, tables_of
from torch.fx import Graph

from fluxrewrite.graph import GraphView

B, S, H, D = 2, 6, 3, 8
C, T = torch.randn(2, S, D // 2, dtype=torch.float64)


def named(factors, *values):
    graph = Graph()
    nodes = [graph.placeholder(f"t{i}") for i in range(len(values))]
    for node, value in zip(nodes, values, strict=True):
        node.meta["example_value"] = value
    probe = SimpleNamespace(values=dict(zip(nodes, values, strict=True)))
    return tables_of(GraphView(graph), probe, nodes, factors)


def missing(factors, *values):
    found = named(factors, *values)
    assert isinstance(found, str), found
    return found


def factors(cos, sin, interleaved):
    """Those of [S, D/2] for x of [B, S, H, D]."""
    whole = (t.repeat_interleave(2, -1) if interleaved else torch.cat((t, t), -1) for t in (cos, sin))
    return Factors(*(t[None, :, None].expand(B, S, H, D) for t in whole), interleaved)


def matrices(cos, sin):
    return torch.stack((cos, -sin, sin, cos), -1).unflatten(-1, (2, 2))[:, None]


def test_values_that_are_no_tensors_are_passed_over():
    found = named(factors(C, T, True), C, T, 3, (C, T), torch.randn(S, 3))
    assert isinstance(found, NamedTables)
    assert (found.kind, found.cos.name, found.sin.name, found.axis) == ("real", "t0", "t1", 1)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_complex_table_is_one_value(interleaved):
    of = factors(C, T, interleaved)
    found = named(of, torch.complex(C, T))
    assert (found.kind, found.cos, found.axis) == ("complex", found.sin, 1)
    two = missing(of, torch.complex(C, T * 0), torch.complex(C * 0, T))
    assert "no value in the graph is the table of cos and sin (complex sin is t1, complex cos is t0)" in two


def test_a_complex_table_has_one_number_a_pair():
    assert "no value in the graph" in missing(factors(C, T, True), torch.complex(C, T).repeat_interleave(2, -1))


def test_matrices_are_of_neighbours():
    """Where all pairs are turned alike, halves have the same factors."""
    c, s = (t[:, :1].expand(S, D // 2) for t in (C, T))
    assert named(factors(c, s, True), matrices(c, s)).kind == "matrix"
    assert "no value in the graph" in missing(factors(c, s, False), matrices(c, s))


def test_factors_of_no_position():
    row = C[:1].repeat_interleave(2, -1)
    of = row[None].expand(S, H, D)
    assert "do not change with the position" in missing(Factors(of, of, interleaved=True), row)


def test_a_square_table_is_not_the_one_that_it_is_the_transpose_of(trace):
    gm = trace(lambda t: t.mT[None] * 2, t=torch.randn(S, S))
    view = GraphView(gm.graph)
    (table,) = (n for n in view.nodes if view.shape(n) == (1, S, S) and view.source(n) is not None)
    above, excess = _unbroadcast(view, table, [0])
    assert excess == []
    assert above.op != "placeholder"
    assert view.shape(above) == (S, S)


def test_factors_of_each_batch_alone_are_none_of_a_position():
    cos, sin = (t[:B, None, None].repeat_interleave(2, -1) for t in (C, T))
    of = Factors(*(t.expand(B, S, H, D) for t in (cos, sin)), interleaved=True)
    assert "do not change with the position" in missing(of, cos, sin)
    of = Factors(*(t.expand(B, 1, H, D)[:, 0] for t in (cos, sin)), interleaved=True)
    assert named(of, cos[:, 0], sin[:, 0]).axis == 0
