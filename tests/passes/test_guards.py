"""What the passes refuse: a case for each guard that no other test makes refuse. `make mutate` tells which these are."""

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.attention.attention import Attention

from fluxrewrite.graph import GraphView
from fluxrewrite.site import Code, Miss, Site

B, H, S, L, D = 2, 3, 6, 7, 8


def codes(findings):
    return [f.reason.code if isinstance(f, Miss) else f.form for f in findings]


def heads(q=(B, H, S, D), k=(B, H, L, D), v=(B, H, L, D), dtype=torch.float32):
    return {name: torch.randn(shape, dtype=dtype) for name, shape in zip("qkv", (q, k, v), strict=True)}


def spelled(q, k, v, change=lambda s: s, after=lambda p: p):
    return after(change(q @ k.transpose(-1, -2)).softmax(-1)) @ v


def added(base, q, k, v, change=lambda s: s, **factors):
    return torch.bmm(change(torch.baddbmm(base, q, k.transpose(1, 2), **factors)).softmax(-1), v)


FOLDED = {**heads((H, S, D), (H, L, D), (H, L, D)), "base": torch.randn(H, S, L)}
LOWEST = torch.finfo(torch.bfloat16).min
ATTENTION = {
    "dropout of a training model": (lambda q, k, v: spelled(q, k, v, after=lambda p: F.dropout(p, 0.5)), heads(), Code.DROPOUT),
    "part of a mask": (lambda base, q, k, v: added(base, q, k, v, beta=0.5), FOLDED, Code.PATTERN),
    "two masks": (lambda base, q, k, v: added(base, q, k, v, lambda s: s + base), FOLDED, Code.PATTERN),
    "scores scaled with their mask": (lambda base, q, k, v: added(base, q, k, v, lambda s: s * 0.5), FOLDED, Code.PATTERN),
    "a fill that does not absorb float64": (
        lambda q, k, v: spelled(q, k, v, lambda s: s.masked_fill(torch.ones(S, L, dtype=torch.bool).triu(), LOWEST)),
        heads(dtype=torch.float64), Code.MASK,
    ),
    "one batch of keys": (F.scaled_dot_product_attention, heads(k=(1, H, L, D), v=(1, H, L, D)), Code.AXES),
    "one batch of values": (F.scaled_dot_product_attention, heads(v=(1, H, L, D)), Code.AXES),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_that_the_op_cannot_say(find, name):
    fn, inputs, code = ATTENTION[name]
    argument = {"query": inputs["q"], "key": inputs["k"], "value": inputs["v"]}
    given = argument if fn is F.scaled_dot_product_attention else inputs
    assert codes(find("attention", fn, **given)) == [code]


@pytest.mark.parametrize("name", ["is_causal", "scale"])
def test_options_that_the_graph_computes(trace, name):
    gm = trace(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), **heads())
    view = GraphView(gm.graph)
    (call,) = view.with_op("sdpa")
    call.kwargs = {**call.kwargs, name: call.args[0]}
    assert codes(Attention().find(GraphView(gm.graph))) == [Code.PATTERN]


def half(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def interleaved(x, cos, sin):
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-second, first), dim=-1).flatten(-2) * sin


def region(turn_q, turn_k, norm_q, norm_k, join=lambda t, _: t):
    """Attention of rotated, normed heads [B, S, H, D]."""

    def run(q, k, v, gain, cos, sin):
        q, k = turn_q(join(norm_q(q, gain), "q"), cos, sin), turn_k(join(norm_k(k, gain), "k"), cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, join(v, "v")))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return run


def rms(x, gain):
    return F.rms_norm(x, (D,), gain, 1e-6)


def in_two(lengths):
    """Streams of other lengths for each of q, k and v; one stream where there is one length."""

    def join(t, role):
        return torch.cat([p.sin() if role == "v" else rms_free(p) for p in t.split(lengths[role], 1)], 1)

    return join


def rms_free(x):
    return F.rms_norm(x, (D,), torch.ones(D), 1e-6)


def plain(x, _):
    return x


