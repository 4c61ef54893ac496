import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.search import MARGIN, blocks, choose
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Site

TOKENS, SIZE = 8, 16
INPUTS = {"x": torch.randn(1, 2, TOKENS, SIZE), "cos": torch.randn(TOKENS, SIZE), "sin": torch.randn(TOKENS, SIZE)}


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Block(nn.Module):
    def __init__(self, size=SIZE):
        super().__init__()
        self.norm = nn.RMSNorm(SIZE)

    def forward(self, x, cos, sin):
        y = rotate(self.norm(x), cos, sin)
        return x + F.scaled_dot_product_attention(y, y, x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x, cos, sin):
        for layer in self.layers:
            x = layer(x, cos, sin)
        return rotate(x, cos, sin)


@pytest.fixture
def model(trace):
    view = GraphView(trace(Model(), **INPUTS).graph)
    found = make_plan(view, Selection.of(("attention", "rope"), "reference"), "none").decisions
    return view, [d.finding for d in found if isinstance(d.finding, Site)]


def test_blocks_are_the_numbered_modules_and_the_rest(model):
    view, sites = model
    found = {b.path: b for b in blocks(view, sites)}
    assert set(found) == {"layers.0", "layers.1", ""}
    assert sorted(s.kind for s in found["layers.0"].sites) == ["attention", "rope"]
    assert [s.kind for s in found[""].sites] == ["rope"]
    assert found["layers.0"].signature == found["layers.1"].signature != found[""].signature
    for block in found.values():
        inside = {n for s in block.sites for n in (*s.interior, *s.outputs)}
        assert inside <= set(block.nodes)
        assert list(block.nodes) == sorted(block.nodes, key=view.order)


def prices(**of):
    """A price of 100 that each kind of kernel changes by so much; and what was asked."""
    asked = []

    def price(block, taken):
        asked.append((block.path, tuple(sorted(s.kind for s in taken))))
        return 100 + sum(of[s.kind] for s in taken)

    return price, asked


def test_what_makes_a_block_faster_is_taken_in_all_like_it(model, each):
    price, asked = prices(rope=-10, attention=30)
    chosen, choices = choose(*model, each(price))
    assert [s.kind for s in chosen] == ["rope"] * 3
    assert {path for path, _ in asked} == {"layers.0", ""}, "a block like one decided is not asked again"
    first = next(c for c in choices if c.block == "layers.0")
    assert first.blocks == 2
    assert first.chosen == "rope:rotate_half"
    assert first.times == {
        "none": 100,
        "rope:rotate_half": 90,
        "attention:sdpa": 130,
        "attention:sdpa + rope:rotate_half": 120,
    }
    assert dict(first.single_kernel_delta) == {"rope": -10, "attention": 30}


def test_kernels_that_pay_only_together_are_taken_together(model, each):
    def price(block, taken):
        return 80 if len(taken) == 2 else 100 + 10 * len(taken)

    chosen, choices = choose(*model, each(price))
    assert {id(s) for s in chosen} == {id(s) for s in model[1] if s.path.startswith("layers")}
    assert next(c for c in choices if not c.block).chosen == "none"


def test_expensive_prices_are_requested_for_fewer_sets(trace, each):
    class Four(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Identity()])

        def forward(self, x, cos, sin):
            parts = [rotate(x[:, :, :n], cos[:n], sin[:n]).sum() for n in (2, 4, 6, 8)]
            return sum(parts)

    view = GraphView(trace(Four(), **INPUTS).graph)
    sites = [d.finding for d in make_plan(view, Selection.of("rope", "reference"), "none").decisions]
    saved = {2: -10, 4: 5, 6: 5, 8: -4}
    asked = {}
    for expensive in (False, True):
        seen = asked[expensive] = set()
        price = lambda block, taken, seen=seen: (  # noqa: E731
            seen.add(tuple(s.shapes["sequence"] for s in taken))
            or 100 + sum(saved[s.shapes["sequence"]] for s in taken)
        )
        chosen, _ = choose(view, sites, each(price, expensive))
        assert [s.shapes["sequence"] for s in chosen] == [2, 8]
    assert asked[True] == {(), (2,), (4,), (6,), (8,), (2, 4, 6, 8), (2, 8)} < asked[False]


