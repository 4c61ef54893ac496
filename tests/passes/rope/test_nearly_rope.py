"""What is nearly a rotation is left alone, and the reason says what it is."""

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.rope.rope import Rope
from torch import nn

from fluxrewrite.graph import GraphView
from fluxrewrite.models.capture import capture
from fluxrewrite.site import Code, Miss

B, S, H, D = 2, 12, 3, 8
TABLES = {"cos": torch.randn(S, 1, D // 2), "sin": torch.randn(S, 1, D // 2)}


class Attends(nn.Module):
    """Query and key from layers, through `turn`, into attention."""

    def __init__(self, turn):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(20, H * D) for _ in range(3))
        self.turn = turn

    def forward(self, x, **tables):
        q, k, v = (f(x).unflatten(-1, (H, D)) for f in (self.q, self.k, self.v))
        q, k = self.turn(q, **tables), self.turn(k, **tables)
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))


def _findings(model, **given):
    (gm,) = capture(model, {"x": torch.randn(B, S, 20), **given}).graphs
    return Rope().find(GraphView(gm.graph))


def addcmul(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)), -1)


def reflected(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((torch.addcmul(a * cos, b, sin), torch.addcmul(b * cos, a, sin)), -1)


def turned_back(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((torch.addcmul(a * cos, b, sin), torch.addcmul(b * cos, a, sin, value=-1)), -1)


def stretched(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * (cos * 2), a, sin)), -1)


def sine_scaled_a_little(x, cos, sin):
    a, b = x.chunk(2, -1)
    turned = torch.addcmul(a * cos, b, sin, value=-1.001)
    return torch.cat((turned, torch.addcmul(b * cos, a, sin, value=1.001)), -1)


def a_channel_scaled_a_little(x, cos, sin):
    a, b = x.chunk(2, -1)
    a = a * torch.where(torch.arange(D // 2) == 1, 1.001, 1.0)
    turned = torch.addcmul(b * cos, a, sin)
    return torch.cat((torch.addcmul(x.chunk(2, -1)[0] * cos, b, sin, value=-1), turned), -1)


def halves(x, cos, sin, change):
    """The same change in both halves, so that there is no rotation within."""
    a, b = x.chunk(2, -1)
    return torch.cat((torch.addcmul(change(a * cos), b, sin, value=-1), torch.addcmul(change(b * cos), a, sin)), -1)


def limited(x, cos, sin):
    return halves(x, cos, sin, lambda t: t.clamp(-1e4, 1e4))


def table_limited(x, cos, sin):
    return halves(x, cos, sin, lambda t: t * torch.where(cos > 1e4, 0.0, 1.0))


def on_another_input(x, cos, sin, given):
    return halves(x, cos, sin, lambda t: t * (given < 512).float())


def other_pairs(x, cos, sin):
    a, b = x.unflatten(-1, (2, 2, 2)).unbind(-2)
    c, s = cos.unflatten(-1, (2, 2)), sin.unflatten(-1, (2, 2))
    return torch.stack((torch.addcmul(a * c, b, s, value=-1), torch.addcmul(b * c, a, s)), -2).flatten(-3)


def turned_by(x):
    sign = torch.cat((-torch.ones(D // 2), torch.ones(D // 2)))
    return x.roll(D // 2, -1) * sign


def three_mixed(x, cos, sin):
    c, s = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    return x * c + x.roll(1, -1) * s + turned_by(x) * s


def positions_mixed(x, cos, sin):
    return x * torch.cat((cos, cos), -1) + turned_by(x.roll(1, 1)) * torch.cat((sin, sin), -1)


def not_linear(x, cos, sin):
    return x * torch.cat((cos, cos), -1) + turned_by(x) * x.abs() * torch.cat((sin, sin), -1)


def shifted(x, cos, sin):
    c, s = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    return (x * c + s) + turned_by(x) * s


def table_of_x(x, cos, sin):
    angle = x.mean((0, 2), keepdim=True)[0][..., : D // 2]
    return addcmul(x, angle.cos() * cos, angle.sin() * sin)


def a_table_for_each_head(x, cos, sin):
    return addcmul(x, cos * torch.arange(1.0, H + 1)[:, None], sin)


def without_positions(x, cos, sin):
    return addcmul(x, cos[0], sin[0])


def by_a_given_order(x, cos, sin, order):
    sign = torch.tensor([-1.0, 1.0]).repeat(D // 2)
    return x * cos.repeat_interleave(2, -1) + x.index_select(-1, order) * (sign * sin.repeat_interleave(2, -1))


def dropped_out(x, cos, sin):
    return x * torch.cat((cos, cos), -1) + F.dropout(turned_by(x), 0.5, True) * torch.cat((sin, sin), -1)


def written_into(x, cos, sin):
    turned = x.roll(D // 2, -1) * torch.cat((-sin, sin), -1)
    turned.add_(x * torch.cat((cos, cos), -1))
    return turned + 0.0


ORDER = torch.arange(D).unflatten(0, (-1, 2)).flip(-1).flatten()
WRONG = {
    reflected: ("[[c, s], [s, c]], which is not a rotation", Code.PROBED),
    turned_back: ("no value in the graph is the table of sin", Code.PROBED),
    stretched: ("which are not a rotation", Code.PROBED),
    a_channel_scaled_a_little: ("which are not a rotation", Code.PROBED),
    sine_scaled_a_little: ("no value in the graph is the table of sin", Code.PROBED),
    limited: ("not linear in inputs that are very large", Code.PROBED),
    table_limited: ("not in proportion to tables", Code.PROBED),
    on_another_input: ("for other values", Code.PROBED),
    other_pairs: ("neither neighbours nor halves are paired", Code.PROBED),
    three_mixed: ("more than pairs are mixed", Code.PROBED),
    positions_mixed: ("depends on other rows", Code.PROBED),
    not_linear: ("not linear", Code.PROBED),
    shifted: ("zeros do not become zeros", Code.PROBED),
    table_of_x: ("not linear", Code.PROBED),
    a_table_for_each_head: ("not by position alone", Code.PROBED),
    without_positions: ("do not change with the position", Code.PROBED),
    by_a_given_order: ("channel", Code.PROBED),
    dropped_out: ("draws random numbers", Code.NOT_PROBED),
    written_into: ("writes to", Code.NOT_PROBED),
}


@pytest.mark.parametrize("turn", WRONG, ids=lambda f: f.__name__)
def test_what_is_nearly_one_is_left_alone_with_what_it_is(check, turn):
    said, code = WRONG[turn]
    given = {by_a_given_order: {"order": ORDER}, on_another_input: {"given": torch.tensor(3)}}.get(turn, {})
    findings = _findings(Attends(turn), **TABLES, **given)
    assert all(isinstance(f, Miss) for f in findings)
    assert {f.reason.code for f in findings} == {code}
    assert all(said in f.reason.message and f.reason.node for f in findings), findings
    if turn is not dropped_out:  # which draws other numbers in each run
        report = check(Attends(turn), "rope", x=torch.randn(B, S, 20), **TABLES, **given)
        assert {s.choice for s in report.sites} == {"keep"}