REGION = {
    "a query that is not turned": (region(lambda x, c, s: x, half, rms, rms), Code.PATTERN),
    "query and key turned in other pairs": (region(interleaved, half, rms, rms), Code.TABLE),
    "norm of all heads": (
        region(half, half, lambda x, g: F.rms_norm(x, (H, D), g.expand(H, D), 1e-6), rms), Code.PATTERN,
    ),
    "eps of the dtype": (region(half, half, *2 * [lambda x, g: F.rms_norm(x, (D,), g)]), Code.PATTERN),
    "values of one stream": (
        region(half, half, plain, plain, lambda t, role: t if role == "v" else in_two({role: [2, S - 2]})(t, role)),
        Code.PATTERN,
    ),
    "streams of other lengths": (
        region(half, half, plain, plain, in_two({"q": [2, S - 2], "k": [S - 2, 2], "v": [S - 2, 2]})), Code.PATTERN,
    ),
    "keys of other lengths": (
        region(half, half, plain, plain, in_two({"q": [2, S - 2], "k": [S - 2, 2], "v": [2, S - 2]})), Code.PATTERN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REGION)
def test_regions_that_the_op_cannot_say(find, name):
    fn, code = REGION[name]
    made = {n: torch.randn(B, S, H, D) for n in "qkv"}
    tables = {n: torch.randn(S, 1, D) for n in ("cos", "sin")}
    found = find("norm_rope_attention", fn, **made, gain=torch.randn(D), **tables)
    assert codes(found) == [code]


@pytest.mark.parametrize("written", ["gain", "cos", "q"])
def test_a_region_is_left_where_what_it_reads_is_written_before_its_end(find, written):
    def fn(q, k, v, gain, cos, sin):
        given = {"gain": gain, "cos": cos, "q": q}

        def turn(x, c, s):
            turned = half(x, c, s)
            given[written].narrow(-1, 0, 1).add_(1.0)
            return turned

        return region(turn, half, rms, rms)(q, k, v, gain, cos, sin)

    made = {n: torch.randn(B, S, H, D) for n in "qkv"}
    tables = {n: torch.randn(S, 1, D) for n in ("cos", "sin")}
    found = find("norm_rope_attention", fn, **made, gain=torch.randn(D), **tables)
    assert not any(isinstance(f, Site) for f in found)
    if written == "gain":
        assert codes(found) == [Code.MUTATION]


def pairs_of(x):
    return x.unflatten(-1, (-1, 1, 2))


def on_pairs(change):
    return lambda x, r: change(x, r).flatten(-2)


SUMS = {
    "sum in another dtype": (on_pairs(lambda x, r: (r * pairs_of(x)).sum(-1, dtype=torch.float64)), (4, 2, 2)),
    "sum of sums": (on_pairs(lambda x, r: (r + pairs_of(x)).sum(-1)), (4, 2, 2)),
    "a matrix for all pairs": (on_pairs(lambda x, r: (r * pairs_of(x)).sum(-1)), (1, 2, 2)),
    "a matrix for all positions and pairs": (lambda x, r: (r * pairs_of(x)).sum(-1).flatten(-2), (2, 2)),
    "pairs that stay pairs": (lambda x, r: (r * pairs_of(x)).sum(-1).sin(), (4, 2, 2)),
    "a product and something else": (
        on_pairs(lambda x, r: r[..., 0] * pairs_of(x)[..., 0] + r[..., 1]), (4, 2, 2),
    ),
    "a column and no column": (
        on_pairs(lambda x, r: r[..., 0] * pairs_of(x)[..., 0] + r[..., 1] * pairs_of(x).sum(-1)), (4, 2, 2),
    ),
    "a column and a number": (on_pairs(lambda x, r: r[..., 0] * 2.0 + r[..., 1] * pairs_of(x)[..., 1]), (4, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_sums_that_are_no_rotation(find, name):
    fn, size = SUMS[name]
    lead = (S, 1) if len(size) == 3 else ()
    found = find("rope", fn, x=torch.randn(B, S, H, D), r=torch.randn(*lead, *size))
    assert not any(isinstance(f, Site) for f in found)


def writing(first, second, size=D, before=lambda out: None):
    """A pairwise rotation written into `first` and `second` of an empty tensor."""

    def run(x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        out = torch.zeros(*x.shape[:-1], size)
        before(out)
        out[first] = a * cos - b * sin
        out[second] = a * sin + b * cos
        return out * 2

    return run


WRITES = {
    "some positions": writing(
        (slice(None), slice(0, S), slice(None), slice(0, D, 2)), (..., slice(1, D + 1, 2)), D + 2
    ),
    "more than pairs": writing((..., slice(0, D, 2)), (..., slice(1, D, 2)), D + 2),
    "one half twice": writing((..., slice(0, None, 2)), (..., slice(0, None, 2))),
    "halves of two kinds": writing((..., slice(0, None, 2)), (..., slice(D // 2, None))),
    "an odd axis": writing((..., slice(0, D, 2)), (..., slice(1, D, 2)), D + 1),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_that_are_no_two_halves(find, name):
    tables = {n: torch.randn(S, 1, D // 2) for n in ("cos", "sin")}
    assert not any(isinstance(f, Site) for f in find("rope", WRITES[name], x=torch.randn(B, S, H, D), **tables))


def test_a_write_of_the_fresh_tensor_itself_is_no_half(find):
    def fn(x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        out = torch.zeros_like(x)
        out[..., 0::2] = a * cos - b * sin
        out[..., 1::2] = a * sin + b * cos + out[..., 0::2]
        return out * 2

    tables = {n: torch.randn(S, 1, D // 2) for n in ("cos", "sin")}
    assert not any(isinstance(f, Site) for f in find("rope", fn, x=torch.randn(B, S, H, D), **tables))


TABLES = {
    "two axes": (half, (S, D), (S, D), Code.AXES),
    "five axes": (half, (1, B, S, H, D), (S, 1, D), Code.AXES),
    "one value for all lanes": (half, (B, S, H, D), (S, 1, 1), Code.TABLE),
    "a table wider than x": (half, (B, S, 1, D), (S, H, D), Code.TABLE),
    "more positions than x": (half, (B, 1, H, D), (S, 1, D), Code.TABLE),
    "more batches than x": (half, (1, S, H, D), (B, S, 1, D), Code.TABLE),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_the_op_cannot_say(find, name):
    fn, x, rows, code = TABLES[name]
    found = find("rope", fn, x=torch.randn(x), cos=torch.randn(rows), sin=torch.randn(rows))
    assert codes(found) == [code]


def test_pairs_that_were_rounded_are_not_those_of_x(find):
    def fn(x, cos, sin):
        pairs = torch.view_as_complex(x.bfloat16().float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)

    tables = {n: torch.randn(S, 1, D // 2) for n in ("cos", "sin")}
    found = find("rope", fn, x=torch.randn(B, S, H, D), **tables)
    assert not any(isinstance(f, Site) and f.operands["x"].op == "placeholder" for f in found)


def test_pairs_that_are_no_last_axis_of_anything_are_no_rotation(find):
    def fn(pairs, cos, sin):
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin)).flatten(-2)

    tables = {n: torch.randn(S, 1, D // 2) for n in ("cos", "sin")}
    found = find("rope", fn, pairs=torch.randn(B, S, H, D // 2, 2), **tables)
    assert codes(found) == [Code.PATTERN]


def test_values_joined_along_another_axis_are_one_stream(find):
    def fn(q, k, v, w, gain, cos, sin):
        return region(half, half, rms, rms)(q, k, torch.cat([v, w], -1), gain, cos, sin)

    made = {n: torch.randn(B, S, H, D) for n in "qk"} | {n: torch.randn(B, S, H, D // 2) for n in "vw"}
    tables = {n: torch.randn(S, 1, D) for n in ("cos", "sin")}
    (site,) = find("norm_rope_attention", fn, **made, gain=torch.randn(D), **tables)
    assert site.form == "single"
    assert site.operands["v"][0] not in site.interior


class Packed(torch.nn.Module):
    """Attention of one head on what `parts` makes of one projection."""

    def __init__(self, parts):
        super().__init__()
        self.parts, self.rows = parts, torch.nn.Linear(D, 3 * D)

    def forward(self, x):
        return F.scaled_dot_product_attention(*(t.unsqueeze(1) for t in self.parts(self.rows(x))))


PACKED = {
    "rows cast together": (lambda y: y.double().chunk(3, -1), "or casts"),
    "rows rounded together": (lambda y: y.bfloat16().chunk(3, -1), "mixes with other axes"),
    "rows of every third position": (lambda y: y.reshape(B, 3 * S, D).split(S, 1), "mixes the rows"),
    "a query of two blocks": (
        lambda y: (torch.cat([y[..., :4], y[..., 12:16]], -1), y[..., 4:12], y[..., 16:]), "expected one block of rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_rows_that_are_no_blocks_of_the_layer(find, name):
    parts, message = PACKED[name]
    (miss,) = find("qkv", Packed(parts), x=torch.randn(B, S, D))
    assert miss.reason.code == Code.PACKED_LAYOUT
    assert message in miss.reason.message
