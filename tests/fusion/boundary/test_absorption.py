import torch
import torch.nn.functional as F

HEADS, TOKENS, SIZE = 2, 8, 16
ONE = HEADS * TOKENS * SIZE * 4
INPUTS = {
    "x": torch.randn(1, HEADS, TOKENS, SIZE),
    "cos": torch.randn(TOKENS, SIZE),
    "sin": torch.randn(TOKENS, SIZE),
}


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.RMSNorm(SIZE)

    def forward(self, x, cos, sin):
        return rotate(self.norm(x), cos, sin) * 2


def test_the_norm_before_and_the_factor_after(trace, foresee):
    (border,) = foresee(trace(Normed(), **INPUTS)).boundaries
    before, after = border.absorptions
    assert (before.side, before.nodes, before.ops, before.path) == ("before", ("rms_norm",), ("rms_norm",), "norm")
    assert (after.side, after.ops) == ("after", ("mul",))
    assert before.bytes == after.bytes == 2 * ONE


def test_the_most_expensive_first(trace, foresee):
    def fn(x, k, cos, sin):
        return F.scaled_dot_product_attention(x, k.relu(), k.exp() + 1) * 2

    keys = torch.randn(1, HEADS, 3 * TOKENS, SIZE)
    (border,) = foresee(trace(fn, **INPUTS, k=keys), "attention").boundaries
    sizes = [a.bytes for a in border.absorptions]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 2 * ONE
    assert border.absorptions[-1].side == "after"


def test_what_others_read_too_would_not_vanish(trace, foresee):
    def returned(x, cos, sin):
        y = x.exp() + x
        return rotate(y, cos, sin), y.transpose(1, 2)

    def multiplied(x, cos, sin):
        y = x.exp()
        return rotate(y, cos, sin), y @ y.mT

    for shared in (returned, multiplied):
        (border,) = foresee(trace(shared, **INPUTS)).boundaries
        assert [a for a in border.absorptions if a.side == "before"] == [], shared


def test_products_and_other_calls_are_not_absorbed(trace, foresee):
    def fn(x, y, cos, sin):
        return rotate(x @ y, cos, sin) @ y

    def twice(x, cos, sin):
        return rotate(rotate(x, cos, sin), cos, sin)

    (border,) = foresee(
        trace(fn, **INPUTS | {"x": torch.randn(1, 2, TOKENS, SIZE)}, y=torch.randn(SIZE, SIZE))
    ).boundaries
    assert border.absorptions == ()
    assert [b.absorptions for b in foresee(trace(twice, **INPUTS)).boundaries] == [(), ()]


def test_what_the_caller_reads_stays(trace, foresee):
    """The result of the graph is written in any case."""

    def fn(x, cos, sin):
        y = rotate(x, cos, sin)
        return y, y * 2

    for returned in (rotate, fn):
        (border,) = foresee(trace(returned, **INPUTS)).boundaries
        assert border.absorptions == ()
