"""Advice follows the records of a report, not the names that people read."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.analysis import analyse
from fluxrewrite.cost import Case
from fluxrewrite.fusion.boundary.target import Target
from fluxrewrite.graph.module_paths import block_path
from fluxrewrite.models.capture import capture
from fluxrewrite.report.advice import as_chosen, auto_is_better, better_plan
from fluxrewrite.report.build import PredictionContext, build_report
from fluxrewrite.report.build_predicted import effect_info
from fluxrewrite.report.model import ChosenKind, ModelInfo, Timing
from fluxrewrite.rewrite.plan import Choice, kept
from fluxrewrite.rewrite.search import BlockChoice
from fluxrewrite.rewrite.selection import Selection


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def report(flux2, made):
    """A small FLUX.2 with every site taken that a kernel may take."""
    if not made:
        net, inputs = flux2(num_layers=1, num_single_layers=1)
        made["report"] = fluxrewrite.inspect(net, options=Options(provider="reference"), **inputs)
    return made["report"]


def as_planned(report, choice):
    """The choice with exactly the kinds that the plan takes in its block."""
    taken = [s for s in report.sites if s.choice != "keep" and block_path(s.path) == choice.block]
    kinds = {s.model_copy(update={"id": ""}).model_dump_json(): s for s in taken}
    chosen = [
        ChosenKind(kind=s.kind, form=s.form, shapes=s.shapes, inline=s.choice == "inline") for s in kinds.values()
    ]
    return choice.model_copy(update={"taken": tuple(chosen)})


def test_a_choice_is_compared_with_the_plan_by_kind_form_sizes_and_inline(report):
    for choice in report.effect.choices:
        same = as_planned(report, choice)
        assert len(same.taken) >= 2
        assert as_chosen(same, report)
        first, *others = same.taken
        sizes = first.model_copy(update={"shapes": {**first.shapes, "batch": 99}})
        for taken in (
            others,
            [first.model_copy(update={"inline": True}), *others],
            [first.model_copy(update={"form": "other"}), *others],
            [sizes, *others],
            [sizes, *same.taken],
        ):
            assert not as_chosen(same.model_copy(update={"taken": tuple(taken)}), report)


def test_a_site_of_a_chosen_kind_that_was_not_rewritten_is_a_difference(report):
    """One of two sites alike failed late: the block does not run as chosen."""
    choice = as_planned(report, report.effect.choices[0])
    site = next(s for s in report.sites if s.choice == "kernel" and block_path(s.path) == choice.block)
    for status, same in (("eligible", False), ("ineligible", True)):
        twin = site.model_copy(update={"id": "twin", "choice": "keep", "status": status})
        assert as_chosen(choice, report.model_copy(update={"sites": (*report.sites, twin)})) == same


def test_names_of_choices_decide_nothing(report):
    def named(report, name):
        choices = []
        for c in report.effect.choices:
            times = {name if k == c.chosen and k != "none" else k: us for k, us in c.times_us.items()}
            choices.append(c.model_copy(update={"chosen": name if c.chosen != "none" else "none", "times_us": times}))
        return report.model_copy(update={"effect": report.effect.model_copy(update={"choices": tuple(choices)})})

    e = report.effect
    after = e.step_after.model_copy(update={"us": e.step_before.us * 3})
    slow = report.model_copy(update={"effect": e.model_copy(update={"step_after": after})})
    assert auto_is_better(slow)
    for odd in ("?", "inline qkv:triple x9 + rope:x"):
        assert [as_chosen(c, report) for c in named(report, odd).effect.choices] == [
            as_chosen(c, report) for c in report.effect.choices
        ]
        assert better_plan(named(slow, odd)) == better_plan(slow)


def test_a_choice_without_times_saves_nothing(report):
    e = report.effect
    bare = tuple(c.model_copy(update={"times_us": {}}) for c in e.choices)
    assert not auto_is_better(report.model_copy(update={"effect": e.model_copy(update={"choices": bare})}))


# *** records


def attend(x):
    return F.scaled_dot_product_attention(x.exp(), x, x) * 2


@pytest.fixture(scope="module")
def planned():
    gm = capture(attend, {"x": torch.randn(1, 2, 8, 16)}).graphs[0]
    selection, target = Selection.of("attention", "reference"), Target.of("trn2")
    case = Case(device="trn2", regime="compile")
    return analyse(gm, selection, "all", target, case)[0], selection, target, case


def test_sets_that_cannot_run_have_no_time_in_the_report(planned):
    graph, _, target, case = planned
    times = {"none": 1e19, "attention:sdpa": math.inf}
    choice = BlockChoice("", 1, frozenset(), times, "none", {"attention": math.inf})
    graph = replace(graph, plan=replace(graph.plan, choices=(choice,)))
    (found,) = effect_info([graph], target, case).choices
    assert found.times_us == {"none": 1e19}
    assert found.taken == ()


def test_a_site_that_was_found_twice_is_named_as_the_one_that_is_rewritten(planned):
    graph, selection, target, case = planned
    (site,) = [d for d in graph.plan.decisions if d.choice == Choice.KERNEL]
    zero = Timing(capture_s=0, match_s=0, analyse_s=0, total_s=0, peak_rss_mb=0)
    model = ModelInfo(name="m", parameters=0, dtype="float32", graphs=1, graph_nodes=1)
    for decisions, name in (
        ((kept(site.finding, "again"), site), "model.attention.1"),
        ((site, kept(site.finding, "again")), "model.attention.0"),
    ):
        twice = replace(graph, plan=replace(graph.plan, decisions=decisions))
        report = build_report([twice], selection, "all", model, timing=zero, context=PredictionContext(target, case))
        assert [s.id for s in report.sites if s.choice == "kernel"] == [name]
        assert {b.site for b in report.boundaries} == {c.site for c in report.calls} == {name}
