"""Tables with rows for each head, and of tensors without a batch."""

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.rope.rope import Rope
from fluxrewrite.passes.rope.tables import Unfit, read_tables
from torch.fx import Graph

from fluxrewrite.graph import GraphView
from fluxrewrite.site import Code

B, S, H, D = 2, 6, 3, 8


def half(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def pairwise(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


def complex_product(x, cos, sin):
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


def by_matrix(x, cos, sin):
    r = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
    return (r * x.unflatten(-1, (-1, 1, 2))).sum(-1).flatten(-2)


def table(*shape):
    return {"cos": torch.randn(*shape), "sin": torch.randn(*shape)}


PER_HEAD = {
    "heads first": ((B, H, S, D), (H, S)),
    "positions first": ((B, S, H, D), (S, H)),
    "one batch": ((B, S, H, D), (1, S, H)),
    "each batch": ((B, H, S, D), (B, H, S)),
}


@pytest.mark.parametrize("name", PER_HEAD)
@pytest.mark.parametrize(
    ("fn", "width"), [(half, D), (pairwise, D // 2), (complex_product, D // 2), (by_matrix, D // 2)]
)
def test_rows_for_each_head(check, name, fn, width):
    shape, rows = PER_HEAD[name]
    (site,) = check(fn, "rope", x=torch.randn(shape), **table(*rows, width)).sites
    assert (site.choice, site.shapes["sequence"], site.shapes["heads"]) == ("kernel", S * H, 1)


@pytest.mark.parametrize(
    ("fn", "width"), [(half, D), (pairwise, D // 2), (complex_product, D // 2), (by_matrix, D // 2)]
)
def test_no_batch(check, fn, width):
    (site,) = check(fn, "rope", x=torch.randn(S, H, D), **table(S, 1, width)).sites
    assert (site.choice, site.shapes["sequence"], site.shapes["heads"]) == ("kernel", S, H)


def test_rows_for_each_head_and_for_all_heads_do_not_go_together(check):
    report = check(half, "rope", x=torch.randn(B, S, H, D), cos=torch.randn(S, H, D), sin=torch.randn(S, 1, D))
    assert [r.code for s in report.sites for r in s.reasons] == [Code.TABLE]


def region(fn):
    def run(q, k, v, gain, cos, sin):
        q, k = (fn(F.rms_norm(t, (D,), gain, 1e-6), cos, sin).transpose(1, 2) for t in (q, k))
        return F.scaled_dot_product_attention(q, k, v.transpose(1, 2)).transpose(1, 2)

    return run


def test_a_region_takes_matrices(check):
    heads = {name: torch.randn(B, S, H, D) for name in "qkv"}

    def fn(x, r, _):
        return (r * x.unflatten(-1, (-1, 1, 2))).sum(-1).flatten(-2)

    r = torch.randn(S, 1, D // 2, 2, 2)
    report = check(region(fn), gain=torch.randn(D), **heads, cos=r, sin=r)
    assert [s.kind for s in report.sites if s.choice == "kernel"] == ["norm_rope_attention"]


def test_a_region_does_not_take_rows_for_each_head(check):
    heads = {name: torch.randn(B, S, H, D) for name in "qkv"}
    report = check(region(half), gain=torch.randn(D), **heads, **table(S, H, D))
    chosen = sorted(s.kind for s in report.sites if s.choice == "kernel")
    assert chosen == ["attention", "rope", "rope"]
    assert [r.code for s in report.sites if s.kind == "norm_rope_attention" for r in s.reasons] == [Code.TABLE]


PLACED = {
    "more batches than x": ((1, S, H, D), (B, S, 1, D), 1),
    "more positions than x": ((B, 1, H, D), (S, 1, D), 1),
    "one row for all positions": ((S, H, D), (1, 1, D), 1),
    "one row for each batch": ((B, S, H, D), (B, 1, 1, D), 1),
    "a matrix for each channel": ((B, S, H, D), (S, 1, D, 2, 2), 3),
}


@pytest.mark.parametrize("name", PLACED)
def test_tables_that_have_no_row_for_each_position(name):
    *shapes, tail = PLACED[name]
    graph = Graph()
    x, rows = (graph.placeholder(n) for n in ("x", "rows"))
    for node, shape in zip((x, rows), shapes, strict=True):
        node.meta["example_value"] = torch.empty(shape)
    found = read_tables(GraphView(graph), x, {"cos": rows, "sin": rows}, tail)
    assert isinstance(found, Unfit)
    assert (found.code, found.node) == (Code.TABLE, rows)


SQUARE = {
    "transposed": lambda t: t[None].transpose(1, 2)[:, :, None],
    "rounded": lambda t: t[None].bfloat16()[:, :, None],
    "widened": lambda t: t[None].double().float()[:, :, None],
}


@pytest.mark.parametrize("name", SQUARE)
def test_a_table_made_of_another_of_its_shape(check, name):
    """The one above may stand for it only where views and casts between them change nothing."""
    made = SQUARE[name]
    report = check(
        lambda x, cos, sin: half(x, made(cos), made(sin)), "rope", proof="structural", x=torch.randn(B, D, H, D),
        **table(D, D),
    )  # fmt: skip
    assert [s.choice for s in report.sites] == ["kernel"]


def test_one_row_for_all_positions_of_a_tensor_without_a_batch(find):
    (miss,) = find("rope", half, x=torch.randn(S, H, D), **table(1, 1, D))
    assert miss.reason.code == Code.TABLE


def test_rows_for_each_head_of_sizes_that_are_not_known(trace):
    def fn(x, cos, sin):
        return half(x.unflatten(-1, (H, D)), cos, sin)

    gm = trace(fn, dynamic=True, x=torch.randn(B, S, H * D), **table(S, H, D))
    (miss,) = Rope().find(GraphView(gm.graph))
    assert miss.reason.code == Code.TABLE


def test_tables_of_half_of_the_channels_where_their_number_is_not_known(trace):
    def fn(x, angle):
        return x * torch.cat([(angle[:, None, None] * torch.arange(x.shape[-1] // 2)).cos()] * 2, -1)

    view = GraphView(trace(fn, dynamic=True, x=torch.randn(B, S, H, D), angle=torch.randn(S)).graph)
    x = next(n for n in view.nodes if n.op == "placeholder" and len(view.shape(n) or ()) == 4)
    (rows,) = view.with_op("cos")
    found = read_tables(view, x, {"cos": rows, "sin": rows})
    assert isinstance(found, Unfit)
