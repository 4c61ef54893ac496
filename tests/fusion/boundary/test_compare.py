from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.analysis import analyse
from fluxrewrite.cost import Case
from fluxrewrite.fusion.boundary.target import Target
from fluxrewrite.graph import GraphView
from fluxrewrite.graph.modules import as_module
from fluxrewrite.report.build_predicted import effect_info
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection

HEADS, TOKENS, SIZE = 2, 8, 16
TABLES = {"cos": torch.randn(TOKENS, SIZE), "sin": torch.randn(TOKENS, SIZE)}


def heads():
    return torch.randn(1, HEADS, TOKENS, SIZE)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def between(x, cos, sin):
    return rotate(x.relu(), cos, sin) * 2


@pytest.mark.parametrize(("regime", "executables", "launches"), [("compile", 1, 0), ("lazy", 3, 2)])
def test_executables_and_their_launches(trace, foresee, regime, executables, launches):
    found = foresee(trace(between, x=heads(), **TABLES), regime=regime)
    assert found.segments_after == executables
    device = Target.of("trn2").device
    table, one = TOKENS * SIZE * 4, HEADS * TOKENS * SIZE * 4
    traffic = (2 * one + 2 * one + 2 * table + 2 * one) / device.memory.value / 1e3
    fixed = 3 * device.kernel.value + device.call.value + launches * device.launch.value
    assert found.after.us == pytest.approx(traffic + fixed)


def test_a_call_in_a_graph_of_its_own_is_one_executable(trace, foresee):
    assert foresee(trace(rotate, x=heads(), **TABLES), regime="lazy").segments_after == 1


def test_products_that_the_rewrite_leaves_next_to_a_call_count_once(trace, foresee):
    """A site may hold more than its call computes; then the rewrite emits the rest, and its products are not the call's."""

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.packed = torch.nn.Linear(64, 3 * 64 + 128, bias=False)

        def forward(self, x):
            q, k, v, rest = self.packed(x).split((64, 64, 64, 128), dim=-1)
            q, k, v = (t.unflatten(-1, (2, 32)).transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v), rest * 2

    rows = 4096
    found = foresee(trace(Layers(), x=torch.randn(1, rows, 64)), "qkv")
    device = Target.of("trn2").device
    products = 2 * rows * 64 * (3 * 64 + 128) + 2 * 2 * rows * rows * 64
    floor = products / device.matmul["float32"].value / 1e6
    assert floor <= found.after.us
    assert found.after.us == pytest.approx(found.before.us, rel=0.5)


def test_nothing_taken_is_what_it_was(trace, foresee):
    found = foresee(trace(between, x=heads(), **TABLES), policy="none", regime="lazy")
    assert (found.segments_before, found.segments_after) == (1, 1)
    assert found.before == found.after


def test_a_graph_without_shapes_is_no_error():
    gm = torch.fx.symbolic_trace(between)
    analysed, rewritten = analyse(gm, Selection.of("rope", "reference"), "all", Target.of("trn2", "lazy"))
    assert analysed.change.boundaries == ()
    assert rewritten is gm.graph


def test_a_plan_slower_as_a_whole_is_given_up(trace, each):
    """The parts looked better, the whole is not: then nothing is rewritten, and each site says so."""
    gm = trace(between, x=heads(), **TABLES)
    everything = lambda view: each(lambda block, taken: 1.0 if taken else 2.0)  # noqa: E731
    target = Target.of("trn2")
    selection = Selection.of("rope", "reference")
    analysed, rewritten = analyse(gm, selection, "auto", target, price=everything)
    assert rewritten is gm.graph
    (decision,) = analysed.plan.decisions
    assert [(r.code, r.message) for r in decision.reasons] == [
        ("policy", "the whole step would be slower than without kernels, as predicted")
    ]
    assert analysed.change.before == analysed.change.after
    assert analysed.change.boundaries == ()


def test_runs_are_not_overruled_by_the_model(trace, tmp_path):
    """A kernel measured to be faster stays, though the model of the step thinks otherwise."""
    from fluxrewrite.cost.evidence import EVIDENCE_SCHEMA, Evidence, MeasuredRun, Table

    case = Case(
        device="trn2", regime="compile", model="m", dtype="float32", tp=1, batch=1, image_tokens=8, text_tokens=8
    )
    runs = (
        MeasuredRun(kernels=(), warm_s_per_step=1.0),
        MeasuredRun(kernels=("rope",), calls={"rope": 1}, warm_s_per_step=0.5),
    )
    evidence = Evidence(schema=EVIDENCE_SCHEMA, tables=(Table(case=case, stack="s", source="t", runs=runs),))
    path = tmp_path / "e.json"
    path.write_text(evidence.to_json())
    gm, target = trace(between, x=heads(), **TABLES), Target.of("trn2", evidence=[path])
    analysed, rewritten = analyse(gm, Selection.of("rope", "reference"), "auto", target, case)
    assert [s.site.kind for s in analysed.plan.replacements()] == ["rope"]
    assert analysed.change.after.us > analysed.change.before.us
    assert rewritten is not gm.graph
    found = effect_info([analysed], target, case).measured
    assert (found.verdict, found.ratio, found.predicted_s) == ("faster", 0.5, 0.5)
    inline = replace(analysed.plan, decisions=tuple(replace(d, choice="inline") for d in analysed.plan.decisions))
    assert effect_info([replace(analysed, plan=inline)], target, case).measured is None


def test_auto_needs_somebody_to_choose(trace):
    from fluxrewrite.errors import InputError

    gm = trace(between, x=heads(), **TABLES)
    for policy in ("auto", "measure"):
        with pytest.raises(InputError, match=f"policy '{policy}' compares times"):
            make_plan(GraphView(gm.graph), Selection.of("rope", "reference"), policy)


def test_failures_go_up_unless_somebody_is_told(trace, monkeypatch):
    def broken(*_):
        raise ValueError("boom")

    gm = trace(between, x=heads(), **TABLES)
    selection, target = Selection.of("rope", "reference"), Target.of("trn2")
    monkeypatch.setattr("fluxrewrite.fusion.boundary.whole_step.effect_of", broken)
    with pytest.raises(ValueError, match="boom"):
        analyse(gm, selection, "all", target)
    found = []
    analysed, rewritten = analyse(gm, selection, "all", target, on_error=lambda doing, error: found.append(doing))
    assert len(found) == 1
    assert "predicting" in found[0]
    assert analysed.change is None
    assert rewritten is not gm.graph
    plan = make_plan(GraphView(gm.graph), selection)
    assert apply(gm, plan)[0].code == as_module(gm, rewritten).code
