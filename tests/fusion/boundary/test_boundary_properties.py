"""What holds for the analyser on any graph: random programs of a few pieces, some of which kernels could replace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxrewrite.analysis import analyse
from fluxrewrite.cost import Case, device_names, load_device
from fluxrewrite.fusion.boundary.compare import effect_of
from fluxrewrite.fusion.boundary.target import REGIMES, Target
from fluxrewrite.graph import GraphView
from fluxrewrite.models.capture import capture
from fluxrewrite.report.build import PredictionContext, build_report
from fluxrewrite.report.model import ModelInfo, Timing
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Site

TOKENS, HEADS, SIZE = 16, 2, 32
PARTS, WHOLE = ("rope", "attention"), ("norm_rope_attention",)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def attend(q, k, v):
    return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


def joined(a, b, m):
    q, k = (rotate(F.rms_norm(t, (SIZE,), m["gain"], 1e-6), m["cos"], m["sin"]) for t in (a, b))
    return attend(q, k, b)


PIECES = {
    "relu": lambda a, b, m: a.relu(),
    "scale": lambda a, b, m: a * 0.5,
    "add": lambda a, b, m: a + b,
    "norm": lambda a, b, m: F.layer_norm(a, (SIZE,)),
    "linear": lambda a, b, m: F.linear(a, m["weight"]),
    "rope": lambda a, b, m: rotate(a, m["cos"], m["sin"]),
    "attention": lambda a, b, m: attend(a, b, b),
    "joined": joined,
}
PROGRAM = st.lists(
    st.tuples(st.sampled_from(sorted(PIECES)), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7
)
FEW = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def traced(program, tokens=TOKENS):
    """Each step takes two of the values made so far; the last one and one more are the results."""

    def run(x, **m):
        made = [x]
        for name, a, b in program:
            made.append(PIECES[name](made[-1 - a % len(made)], made[-1 - b % len(made)], m))
        return made[-1], made[len(made) // 2]

    meta = {"device": "meta", "dtype": torch.bfloat16}
    inputs = {
        "x": torch.empty(1, tokens, HEADS, SIZE, **meta),
        "cos": torch.empty(tokens, SIZE, **meta),
        "sin": torch.empty(tokens, SIZE, **meta),
        "gain": torch.empty(SIZE, **meta),
        "weight": torch.empty(SIZE, SIZE, **meta),
    }
    torch._dynamo.reset()
    return capture(run, inputs).graphs[0]


def sites_of(gm, kinds):
    decisions = make_plan(GraphView(gm.graph), Selection.of(kinds, "reference"), "none").decisions
    return [d.finding for d in decisions if isinstance(d.finding, Site)]


def effect(gm, kinds, taken, target):
    """The effect with kernels for the sites with these outputs."""
    names = {n.name for s in taken for n in s.outputs}
    view = GraphView(gm.graph)
    plan = make_plan(view, Selection.of(kinds, "reference"), lambda s: s.outputs[0].name in names)
    rewritten, plan = apply(gm, plan)
    return effect_of(view, rewritten.graph, plan.replacements(), target)


TARGETS = [Target.of("trn2", *how) for how in (("compile", "inductor"), ("lazy", "xla"), ("compile", "neuronx"))]


@FEW
@given(PROGRAM, st.data())
def test_keeping_a_site_never_adds_a_boundary(program, data):
    gm = traced(program)
    sites = sites_of(gm, PARTS)
    taken = [s for s in sites if data.draw(st.booleans())] or sites
    for target in TARGETS:
        more = effect(gm, PARTS, taken, target).boundaries
        assert sum(b.kind != "layout" for b in more) == len(taken)
        for left in taken[:2]:
            fewer = effect(gm, PARTS, [s for s in taken if s is not left], target).boundaries
            assert len(fewer) <= len(more), (target.rules.name, left.outputs)
            assert {b.site.outputs[0].name for b in fewer} <= {b.site.outputs[0].name for b in more}


@FEW
@given(PROGRAM)
def test_a_larger_kernel_in_the_place_of_its_parts_never_adds_a_boundary(program):
    gm = traced([*program, ("joined", 0, 1)])
    assert sites_of(gm, WHOLE)
    for target in TARGETS:
        parts = effect(gm, PARTS, sites_of(gm, PARTS), target)
        whole = effect(gm, (*WHOLE, *PARTS), sites_of(gm, (*WHOLE, *PARTS)), target)
        assert len(whole.boundaries) <= len(parts.boundaries)
        assert whole.segments_after <= parts.segments_after


def reported(analysed, selection, target, policy):
    case = Case(device=target.device.name, regime=target.regime)
    model = ModelInfo(name="m", parameters=0, dtype="bfloat16", graphs=1, graph_nodes=0)
    zero = Timing(capture_s=0, match_s=0, analyse_s=0, total_s=0, peak_rss_mb=0)
    return build_report([analysed], selection, policy, model, timing=zero, context=PredictionContext(target, case))


@FEW
@given(PROGRAM)
def test_bytes_are_sums_and_the_report_tells_the_same(program):
    gm = traced(program)
    selection = Selection.of(PARTS, "reference")
    for target in TARGETS:
        analysed, _ = analyse(gm, selection, "all", target)
        change, report = analysed.change, reported(analysed, selection, target, "all")
        counted = [sum(t.bytes for t in b.tensors) for b in change.boundaries]
        assert [b.bytes for b in change.boundaries] == counted == [b.bytes for b in report.boundaries]
        assert [b.kind for b in change.boundaries] == [b.kind for b in report.boundaries]
        assert (report.effect.bytes_before, report.effect.bytes_after) == (change.bytes_before, change.bytes_after)
        names = [t.name for b in change.boundaries if b.kind != "layout" for t in b.tensors]
        assert len(names) == len(set(names)), "a tensor counts once"
        assert all(b.cost_us >= 0 for b in report.boundaries)


PLACES = [
    Target.of(name, regime) for name in device_names() for regime in REGIMES if regime in load_device(name).regimes
]


@pytest.mark.parametrize("tokens", [TOKENS, 8192])
@FEW
@given(program=PROGRAM)
def test_auto_is_never_predicted_slower_than_none(tokens, program):
    gm = traced(program, tokens)
    selection = Selection.of((*PARTS, *WHOLE), "reference")
    for target in PLACES:
        auto, _ = analyse(gm, selection, "auto", target)
        none, _ = analyse(gm, selection, "none", target)
        assert auto.change.after.us <= none.change.after.us * (1 + 1e-9)
        assert none.change.after == none.change.before == auto.change.before
        (choice,) = auto.plan.choices or [None]
        if choice is not None:
            assert choice.times[choice.chosen] <= choice.times["none"]


def test_auto_takes_what_pays_and_that_is_predicted_faster():
    gm = traced([("joined", 0, 1)], 8192)
    selection = Selection.of((*PARTS, *WHOLE), "reference")
    analysed, rewritten = analyse(gm, selection, "auto", Target.of("trn2", "compile"))
    assert [s.site.kind for s in analysed.plan.replacements()] == ["norm_rope_attention"]
    assert analysed.change.after.us < 0.98 * analysed.change.before.us
    assert any("norm_rope_attention" in str(n.target) for n in rewritten.nodes)
