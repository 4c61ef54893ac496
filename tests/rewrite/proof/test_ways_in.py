"""The ways in prove by default: a wrong pass rewrites nothing, the report says so, and the same report comes from a cache."""

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.cli import app
from fluxrewrite.errors import InputError
from fluxrewrite.graph import GraphView
from fluxrewrite.report.text.report import render
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.proof import Prover, Store
from fluxrewrite.rewrite.proof.region import region_of
from fluxrewrite.rewrite.proof.small_sizes import cuts
from fluxrewrite.rewrite.selection import Selection

ROPE = type(Selection.of("rope").passes["rope"])
X, COS, SIN = torch.randn(2, 3, 5, 8), torch.randn(5, 8), torch.randn(5, 8)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Swapped(ROPE):
    def emit(self, site, builder, op):
        turned = {**site.operands, "cos": site.operands["sin"], "sin": site.operands["cos"]}
        return super().emit(type(site)(**{**vars(site), "operands": turned}), builder, op)


def compiled(monkeypatch, tmp_path, **options):
    backend = fluxrewrite.backend("eager", "rope", provider="reference", cache_dir=tmp_path, **options)
    settings = backend.rewriter.settings
    swapped = replace(settings, selection=Selection({"rope": Swapped()}, settings.selection.kernels, {}))
    monkeypatch.setattr(backend, "rewriter", replace(backend.rewriter, settings=swapped))
    with torch.no_grad():
        found = torch.compile(rotate, backend=backend)(X, COS, SIN)
    (report,) = backend.reports
    return found, report


def test_a_wrong_pass_is_left_out_with_a_warning(monkeypatch, tmp_path, caplog):
    found, report = compiled(monkeypatch, tmp_path)
    assert torch.equal(found, rotate(X, COS, SIN))
    (site,) = report.sites
    assert (site.status, site.choice, site.proof.status) == ("ineligible", "keep", "failed")
    assert site.proof.error > 0.1
    assert [r.code for r in site.reasons] == ["not_equivalent"]
    assert "1 sites are left alone; the first, rope at " in caplog.text
    assert "on random inputs the replacement differs" in caplog.text


def test_structural_goes_by_the_structure_alone(monkeypatch, tmp_path):
    found, report = compiled(monkeypatch, tmp_path, proof="structural")
    assert not torch.allclose(found, rotate(X, COS, SIN))
    assert [(s.choice, s.proof) for s in report.sites] == [("kernel", None)]
    assert not list(tmp_path.iterdir())


def test_a_second_compile_looks_the_proof_up(tmp_path):
    timings = []
    for _ in range(2):
        torch._dynamo.reset()
        backend = fluxrewrite.backend("eager", "rope", provider="reference", cache_dir=tmp_path)
        with torch.no_grad():
            torch.compile(rotate, backend=backend)(X, COS, SIN)
        (report,) = backend.reports
        assert report.sites[0].proof.model_dump() == {"status": "proved", "error": None, "dtype": "float64", "note": ""}
        timings.append((report.timing.proofs_new, report.timing.proofs_cached))
    assert timings == [(1, 0), (0, 1)]


def test_policy_none_requests_no_proof(everything, tmp_path, sites):
    prover = Prover(Store(tmp_path))
    plan = make_plan(sites.view, sites.selection, "none", prove=prover)
    assert (prover.new, prover.cached) == (0, 0)
    assert all(d.finding.proof is None for d in plan.decisions if hasattr(d.finding, "proof"))


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 32)

    def forward(self, x, mask, scale=None):
        k, v = self.kv(x).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (self.q(x), k, v))
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def test_sites_of_symbolic_sizes_are_proved_at_a_few_positions(trace, tmp_path):
    gm = trace(Projected(), dynamic=True, x=torch.randn(2, 40, 16), mask=torch.randn(2, 1, 40, 40), scale=0.3)
    view = GraphView(gm.graph)
    assert any(isinstance(view.value(n), torch.SymFloat) for n in view.nodes), (
        "of which the pass takes the traced value"
    )
    plan = make_plan(view, Selection.of("qkv,attention", "reference"), prove=Prover(Store(tmp_path)))
    sites = [d.finding for d in plan.decisions]
    assert all(isinstance(s.shapes["sequence"], str) for s in sites)
    assert [(s.kind, s.proof.status) for s in sites] == [("attention", "proved"), ("qkv", "proved")]
    for site in sites:
        region = region_of(view, site)
        assert next(cuts(site, region.nodes, region.inputs)).size(40) < 20


