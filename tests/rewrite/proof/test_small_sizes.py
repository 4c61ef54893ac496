"""Smaller sizes are taken where the graph allows them, and seen to mean the same."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.rewrite.proof import prover
from fluxrewrite.rewrite.proof import small_sizes as module
from fluxrewrite.rewrite.proof.interpreter import Differs, Interpreter
from fluxrewrite.rewrite.proof.region import region_of
from fluxrewrite.rewrite.proof.sides import sides_of
from fluxrewrite.rewrite.proof.small_sizes import Cut, cuts
from fluxrewrite.rewrite.proof.tolerance import TOLERANCE


def sides(found, kind):
    (site,) = found.of(kind)
    kernel = found.selection.kernels[kind]
    both = sides_of(region_of(found.view, site), site, found.selection.passes[kind], kernel)
    return site, both, list(cuts(site, (*both.original, *both.replacement), both.inputs))


def meta(*shape):
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def joint(q, k, v, tq, tk, tv):
    q, k, v = (torch.cat(pair, 1).permute(0, 2, 1, 3) for pair in ((tq, q), (tk, k), (tv, v)))
    return F.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3)


@pytest.mark.parametrize(("image", "text"), [(4096, 512), (4096, 333), (4099, 77)])
def test_attention_of_full_size_runs_on_a_few_rows_and_heads(faked, image, text):
    found = faked(
        joint,
        **{n: meta(2, image, 24, 128) for n in ("q", "k", "v")},
        **{n: meta(2, text, 24, 128) for n in ("tq", "tk", "tv")},
    )
    _, _, (first, *_, last) = sides(found, "attention")
    assert last == Cut()
    assert first.size(image + text) <= 64
    assert first.size(24) < 24
    assert first.size(128) == 128
    assert found.prove(found.of("attention")[0]).status == "proved"


def test_packed_projection_of_full_size_runs_on_a_few_columns(faked):
    def fn(x, w):
        q, k, v, rest = F.linear(x, w).split([3072, 3072, 3072, 18432], -1)
        q, k, v = (t.reshape(1, 768, 24, 128).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v), rest

    found = faked(fn, x=meta(1, 768, 3072), w=meta(27648, 3072))
    _, both, (first, *_) = sides(found, "qkv")
    assert first.size(27648) < 200
    assert first.size(768) < 20
    (call,) = (n for n in both.replacement if n.target is torch.ops.fluxrewrite.qkv.default)
    width = first.size(3072)
    args, _ = first.arguments(call, call.target)
    assert list(args[3]) == [0, 0, width, 0, width, width, 0, 2 * width, width, 0, 3 * width, first.size(18432)]
    assert found.prove(found.of("qkv")[0]).status == "proved"


def test_grouped_heads_keep_their_ratio(faked):
    def fn(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    found = faked(fn, q=meta(1, 32, 1024, 64), k=meta(1, 16, 1024, 64), v=meta(1, 16, 1024, 64))
    _, _, (first, *_) = sides(found, "attention")
    assert first.size(32) == 2 * first.size(16) < 32
    assert found.prove(found.of("attention")[0]).status == "proved"


def test_sizes_stay_apart_and_above_two(faked):
    found = faked(joint, **{n: meta(2, 36, 12, 16) for n in ("q", "k", "v", "tq", "tk", "tv")})
    _, both, found_cuts = sides(found, "attention")
    present = {int(n) for node in both.inputs for n in node.meta["val"].shape}
    for cut in found_cuts:
        after = [cut.size(n) for n in present]
        assert len(set(after)) == len(after)
        assert min(cut.size(n) for n in present if n > 2) > 2


def test_a_size_that_is_also_the_size_of_a_head_stays(faked):
    found = faked(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), **{n: meta(1, 12, 64, 64) for n in "qkv"})
    _, _, (first, *_) = sides(found, "attention")
    assert first.size(64) == 64
    assert first.size(12) < 12


def test_a_region_that_reads_one_place_is_not_cut_there(faked):
    """At fewer than 31 positions there is no thirtieth: larger sizes are tried."""

    def fn(q, k, v, m):
        scores = q @ k.mT + m[..., 30:31].expand(-1, -1, -1, 40)
        return scores.softmax(-1) @ v

    found = faked(fn, **{n: meta(1, 16, 40, 8) for n in "qkv"}, m=meta(1, 1, 40, 40))
    (site,) = found.of("attention")
    inside = [n for n in found.view.nodes if "getitem" in n.name or "expand" in n.name]
    site = replace(site, interior=(*inside, *site.interior))
    proof = found.prove(site)
    assert (proof.status, proof.note) == ("proved", "")
    kernel = found.selection.kernels["attention"]
    both = sides_of(region_of(found.view, site), site, found.selection.passes["attention"], kernel)
    fits = []
    for cut in cuts(site, (*both.original, *both.replacement), both.inputs):
        given = {n: torch.zeros(cut.shape(n.meta["val"]), dtype=torch.float64) for n in both.inputs}
        try:
            Interpreter(cut, True)(both.original, given)
            fits.append(cut)
        except (Differs, RuntimeError):
            assert cut.size(40) < 31
    assert [c.size(40) for c in fits] == [40] * len(fits)
    assert any(c.size(16) < 16 for c in fits)


def test_a_difference_on_cut_sizes_must_be_there_on_whole_ones(faked, monkeypatch):
    """With fewer channels the scale that attention takes by itself is another one: that says nothing of the site."""
    found = faked(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), **{n: meta(1, 3, 5, 64) for n in "qkv"})
    (site,) = found.of("attention")
    call = replace(site.extra.call, scale=64**-0.5)

    class Scaled(type(found.selection.passes["attention"])):
        def emit(self, site, builder, op):
            return super().emit(replace(site, extra=replace(site.extra, call=call)), builder, op)

    monkeypatch.setattr(module, "_KEPT", ())
    monkeypatch.setattr(module, "_WIDE", ("head_size",))
    kernel = found.selection.kernels["attention"]
    both = sides_of(region_of(found.view, site), site, Scaled(), kernel)
    first, *_, last = cuts(site, (*both.original, *both.replacement), both.inputs)
    assert first.size(64) < 64
    errors = [prover._run_both(both, cut, True, kernel.op).error for cut in (first, last)]
    assert errors[0] > TOLERANCE > errors[1]
    assert found.prove(site, Scaled()).status == "proved"


def test_heads_folded_into_the_batch_are_cut_with_both(faked):
    """The product of two sizes that change is the product of what they become."""

    def fn(q, k, v):
        q, k, v = (t.reshape(240, 100, 8) for t in (q, k, v))
        return ((q @ k.mT) * 0.3).softmax(-1) @ v

    found = faked(fn, **{n: meta(20, 12, 100, 8) for n in "qkv"})
    (site,) = found.of("attention")
    folded = [n for n in found.view.nodes if "reshape" in n.name]
    wide = {"batch": 20, "heads": 12, "sequence": 100, "head_size": 8}
    operands = dict(zip("qkv", (n.args[0] for n in folded), strict=True))

    class Folded(type(found.selection.passes["attention"])):
        def emit(self, site, builder, op):
            q, k, v = (builder.call("flatten", site.operands[n], 0, 1) for n in "qkv")
            made = super().emit(replace(site, operands={**site.operands, "q": q, "k": k, "v": v}), builder, op)
            return made

    whole = replace(site, shapes=wide, interior=(*folded, *site.interior), operands={**site.operands, **operands})
    region = region_of(found.view, whole)
    first = next(cuts(whole, region.nodes, region.inputs))
    assert first.size(240) == first.size(20) * first.size(12) < 60
    assert found.prove(whole, Folded()).status == "proved"
