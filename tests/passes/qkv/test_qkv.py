import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fluxrewrite.site import Code

B, S, H, D = 2, 5, 4, 8
I = H * D  # noqa: E741 - the width of a projection


def attend(q, k, v, heads=H):
    q, k, v = (t.unflatten(-1, (-1, D)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2).flatten(2)


class Siblings(nn.Module):
    def __init__(self, bias=(True, False, True), widths=(I, I, I), order="qkv"):
        super().__init__()
        for name, b, width in zip("qkv", bias, widths, strict=True):
            setattr(self, "to_" + name, nn.Linear(I, width, bias=b))
        self.order = order

    def forward(self, x):
        made = {name: getattr(self, "to_" + name)(x) for name in self.order}
        return attend(made["q"], made["k"], made["v"])


class Packed(nn.Module):
    def __init__(self, split, bias=True, rest=0):
        super().__init__()
        self.to_qkv = nn.Linear(I, 3 * I + rest, bias=bias)
        self.split = split

    def forward(self, x):
        q, k, v, *rest = self.split(self.to_qkv(x))
        out = attend(q, k, v)
        return torch.cat([out, *(r.relu() for r in rest)], dim=-1)


def run(check, model, **inputs):
    inputs = inputs or {"x": torch.randn(B, S, I)}
    return check(model.eval(), "qkv", **inputs)


@pytest.mark.parametrize("order", ["qkv", "vkq", "kqv"])
@pytest.mark.parametrize("bias", [(True, True, True), (False, False, False), (True, False, True)])
def test_triple_in_any_order_and_with_any_bias(check, order, bias):
    report = run(check, Siblings(bias, order=order))
    assert [(s.form, s.choice) for s in report.sites] == [("triple", "kernel")]
    assert sorted(report.sites[0].details["projections"]) == ["to_k", "to_q", "to_v"]


def test_unequal_widths_of_grouped_heads(check):
    report = run(check, Siblings(widths=(I, I // 2, I // 2)))
    assert report.sites[0].choice == "kernel"
    assert report.sites[0].shapes["key"] == I // 2


SPLITS = {
    "chunk": lambda y: y.chunk(3, dim=-1),
    "split": lambda y: y.split(I, dim=-1),
    "sizes": lambda y: torch.split(y, [I, I, I], dim=2),
    "slices": lambda y: (y[..., :I], y[..., I : 2 * I], y[:, :, -I:]),
    "narrow": lambda y: tuple(y.narrow(-1, n * I, I) for n in range(3)),
    "unflatten": lambda y: y.unflatten(-1, (3, I)).unbind(2),
    "select": lambda y: tuple(y.view(*y.shape[:-1], 3, -1)[:, :, n] for n in (0, 1, 2)),
    "flat in between": lambda y: y.flatten().view(-1, 3, I).unflatten(0, (B, S)).unbind(2),
    "parts that do not divide": lambda y: (
        y.unflatten(-1, (6, I // 2)).unflatten(2, (2, 3)).flatten(2).unflatten(2, (3, I)).unbind(2)
    ),
    "moved": lambda y: y.unflatten(-1, (3, I)).movedim(2, 0).contiguous().unbind(0),
    "through float64": lambda y: y.double().unflatten(-1, (3, I)).float().unbind(2),
    "times one": lambda y: (y * 1).chunk(3, dim=-1),
    "reversed": lambda y: y.chunk(3, dim=-1)[::-1],
}


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("bias", [True, False])
def test_packed_however_it_is_split(check, name, bias):
    report = run(check, Packed(SPLITS[name], bias))
    assert [(s.form, s.choice) for s in report.sites] == [("packed", "kernel")]


def test_packed_in_the_style_of_vision_transformers(check):
    class Vit(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(I, 3 * I)

        def forward(self, x):
            q, k, v = self.qkv(x).reshape(B, S, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    assert [(s.form, s.choice) for s in run(check, Vit()).sites] == [("packed", "kernel")]


@pytest.mark.parametrize("blocks", [1, 2])
def test_packed_projection_that_also_carries_the_mlp(check, blocks):
    rest = 24

    def split(y):
        qkv, other = y.split([3 * I, rest * blocks], dim=-1)
        return (*qkv.chunk(3, dim=-1), *other.chunk(blocks, dim=-1))

    report = run(check, Packed(split, rest=rest * blocks))
    assert [(s.form, s.choice) for s in report.sites] == [("packed", "kernel")]
    assert report.sites[0].shapes["rest"] == rest * blocks


@pytest.mark.parametrize("form", ["triple", "packed"])
def test_weights_are_passed_whole_and_no_product_stays_beside_the_call(trace, form):
    from fluxrewrite.graph import GraphView
    from fluxrewrite.rewrite.plan import apply
    from fluxrewrite.rewrite.planner import make_plan
    from fluxrewrite.rewrite.selection import Selection

    packed = Packed(lambda y: (*y[..., : 3 * I].chunk(3, -1), y[..., 3 * I : -4], y[..., -4:]), rest=8)
    gm = trace(Siblings() if form == "triple" else packed, **X)
    view = GraphView(apply(gm, make_plan(GraphView(gm.graph), Selection.of("qkv")))[0].graph)
    (call,) = view.with_op("fluxrewrite.qkv")
    assert not list(view.with_op("linear", "matmul"))
    assert all(n.op == "placeholder" for n in call.all_input_nodes)
    pieces = {
        "triple": [n for i in range(3) for n in (i, 0, I)],
        "packed": [n for i in range(3) for n in (0, i * I, I)],
    }
    rest = [0, 3 * I, 4, 0, 3 * I + 4, 4] if form == "packed" else []
    assert list(call.args[3]) == pieces[form] + rest


def test_one_weight_with_two_biases_is_two_layers(check):
    class Tied(Siblings):
        def forward(self, x):
            k, v = (F.linear(x, self.to_k.weight, b) for b in (self.to_q.bias, self.to_v.bias))
            return attend(self.to_q(x), k, v)

    assert run(check, Tied()).sites[0].choice == "kernel"


def test_mlp_between_the_roles(check):
    report = run(check, Packed(lambda y: (y[..., :I], y[..., -2 * I : -I], y[..., -I:], y[..., I : -2 * I]), rest=16))
    assert report.sites[0].choice == "kernel"


def test_query_beside_packed_key_and_value(check):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q, self.to_kv = nn.Linear(I, I), nn.Linear(I, 2 * I)

        def forward(self, x):
            return attend(self.to_q(x), *self.to_kv(x).chunk(2, dim=-1))

    assert [(s.form, s.choice) for s in run(check, Mixed()).sites] == [("mixed", "kernel")]


class Joint(nn.Module):
    """Two streams with norms, joined before attention, as in FLUX's double blocks."""

    def __init__(self):
        super().__init__()
        for name in ("q", "k", "v", "add_q", "add_k", "add_v"):
            setattr(self, name, nn.Linear(I, I))
        self.norm = nn.RMSNorm(D)

    def forward(self, x, text):
        def stream(prefix, t):
            q, k, v = (getattr(self, prefix + n)(t).unflatten(-1, (-1, D)) for n in "qkv")
            return self.norm(q), self.norm(k), v

        q, k, v = (
            torch.cat(pair, dim=1).transpose(1, 2) for pair in zip(stream("add_", text), stream("", x), strict=True)
        )
        return F.scaled_dot_product_attention(q, k, v)


def test_joint_attention_has_one_site_a_stream(check):
    report = run(check, Joint(), x=torch.randn(B, S, I), text=torch.randn(B, 3, I))
    assert [(s.form, s.choice) for s in report.sites] == [("triple", "kernel")] * 2
    assert {tuple(s.details["projections"]) for s in report.sites} == {("q", "k", "v"), ("add_q", "add_k", "add_v")}


class Cross(Siblings):
    def forward(self, x, y):
        return attend(self.to_q(x), self.to_k(y), self.to_v(y))


class PackedCross(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_kv = nn.Linear(I, I), nn.Linear(I, 2 * I)

    def forward(self, x, y):
        return attend(self.to_q(x), *self.to_kv(y).chunk(2, dim=-1))


class Apart(Siblings):
    def forward(self, x, y):
        return attend(self.to_q(x), self.to_k(y), self.to_v(y + x))


@pytest.mark.parametrize("model", [Cross(), PackedCross()])
def test_key_and_value_of_another_input_are_a_pair(check, model):
    report = run(check, model, x=torch.randn(B, S, I), y=torch.randn(B, S, I))
    assert [(s.form, s.choice) for s in report.sites] == [("pair", "kernel")]
    assert report.sites[0].shapes["columns"] == 2 * I
    assert "query" not in report.sites[0].shapes


def test_pair_of_query_and_value(check):
    class Odd(Siblings):
        def forward(self, x, y):
            return attend(self.to_q(x), self.to_k(y), self.to_v(x))

    report = run(check, Odd(), x=torch.randn(B, S, I), y=torch.randn(B, S, I))
    assert [(s.form, s.choice) for s in report.sites] == [("pair", "kernel")]


def test_pair_whose_input_is_written_between_its_layers_stays(check):
    class Written(Siblings):
        def forward(self, x, y):
            y = y + 1
            k = self.to_k(y)
            y.mul_(2.0)
            return attend(self.to_q(x), k, self.to_v(y))

    report = run(check, Written(), x=torch.randn(B, S, I), y=torch.randn(B, S, I))
    assert [r.code for s in report.sites for r in s.reasons] == [Code.MUTATION]


REPEATS = {
    "repeat_interleave": lambda t: t.repeat_interleave(2, dim=1),
    "repeat": lambda t: t.unsqueeze(2).repeat(1, 1, 2, 1, 1).flatten(1, 2),
    "expand": lambda t: t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(B, H, S, D),
}


@pytest.mark.parametrize("name", REPEATS)
def test_grouped_heads_that_are_repeated_by_hand(check, name):
    class Grouped(Siblings):
        def forward(self, x):
            made = (t.unflatten(-1, (-1, D)).transpose(1, 2) for t in (self.to_q(x), self.to_k(x), self.to_v(x)))
            q, k, v = made
            return F.scaled_dot_product_attention(q, REPEATS[name](k), REPEATS[name](v))

    report = run(check, Grouped(widths=(I, I // 2, I // 2)))
    assert [(s.form, s.choice) for s in report.sites] == [("triple", "kernel")]


class SharedKeyValue(Siblings):
    def forward(self, x):
        k = self.to_k(x)
        return attend(self.to_q(x), k, k)


class SharedTwice(Siblings):
    def forward(self, x):
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        return attend(q, k, v) + attend(k, q, v)


class NoProjection(nn.Module):
    def forward(self, x):
        return attend(x.sin(), x.cos(), x)


class WholeUsed(Packed):
    def forward(self, x):
        y = self.to_qkv(x)
        return attend(*y.chunk(3, dim=-1)).sum() + y.relu()


X = {"x": torch.randn(B, S, I)}
REFUSED = {
    "three inputs": (Apart(), {**X, "y": torch.randn(B, S, I)}, Code.DIFFERENT_INPUTS),
    "shared key and value": (SharedKeyValue(), X, Code.SHARED_ROWS),
    "no projection": (NoProjection(), X, Code.NO_PROJECTION),
    "whole result used": (WholeUsed(None), X, Code.INNER_USE),
    "interleaved heads": (
        Packed(lambda y: (t.flatten(2) for t in y.unflatten(-1, (H, 3, D)).unbind(3))),
        X,
        Code.PACKED_LAYOUT,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(find, name):
    model, inputs, code = REFUSED[name]
    assert {f.reason.code for f in find("qkv", model, **inputs)} == {code}


def test_strided_rows_are_told_with_numbers(find):
    model, inputs, _ = REFUSED["interleaved heads"]
    (miss,) = find("qkv", model, **inputs)
    assert f"{H} every {3 * D}" in miss.reason.message


def test_roles_that_change_between_two_attentions(check):
    assert {s.choice for s in run(check, SharedTwice()).sites} <= {"kernel", "keep"}


def test_low_rank_additions_stay(check):
    class Lora(Siblings):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Linear(I, 2, bias=False), nn.Linear(2, I, bias=False)

        def forward(self, x):
            return attend(self.to_q(x) + self.up(self.down(x)), self.to_k(x), self.to_v(x))

    report = run(check, Lora())
    assert [s.form for s in report.sites if s.choice == "kernel"] == ["triple"]


def test_weights_computed_late_move_the_call(check):
    class Late(Siblings):
        def forward(self, x):
            q, k = self.to_q(x), self.to_k(x)
            v = F.linear(x, self.to_v.weight * 2.0, self.to_v.bias)
            return attend(q, k, v)

    assert run(check, Late()).sites[0].choice == "kernel"


@pytest.mark.parametrize("take", [lambda y: y[0], lambda y: y.squeeze(0)])
def test_axis_of_size_one_that_is_dropped(check, take):
    class Dropped(Packed):
        def forward(self, x):
            q, k, v = (t.unflatten(-1, (-1, D)).transpose(0, 1)[None] for t in take(self.to_qkv(x)).chunk(3, dim=-1))
            return F.scaled_dot_product_attention(q, k, v)

    report = run(check, Dropped(None), x=torch.randn(1, S, I))
    assert [r.code for s in report.sites for r in s.reasons] == [Code.PACKED_LAYOUT]


def test_bias_that_broadcasts(check):
    class Broadcast(Packed):
        def forward(self, x):
            return attend(*F.linear(x, self.to_qkv.weight, self.to_qkv.bias[:1]).chunk(3, dim=-1))

    report = run(check, Broadcast(None))
    assert [r.code for s in report.sites for r in s.reasons] == [Code.AXES]


IN_PLACE = {
    "positional": lambda x: F.silu(x, True),
    "keyword": lambda x: F.relu(x, inplace=True),
    "keyword tensor": lambda x: torch.relu_(input=x),
    "power": lambda x: operator.ipow(x, 2),
    "foreach": lambda x: torch._foreach_mul_([x], 2.0),
    "out": lambda x: torch.mul(x, 2.0, out=x),
    "packet": lambda x: torch.ops.aten.mul_(x, 2.0),
    "view": lambda x: x.view(-1).mul_(2.0),
    "item": lambda x: x.__setitem__(0, 0.0),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_writes_between_the_projections(check, name):
    class Written(Siblings):
        def forward(self, x):
            x = x + 1
            q = self.to_q(x)
            IN_PLACE[name](x)
            return attend(q, self.to_k(x), self.to_v(x))

    report = run(check, Written())
    assert [r.code for s in report.sites for r in s.reasons] == [Code.MUTATION]


def test_copies_are_no_siblings_once_written_to(check):
    class Copied(Siblings):
        def forward(self, x):
            y = x.clone()
            y.add_(1.0)
            return attend(self.to_q(x), self.to_k(y), self.to_v(y))

    assert [(s.form, s.choice) for s in run(check, Copied()).sites] == [("pair", "kernel")]  # of y, without x's query


def test_golden_graphs(trace, golden):
    from fluxrewrite.graph import GraphView
    from fluxrewrite.rewrite.plan import apply
    from fluxrewrite.rewrite.planner import make_plan
    from fluxrewrite.rewrite.selection import Selection

    for name, model in {
        "triple": Siblings(),
        "packed": Packed(lambda y: (*y[..., : 3 * I].chunk(3, -1), y[..., 3 * I :]), rest=8),
    }.items():
        gm = trace(model, **X)
        golden(f"qkv_{name}_before", gm)
        rewritten, _ = apply(gm, make_plan(GraphView(gm.graph), Selection.of("qkv")))
        golden(f"qkv_{name}_after", rewritten)
