"""Every form is proved, a replacement that is nearly right is not, and what cannot be run is said."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.rewrite.proof import Prover, Store
from fluxrewrite.rewrite.proof import prover as module
from fluxrewrite.rewrite.proof.sides import NoReplacement
from fluxrewrite.rewrite.proof.tolerance import TOLERANCE


def test_every_form_of_every_pass_is_proved_in_float64(sites, later):
    forms = {(s.kind, s.form) for s in (*sites.all, *later.all)}
    assert forms == {(p.kind, form) for p in sites.selection.passes.values() for form in p.forms}
    for of in (sites, later):
        for site in of.all:
            proof = of.prove(site)
            assert (proof.status, proof.dtype) == ("proved", "float64"), (site.kind, site.form, proof)


def test_inline_forms_are_proved(sites):
    rewriter = sites.selection.passes["qkv"]
    inline = [replace(s, inline=rewriter.inline(sites.view, s)) for s in sites.of("qkv")]
    assert sorted(s.form for s in inline if s.inline) == ["mixed", "triple"]
    assert {sites.prove(s).status for s in inline if s.inline} == {"proved"}
    exchanged = [
        replace(s, inline=s.inline, extra=replace(s.extra, roles=dict(_turned(s.extra.roles))))
        for s in inline
        if s.inline
    ]
    assert {sites.prove(s).status for s in exchanged} == {"failed"}


def _turned(roles):
    return zip(roles, [*list(roles.values())[1:], roles["query"]], strict=True)


def with_call(**changes):
    def change(site):
        call = site.extra.call
        given = {k: v(call) if callable(v) else v for k, v in changes.items()}
        return replace(site, extra=replace(site.extra, call=replace(call, **given)))

    return change


def operands(**sources):
    """Some operands replaced by others of the same site."""
    return lambda site: replace(
        site, operands={**site.operands, **{k: site.operands.get(v) for k, v in sources.items()}}
    )


def extra(**changes):
    return lambda site: replace(
        site, extra=replace(site.extra, **{k: v(getattr(site.extra, k)) for k, v in changes.items()})
    )


TURNED = {"drop": "keep", "keep": "drop"}
WRONG = {
    "scale 1 % off": ("attention", "spelled", with_call(scale=lambda c: c.scale * 1.01)),
    "scale of the head's size": ("attention", "spelled", with_call(scale=None)),
    "causal dropped": ("attention", "sdpa", with_call(is_causal=False)),
    "mask dropped": ("attention", None, with_call(mask=None, masking="none")),
    "mask turned round": ("attention", "spelled", with_call(masking=lambda c: TURNED.get(c.masking, c.masking))),
    "query for key": ("attention", "sdpa", operands(q="k", k="q")),
    "key for value": ("attention", "sdpa", operands(v="k")),
    "cos and sin exchanged": ("rope", None, operands(cos="sin", sin="cos")),
    "halves for neighbours": ("rope", "interleaved", extra(interleaved=lambda _: False)),
    "neighbours for halves": ("rope", "rotate_half", extra(interleaved=lambda _: True)),
    "roles turned": ("qkv", None, extra(roles=lambda roles: dict(_turned(roles)))),
    "eps tenfold": ("norm_rope_attention", None, extra(eps=lambda eps: [10 * e for e in eps])),
    "gains exchanged": ("norm_rope_attention", "joint", operands(gamma_q="gamma_k", gamma_k="gamma_q")),
    "value of the query": ("norm_rope_attention", None, operands(v="q")),
    "a scale of its own": ("norm_rope_attention", None, extra(scale=lambda _: 0.36)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_pass_that_is_nearly_right_is_found_out(sites, name):
    kind, form, change = WRONG[name]

    class Wrong(type(sites.selection.passes[kind])):
        def emit(self, site, builder, op):
            return super().emit(change(site), builder, op)

    proofs = [sites.prove(s, Wrong()) for s in sites.of(kind, form) if _touches(s, change)]
    assert proofs
    for proof in proofs:
        assert proof.status == "failed", proof
        assert proof.note or proof.error > 100 * TOLERANCE


def _touches(site, change):
    """Whether the change is one at this site: not every site has a mask or is causal, and None may be the scale it has."""
    call, changed = (getattr(s.extra, "call", None) for s in (site, change(site)))
    if site.shapes.get("heads") != site.shapes.get("kv_heads", site.shapes.get("heads")):
        return False
    if call is None or call == changed:
        return change(site) != site
    return not (changed.scale is None and call.scale in (None, site.shapes["head_size"] ** -0.5))


def test_what_the_pass_took_for_something_that_changes_nothing_is_found_out(faked):
    """The pass names the raw query: the doubling stands before the region, and enters as another value."""

    def fn(q, k, v):
        return F.scaled_dot_product_attention(q * 2, k, v)

    found = faked(fn, **heads(1, 4, 6, 8))
    (site,) = found.of("attention")
    doubled = site.operands["q"]
    assert found.prove(site).status == "proved"
    skipped = replace(site, operands={**site.operands, "q": doubled.args[0]})
    assert found.prove(skipped).status == "failed"


def heads(batch, count, length, size, dtype=torch.float32):
    return {n: torch.empty(batch, count, length, size, dtype=dtype, device="meta") for n in "qkv"}


def test_a_replacement_that_cannot_be_run_is_unproved(sites, monkeypatch):
    (site, *_) = sites.of("rope")

    class Broken(type(sites.selection.passes["rope"])):
        def emit(self, site, builder, op):
            raise ValueError("no such thing")

    with pytest.raises(NoReplacement, match=r"^ValueError: no such thing$"):
        sites.prove(site, Broken())
    monkeypatch.setattr(module, "ELEMENTS", 1)
    proof = sites.prove(site)
    assert proof.status == "unproved"
    assert "it would take inf operations" in proof.note


def test_an_original_that_computes_nan_says_nothing(faked):
    found = faked(lambda q, k, v: F.scaled_dot_product_attention(torch.sqrt(q), k, v), **heads(1, 4, 6, 8))
    (site,) = found.of("attention")
    root = site.operands["q"]
    proof = found.prove(replace(site, interior=(root,), operands={**site.operands, "q": root.args[0]}))
    assert proof.status == "unproved"
    assert "NaN" in proof.note


def test_a_norm_whose_epsilon_is_its_dtypes_runs_as_traced(faked):
    """In float64 the epsilon would be another one."""

    def fn(x, k, v):
        return F.scaled_dot_product_attention(torch.rms_norm(x, (8,)), k, v)

    found = faked(fn, **dict(zip(("x", "k", "v"), heads(1, 4, 6, 8).values(), strict=True)))
    (site,) = found.of("attention")
    norm = site.operands["q"]
    wider = replace(site, interior=(*site.interior, norm), operands={**site.operands, "q": norm.args[0]})

    class Normed(type(found.selection.passes["attention"])):
        def emit(self, site, builder, op):
            normed = builder.call(torch.rms_norm, site.operands["q"], (8,))
            return super().emit(replace(site, operands={**site.operands, "q": normed}), builder, op)

    proof = found.prove(wider, Normed())
    assert (proof.status, proof.dtype) == ("proved", "traced")


def test_under_autocast_and_in_half_precision_the_algebra_is_proved(faked):
    with torch.autocast("cpu", torch.bfloat16):
        found = faked(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), **heads(1, 4, 6, 8, torch.bfloat16))
        proof = found.prove(found.of("attention")[0])
    assert (proof.status, proof.dtype) == ("proved", "float64")


def test_distinct_sites_are_run_once(sites):
    prover = Prover(Store(sites.folder))
    ropes = sites.of("rope", "complex")
    for site in (*ropes, *ropes):
        sites.prove(site, prover=prover)
    assert (prover.new, prover.cached) == (1, 0)
    again = Prover(Store(sites.folder))
    sites.prove(ropes[0], prover=again)
    assert (again.new, again.cached) == (0, 1)
    assert set(again.timing()) == {"proof_s", "proofs_new", "proofs_cached"}


def test_a_pass_without_a_file_is_proved_each_time(sites):
    """As one of a notebook, which may be another one the next time."""
    names = {"Base": type(sites.selection.passes["rope"])}
    exec("class Typed(Base):\n    pass", names)
    site = sites.of("rope")[0]
    for _ in range(2):
        prover = Prover(Store(sites.folder))
        assert [sites.prove(site, names["Typed"](), prover).status for _ in range(2)] == ["proved"] * 2
        assert (prover.new, prover.cached) == (1, 0)
    assert not sites.folder.exists() or not list(sites.folder.iterdir())
