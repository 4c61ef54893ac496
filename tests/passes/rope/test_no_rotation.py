"""What a probe is not asked of, of what may turn a query or key; and tables that are taken as they are."""

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.rope.probed import _is_candidate
from fluxrewrite.passes.rope.rope import Rope
from torch import nn

from fluxrewrite.graph import GraphView
from fluxrewrite.site import Code, Site

B, S, H, D = 2, 12, 3, 8


class Attends(nn.Module):
    """Query and key from layers, through `turn`, into attention."""

    def __init__(self, turn, size=D):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(20, H * size) for _ in range(3))
        self.turn, self.size = turn, size

    def forward(self, x, **tables):
        q, k, v = (f(x).unflatten(-1, (H, self.size)) for f in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (self.turn(q, **tables), self.turn(k, **tables), v))
        return F.scaled_dot_product_attention(q, k, v)


def addcmul(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)), -1)


def known(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def flipped(x, cos, sin):
    return x * cos + x.flip(-1) * sin


def tables(width=D // 2):
    return {n: torch.randn(S, 1, width) for n in ("cos", "sin")}


def test_a_table_of_cosines_and_sines(check):
    report = check(
        Attends(lambda x, both: addcmul(x, *both.chunk(2, -1))),
        "rope",
        x=torch.randn(B, S, 20),
        both=torch.randn(S, 1, D),
    )
    assert [(s.form, s.choice) for s in report.sites] == [("probed", "kernel")] * 2


def test_views_that_change_nothing_are_no_rotations_of_their_own(find):
    def turn(x, cos, sin):
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        out = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        return out.reshape(out.shape).transpose(1, 2).transpose(1, 2) + 1

    assert [f.form for f in find("rope", turn, x=torch.randn(B, S, H, D), **tables())] == ["interleaved"]


def turned(x):
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


NEARLY = {
    "a view that changes nothing": (lambda t: t.reshape(t.shape).transpose(1, 2).exp(), "go to exp, then output; "),
    "views are not told": (lambda t: t.flatten(2).exp().flatten(1).neg(), "go to exp, then neg; "),
    "two operations are told": (lambda t: t.exp().neg().abs(), "go to exp, then neg; "),
}


@pytest.mark.parametrize("name", NEARLY)
def test_turned_pairs_are_told_once_with_what_they_go_to(find, name):
    after, said = NEARLY[name]
    (miss,) = find("rope", lambda x: after(turned(x)), x=torch.randn(B, S, H, D))
    assert said in miss.reason.message


def test_what_is_rounded_ends_a_rotation(trace):
    def turn(x, cos, sin):
        return known(x, cos, sin).bfloat16().float() + 1

    gm = trace(turn, x=torch.randn(B, S, H, D, dtype=torch.bfloat16), **tables())
    view = GraphView(gm.graph)
    (site,) = Rope().find(view)
    assert view.dtype(site.outputs[0]) == torch.bfloat16


def test_one_head_is_as_it_lies_in_memory(find):
    (site,) = find("rope", known, x=torch.randn(B, 1, S, D), **{n: torch.randn(S, D // 2) for n in ("cos", "sin")})
    assert site.extra.turned is False


def test_tables_that_broadcast_x_are_told(find):
    (miss,) = find(
        "rope", known, x=torch.randn(1, S, H, D), **{n: torch.randn(B, S, 1, D // 2) for n in ("cos", "sin")}
    )
    assert (miss.reason.code, "the tables broadcast x" in miss.reason.message) == (Code.TABLE, True)


def views_first(halves):
    def turn(x, cos, sin):
        x = x * 1.5
        a, b = halves(x)
        x.mul_(2)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    return turn


HALVES = {
    "chunk": lambda x: x.chunk(2, -1),
    "slices": lambda x: (x[..., : D // 2], x[..., D // 2 :]),
    "split and cut": lambda x: x.unflatten(-1, (2, -1)).unbind(-2),
}


@pytest.mark.parametrize("name", HALVES)
def test_a_view_sees_what_is_written_after_it(check, name):
    report = check(
        views_first(HALVES[name]), "rope", proof="structural", x=torch.randn(B, S, H, D), **tables()
    )  # fmt: skip
    assert [s.choice for s in report.sites] == ["kernel"]


def test_a_cast_of_what_is_turned_may_have_other_uses(check):
    def turn(x, cos, sin):
        wide = x.float()
        return known(wide, cos, sin), wide.sum(-1)

    report = check(turn, "rope", x=torch.randn(B, S, H, D, dtype=torch.bfloat16), **tables())
    assert [s.choice for s in report.sites] == ["kernel"]


def test_a_view_of_what_is_computed_inside_may_have_none(find):
    def turn(x, cos, sin):
        product = (x * torch.cat((cos, cos), -1)).transpose(1, 2).transpose(1, 2)
        return product + turned(x) * torch.cat((sin, sin), -1), product.sum(-1)

    (miss,) = find("rope", turn, x=torch.randn(B, S, H, D), **tables())
    assert miss.reason.code == Code.INNER_USE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_probe_found_is_cast_only_to_another_dtype(trace, dtype):
    given = {"x": torch.randn(B, S, 20, dtype=dtype), **tables()}
    view = GraphView(trace(Attends(lambda x, **t: addcmul(x, **t).to(dtype)).to(dtype), **given).graph)
    sites = [s for s in Rope().find(view) if isinstance(s, Site)]
    assert [(s.form, s.extra.out_dtype) for s in sites] == [("probed", None)] * 2


@pytest.mark.parametrize("turn", [addcmul, known])
def test_projections_are_found_above_rotations_of_any_form(check, turn):
    report = check(Attends(turn), "qkv", x=torch.randn(B, S, 20), **tables())
    assert [(s.form, s.choice) for s in report.sites] == [("triple", "kernel")]


def test_a_table_that_was_rounded_is_not_the_one_above(check):
    def turn(x, cos, sin):
        return addcmul(x, *(t.bfloat16()[:, None] for t in (cos, sin)))

    given = {n: t[:, 0] for n, t in tables().items()}
    report = check(Attends(turn), "rope", x=torch.randn(B, S, 20), **given)
    assert [(s.form, s.choice) for s in report.sites] == [("probed", "kernel")] * 2


def test_channels_picked_by_an_index(find):
    def turn(x, cos, sin):
        order, sign = (torch.arange(D) + D // 2) % D, torch.where(torch.arange(D) < D // 2, -1.0, 1.0)
        return x * torch.cat((cos, cos), -1) + x[..., order] * (sign * torch.cat((sin, sin), -1))

    assert [f.form for f in find("rope", Attends(turn), x=torch.randn(B, S, 20), **tables())] == ["probed"] * 2


def test_what_follows_a_known_rotation_is_not_looked_at(find):
    def turn(x, cos, sin):
        return flipped(known(x, cos, sin).exp(), torch.cat((cos, cos), -1), torch.cat((sin, sin), -1))

    assert [f.form for f in find("rope", Attends(turn), x=torch.randn(B, S, 20), **tables())] == ["rotate_half"] * 2


def test_what_a_known_form_refuses_is_not_asked_for_otherwise(find):
    class Leaks(Attends):
        def forward(self, x, **given):
            self.inner = []
            return super().forward(x, **given), *self.inner

    def turn(x, cos, sin):
        product = x * torch.cat((cos, cos), -1)
        first, second = x.chunk(2, dim=-1)
        model.inner.append(product)
        return product + torch.cat((-second, first), dim=-1) * torch.cat((sin, sin), -1)

    model = Leaks(turn)
    found = find("rope", model, x=torch.randn(B, S, 20), **tables())
    assert [(f.reason.code, f.form) for f in found] == [(Code.INNER_USE, "")] * 2


def test_a_rotation_does_not_end_in_a_cast_that_changes_nothing(check):
    """Attention reads what is above such a cast: the call would be read by nobody."""

    def turn(x, cos, sin):
        return addcmul(x, cos, sin).to(x.dtype).view(x.shape)

    report = check(Attends(turn), x=torch.randn(B, S, 20), **tables())
    assert {(s.kind, s.choice) for s in report.sites if s.kind in ("rope", "attention")} == {
        ("rope", "kernel"),
        ("attention", "kernel"),
    }


def flip(x, t):
    return x.flip(-1) * t


PAIRS = {
    "three axes": (flip, (B, S, D), torch.randn(S, D), True),
    "two axes": (flip, (S, D), torch.randn(S, D), False),
    "one pair": (flip, (B, S, 2), torch.randn(S, 2), False),
    "nothing moves": (lambda x, t: x * t, (B, S, D), torch.randn(S, D), False),
    "a table of integers": (flip, (B, S, D), torch.arange(S * D).view(S, D), False),
    "complex numbers": (lambda x, t: flip(x, t).real, (B, S, D), torch.randn(S, D), False),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_worth_a_probe(trace, name):
    fn, shape, table, worth = PAIRS[name]
    x = torch.randn(shape, dtype=torch.complex64 if name == "complex numbers" else torch.float32)
    view = GraphView(trace(fn, x=x, t=table).graph)
    x, _, *nodes, _ = view.nodes
    assert _is_candidate(view, x, nodes[-1], nodes, {x, *nodes}) is worth


def test_no_more_than_so_many_are_tried(find, monkeypatch):
    monkeypatch.setattr("fluxrewrite.passes.rope.probed._TRIALS", 0)
    assert find("rope", Attends(addcmul), x=torch.randn(B, S, 20), **tables()) == []


def in_complex_numbers(x, table):
    return torch.view_as_real(torch.complex(x, x.flip(-1)) * table).flatten(-2)


NOTHING = {
    "a complex result": (in_complex_numbers, D, {"table": torch.randn(S, 1, D, dtype=torch.complex64)}),
    "an odd number of channels": (flipped, 9, tables(9)),
    "no table but a number": (lambda x, number: x.flip(-1) * number, D, {"number": torch.randn(1)}),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_turns_no_pairs_is_nothing(find, name):
    turn, size, given = NOTHING[name]
    assert find("rope", Attends(turn, size), x=torch.randn(B, S, 20), **given) == []


def by_half(x):
    return x.roll(x.shape[1] // 2, 1)


def unprojected(q, k, v, cos, sin):
    q, k, v = (t.transpose(1, 2) for t in (flipped(q, cos, sin), flipped(k, cos, sin), v))
    return F.scaled_dot_product_attention(q, k, v)


UNKNOWN = {
    "a number is no table": (Attends(by_half), {"x": torch.randn(B, S, 20)}),
    "channels": (unprojected, {n: torch.randn(B, S, H, D) for n in "qkv"} | tables(D)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_sizes_that_are_not_known(trace, name):
    fn, given = UNKNOWN[name]
    assert Rope().find(GraphView(trace(fn, dynamic=True, **given).graph)) == []