def test_a_size_that_only_a_run_determines_is_proved_at_one_size(trace, tmp_path):
    def fn(x, picked):
        chosen = torch.cat((x, x[:, :, picked.nonzero().flatten()]), 2)
        return F.scaled_dot_product_attention(chosen, chosen, chosen)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        gm = trace(fn, x=torch.randn(2, 3, 5, 8), picked=torch.ones(5).bool())
    plan = make_plan(GraphView(gm.graph), Selection.of("attention", "reference"), prove=Prover(Store(tmp_path)))
    (decision,) = plan.decisions
    assert "u" in str(decision.finding.shapes["sequence"])
    assert (decision.finding.proof.status, decision.choice) == ("proved", "kernel")


def test_one_report_from_a_cold_and_a_warm_cache(monkeypatch, tmp_path):
    """But for `timing`, byte for byte; and the text says how many were run."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    cold, warm = (
        fluxrewrite.inspect(rotate, options=Options("rope", provider="reference"), x=X, cos=COS, sin=SIN)
        for _ in range(2)
    )
    assert (cold.timing.proofs_new, warm.timing.proofs_new, warm.timing.proofs_cached) == (1, 0, 1)
    assert cold.to_json() == warm.model_copy(update={"timing": cold.timing}).to_json()
    assert "1 of 1 rewritten sites are proved on random inputs." in text(cold)
    bare = fluxrewrite.inspect(
        rotate, options=Options("rope", provider="reference", proof="structural"), x=X, cos=COS, sin=SIN
    )
    assert bare.sites[0].proof is None
    assert "No site was proved" in text(bare)


def text(report):
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        render(report, console)
    return " ".join(captured.get().split())


def test_unknown_names_are_reported():
    known = "unknown proof='maybe'; known: numeric, structural"
    with pytest.raises(InputError, match=known):
        fluxrewrite.backend("eager", proof="maybe")
    with pytest.raises(InputError, match=known):
        Options(proof="maybe").resolve()
    result = CliRunner().invoke(app, ["inspect", "flux2-klein-mini", "--proof", "maybe"])
    assert result.exit_code == 2
    logging.disable(logging.NOTSET)


def test_an_inline_form_that_is_wrong_is_not_taken(trace, tmp_path):
    """Policies that compare times, and ones that ask for it, go by its own proof."""
    qkv = Selection.of("qkv", "reference")

    class Turned(type(qkv.passes["qkv"])):
        def emit_inline(self, site, builder):
            roles = site.extra.roles
            turned = dict(zip(roles, (roles["key"], roles["query"], roles["value"]), strict=True))
            return super().emit_inline(replace(site, extra=replace(site.extra, roles=turned)), builder)

    gm = trace(Projected(), x=torch.randn(2, 40, 16), mask=torch.randn(2, 1, 40, 40))
    taken = {}
    for rewriter in (qkv.passes["qkv"], Turned()):
        selection = Selection({"qkv": rewriter}, qkv.kernels, qkv.forms)
        plan = make_plan(GraphView(gm.graph), selection, lambda _: "inline", prove=Prover(Store(tmp_path)))
        (decision,) = plan.decisions
        taken[type(rewriter).__name__] = (decision.choice, [r.code for r in decision.reasons])
        assert decision.finding.inline is not None
    assert taken == {"Qkv": ("inline", []), "Turned": ("keep", ["not_equivalent"])}
