"""The boundary map as numbers: nothing overlaps, nothing is lost, all of it fits a narrow screen."""

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.errors import InputError
from fluxrewrite.report.draw.layout import CALL, HEIGHT, WIDEST, sections


def tiles_of(report):
    return [t for s in sections(report) for t in s.tiles]


def attend(x):
    return F.scaled_dot_product_attention(x.exp(), x, x).relu()


def test_klein_has_25_blocks_and_what_lies_around_them(klein):
    found = sections(klein)
    assert [(s.title, len(s.tiles), s.is_blocks) for s in found] == [
        ("before the blocks", 1, False),
        ("transformer_blocks.*: 5 blocks", 5, True),
        ("single_transformer_blocks.*: 20 blocks", 20, True),
        ("after the blocks", 1, False),
    ]
    assert [t.name for t in found[2].tiles] == [str(i) for i in range(20)]


def test_every_kernel_and_every_boundary_is_drawn_once(klein):
    tiles = tiles_of(klein)
    assert sum(len(t.before.bars) for t in tiles) == klein.effect.kernels_before
    assert sum(len(t.after.bars) for t in tiles) == klein.effect.kernels_after
    borders = [b for t in tiles for m in t.marks for b in m.borders]
    assert sorted(b.site for b in borders) == sorted(b.site for b in klein.boundaries)
    assert sum(b.bytes for b in borders) == sum(b.bytes for b in klein.boundaries)


@pytest.mark.parametrize("policy", ["all", "none"])
@pytest.mark.parametrize("regime", ["compile", "lazy"])
def test_nothing_overlaps_and_all_of_it_is_inside_its_tile(flux2, policy, regime):
    import fluxrewrite
    from fluxrewrite import Options

    net, inputs = flux2()
    report = fluxrewrite.inspect(net, options=Options(policy=policy, regime=regime), **inputs)
    for tile in tiles_of(report):
        for row in (tile.before, tile.after):
            ends = {}
            for bar in row.bars:
                assert bar.x >= ends.get(bar.y, 0)
                ends[bar.y] = bar.x + bar.width
                assert bar.x + bar.width <= min(tile.width, WIDEST)
                assert 0 < bar.filled <= HEIGHT
        assert all(m.x + m.width <= tile.width and m.y + m.height + m.drop <= tile.height for m in tile.marks)
        assert all(m.width >= CALL and m.height >= CALL for m in tile.marks), "large enough to be hit"


def test_a_long_strip_goes_on_in_further_lines(of):
    def long(x):
        for _ in range(40):
            x = (x @ x.mT @ x).relu()
        return attend(x)

    (tile,) = tiles_of(of(long))
    assert len({b.y for b in tile.before.bars}) > 2
    assert tile.width <= WIDEST
    assert sections(of(long))[0].title == "the whole model"


def test_sites_without_a_call_have_marks_but_those_inside_a_call_have_none(klein, of):
    marked = {m.site.id for t in tiles_of(klein) for m in t.marks}
    assert marked == {c.site for c in klein.calls}
    refused = of(attend, size=192, kernels="attention")
    (tile,) = tiles_of(refused)
    assert [(m.site.kind, m.borders) for m in tile.marks] == [("attention", ())]


def test_notes_count_borders_by_kind(klein, of):
    notes = {t.note for t in tiles_of(klein)}
    assert notes == {"", "3 barriers, +4.72 MB", "2 barriers, +4.72 MB"}
    lazy = tiles_of(of(attend, regime="lazy"))
    assert lazy[0].note.startswith("1 split, +")


def test_graphs_are_kept_apart(of):
    def halves(x):
        y = x.relu()
        torch._dynamo.graph_break()
        return attend(y)

    assert [s.title for s in sections(of(halves))] == ["the whole model, graph 0", "the whole model, graph 1"]


def test_a_report_without_blocks_is_refused(klein):
    with pytest.raises(InputError, match="has no blocks to draw; write it again"):
        sections(klein.model_copy(update={"blocks": ()}))