def test_expensive_blocks_of_a_list_that_differ_at_their_ends_are_one(trace, each):
    class Longer(Block):
        def forward(self, x, cos, sin):
            return torch.relu(super().forward(x, cos, sin))

    model = Model()
    model.layers = nn.ModuleList([Longer(), Block()])
    view = GraphView(trace(model, **INPUTS).graph)
    found = make_plan(view, Selection.of(("attention", "rope"), "reference"), "none").decisions
    sites = [d.finding for d in found if isinstance(d.finding, Site)]
    numbers = {}
    for expensive in (False, True):
        price, _ = prices(rope=-10, attention=30)
        chosen, choices = choose(view, sites, each(price, expensive))
        assert [s.kind for s in chosen] == ["rope"] * 3
        numbers[expensive] = sorted(c.blocks for c in choices)
    assert numbers == {False: [1, 1, 1], True: [1, 2]}


@pytest.mark.parametrize(("saved", "kinds"), [(MARGIN * 100 - 0.1, []), (MARGIN * 100 + 0.1, ["rope"] * 3)])
def test_less_than_the_margin_is_nothing(model, saved, kinds, each):
    price, _ = prices(rope=-saved, attention=1)
    assert [s.kind for s in choose(*model, each(price))[0]] == kinds


def test_equal_times_take_the_fewest_kernels(model, each):
    price, _ = prices(rope=0, attention=-10)
    assert {s.kind for s in choose(*model, each(price))[0]} == {"attention"}


def test_nothing_is_taken_at_infinite_prices(model, each):
    chosen, choices = choose(*model, each(lambda block, taken: math.inf if taken else 1.0))
    assert chosen == []
    assert {c.chosen for c in choices} == {"none"}


def test_no_sites_no_choice(model, each):
    def price(block, taken):
        raise AssertionError("nothing to ask about")

    assert choose(model[0], [], each(price)) == ([], [])


def test_a_larger_site_and_its_parts_are_never_both_taken(trace, each):
    class Joined(nn.Module):
        def forward(self, q, k, v, cos, sin, gain):
            q, k = (rotate(F.rms_norm(t, (SIZE,), gain, 1e-6), cos[:, None], sin[:, None]) for t in (q, k))
            return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    heads = {name: torch.randn(1, TOKENS, 2, SIZE) for name in "qkv"}
    tables = {name: INPUTS[name] for name in ("cos", "sin")}
    view = GraphView(trace(Joined(), **heads, **tables, gain=torch.ones(SIZE)).graph)
    found = make_plan(view, Selection.of(provider="reference"), "none").decisions
    sites = [d.finding for d in found if isinstance(d.finding, Site)]
    assert {s.kind for s in sites} == {"norm_rope_attention", "attention", "rope"}
    price, asked = prices(rope=-1, attention=-1, norm_rope_attention=-50)
    chosen, _ = choose(view, sites, each(price))
    assert [s.kind for s in chosen] == ["norm_rope_attention"]
    assert all(kinds == ("norm_rope_attention",) or "norm_rope_attention" not in kinds for _, kinds in asked)
    cheap, _ = prices(rope=-20, attention=-20, norm_rope_attention=-50)
    assert sorted(s.kind for s in choose(view, sites, each(cheap))[0]) == ["attention", "rope", "rope"]


def test_kinds_of_one_form_are_distinguished_by_their_sizes(trace, each):
    def fn(x, y, cos, sin):
        return rotate(x, cos, sin).sum() + rotate(y, cos[:4], sin[:4]).sum()

    view = GraphView(trace(fn, **INPUTS, y=torch.randn(1, 2, 4, SIZE)).graph)
    sites = [d.finding for d in make_plan(view, Selection.of("rope", "reference"), "none").decisions]
    price = lambda block, taken: 100 - sum(s.shapes["sequence"] for s in taken)  # noqa: E731
    chosen, (choice,) = choose(view, sites, each(price))
    assert len(chosen) == 2
    assert choice.times == {
        "none": 100,
        "rope:rotate_half[8]": 92,
        "rope:rotate_half[4]": 96,
        "rope:rotate_half[8] + rope:rotate_half[4]": 88,
    }
    assert choice.single_kernel_delta == {"rope": -12}
