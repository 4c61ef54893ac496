"""The summary fits 15 lines of 80 columns whatever the report, and what is left out below it is said."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.cost.noise import NEUTRAL
from fluxrewrite.report.advice import BetterPlan, NextStep, next_step, this_plan
from fluxrewrite.report.merge import merge
from fluxrewrite.report.model import ArtifactsInfo, BreakInfo, Verdict
from fluxrewrite.report.summary import Highlights, SummaryFact, highlights
from fluxrewrite.report.text.report import render
from fluxrewrite.report.text.section import Fitted, Rank, Section
from fluxrewrite.report.text.summary import LINES, SummaryText


def attend(x):
    return F.scaled_dot_product_attention(x.exp(), x, x) * 2


def broken_up(x):
    y = x.relu()
    torch._dynamo.graph_break()
    return attend(y)


@pytest.fixture(scope="module")
def reports():
    """Small reports of every kind: rewritten, refused, in two graphs, without a site, without a graph, of a FLUX.2."""

    def of(fn, size=16, **options):
        return fluxrewrite.inspect(fn, x=torch.randn(1, 2, 8, size), options=Options(**options))

    plain = of(attend)
    return {
        "rewritten": plain,
        "refused": of(attend, 192),
        "graph break": of(broken_up, regime="lazy"),
        "no site": of(lambda x: x + 1),
        "no graph": of(lambda x: x),
        "kept": of(attend, policy="none"),
        "auto": of(attend, policy="auto", provider="reference"),
        "merged": merge([plain, plain, of(attend, 192)]),
        "no predictions": plain.model_copy(update={"effect": None, "segments": None, "boundaries": (), "verdicts": ()}),
    }


KINDS = ("rewritten", "refused", "graph break", "no site", "no graph", "kept", "auto", "merged", "no predictions")


def shown(content, width=80):
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(content)
    return [line.rstrip() for line in captured.get().splitlines()]


def text_of(report, details):
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        render(report, console, details)
    return [line.rstrip() for line in captured.get().splitlines()]


def updated(report, **model):
    return report.model_copy(update={"model": report.model.model_copy(update=model)})


WORDS = st.text(alphabet="ab /._-[]\\\n\t漢字é…", max_size=300)
CHANGES = st.fixed_dictionaries(
    {
        "name": WORDS,
        "tp": st.sampled_from([1, 4]),
        "image_tokens": st.sampled_from([None, 256, 4096]),
        "graph_breaks": st.lists(st.builds(BreakInfo, reason=WORDS, location=WORDS), max_size=8).map(tuple),
        "dynamic_sizes": st.lists(WORDS, max_size=8).map(tuple),
        "eager_fallback": st.sampled_from([None, True]),
    }
)


@pytest.mark.parametrize("kind", KINDS)
@given(changes=CHANGES, reason=WORDS, path=WORDS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_report_fits(reports, kind, changes, reason, path):
    report = updated(reports[kind], **changes)
    sites = tuple(
        s.model_copy(update={"reasons": tuple(r.model_copy(update={"message": reason}) for r in s.reasons)})
        for s in report.sites
    )
    boundaries = tuple(b.model_copy(update={"path": path}) for b in report.boundaries)
    report = report.model_copy(update={"sites": sites, "boundaries": boundaries})
    alone, some = text_of(report, "none"), text_of(report, "summary")
    assert len([line for line in alone if line]) <= 15
    assert len(some) <= 60
    assert all(cell_len(line) <= 80 for line in (*alone, *some))
    assert alone[-1].startswith("Left out: ")
    assert some[: len(alone) - 2] == alone[:-2]


@given(
    st.builds(
        Highlights,
        title=WORDS,
        facts=st.lists(st.builds(SummaryFact, label=st.just("Fact"), text=WORDS), max_size=5).map(tuple),
        warnings=st.lists(WORDS.filter(str.split), max_size=9).map(tuple),
        next=st.builds(NextStep, why=WORDS, command=WORDS),
    )
)
@settings(max_examples=30, deadline=None)
def test_any_facts_fit(found):
    lines = shown(SummaryText(found))
    assert len(lines) <= LINES
    assert all(cell_len(line) <= 80 for line in lines)
    if found.warnings:
        assert any(line.startswith("Warning") for line in lines)


def test_a_command_is_whole_or_not_there():
    short = NextStep("do it", "fluxrewrite inspect flux2-dev \\\n    --policy auto")
    lines = shown(SummaryText(Highlights("m", (), (), short)))
    assert lines[-3:] == ["Next      do it:", f"{'':10}fluxrewrite inspect flux2-dev \\", f"{'':14}--policy auto"]
    for command in ("fluxrewrite inspect " + "a/" * 50, "fluxrewrite inspect 'a\tb'", "a\n" * 9):
        last = shown(SummaryText(Highlights("m", (), (), NextStep("do it", command))))[-1]
        assert last.strip() == "(the command does not fit here: --details full shows it)"


def test_what_is_cut_ends_in_dots_and_warnings_are_counted():
    facts = tuple(SummaryFact("Fact", "word " * 100) for _ in range(5))
    lines = shown(
        SummaryText(Highlights("name " * 200, facts, tuple(f"warning {i}" for i in range(30)), NextStep("a", "b")))
    )
    assert len(lines) == LINES
    assert sum(line.endswith(" …") for line in lines) == 6
    (more,) = [line.strip() for line in lines if "more: --details full" in line]
    seen = sum("warning " in line for line in lines)
    assert more == f"and {30 - seen} more: --details full"
    assert seen >= 1


def test_sections_that_do_not_fit_are_named_and_the_first_by_rank_are_shown():
    def section(rank, lines):
        return Section(f"heading {rank.name}", tuple(f"{rank.name} {i}" for i in range(lines)), rank)

    parts = [
        section(Rank.TRACE, 2),
        section(Rank.VERDICTS, 30),
        section(Rank.BOUNDARIES, 8),
        section(Rank.PREDICTION, 5),
    ]
    lines = shown(Fitted("head", parts, 25))
    assert len(lines) <= 25
    assert [line for line in lines if line.startswith("heading")] == [
        "heading TRACE",
        "heading BOUNDARIES",
        "heading PREDICTION",
    ]
    assert lines[-1] == "Left out: verdicts; --details full shows all."
    assert "Left out" not in "".join(shown(Fitted("head", parts, 100)))
    many = [section(rank, 40) for rank in Rank]
    (last,) = [line for line in shown(Fitted("head", many, 5)) if line.startswith("Left out: ")]
    assert last.endswith(" more; --details full shows all.")
    assert len(last) <= 80
    assert shown(Fitted("head", many, 5), width=50)[-1] == "15 sections left out; --details full shows all."


# *** what the facts say


def fact(report, label):
    (text,) = [f.text for f in highlights(report).facts if f.label == label]
    return text


def test_what_was_found_and_planned(reports):
    assert fact(reports["rewritten"], "Found") == "1 of 1 attention calls; 1 near miss"
    assert fact(reports["rewritten"], "Plan") == "policy all: kernels take 1 attention site"
    assert fact(reports["kept"], "Plan") == "policy none: no site is rewritten, the graph stays as it is"
    assert fact(reports["no site"], "Found") == (
        "no site of any kind; looked for attention, norm_rope_attention, qkv and rope"
    )
    inline = tuple(s.model_copy(update={"choice": "inline"}) for s in reports["rewritten"].sites[:1])
    assert fact(reports["rewritten"].model_copy(update={"sites": inline}), "Plan") == (
        "policy all: 1 attention site as plain operations"
    )


def stepped(report, ratio, **fields):
    e = report.effect
    after = e.step_before.model_copy(update={"us": e.step_before.us * ratio})
    return report.model_copy(update={"effect": e.model_copy(update={"step_after": after, **fields})})


SLOWER = "the plan makes a step slower: see Boundaries for what the calls cost"


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1 - 1.1 * NEUTRAL, "faster"),
        (1 - 0.9 * NEUTRAL, "about as fast as before"),
        (1 + 0.9 * NEUTRAL, "about as fast as before"),
        (1 + 1.1 * NEUTRAL, "slower"),
    ],
)
def test_a_difference_below_the_threshold_of_verdicts_is_none(reports, ratio, words):
    report = stepped(reports["rewritten"], ratio)
    assert fact(report, "Expected").startswith(f"a step is {words}: ")
    assert (SLOWER in highlights(report).warnings) == (words == "slower")


def test_what_is_expected(reports):
    assert fact(reports["no predictions"], "Expected") == "not predicted: the report has no device to predict for"
    assert fact(reports["kept"], "Expected").startswith("no change: a step takes ")
    assert fact(reports["rewritten"], "Basis") == "A model's figures: nothing was run on hardware."
    runs = Verdict(
        kernel="attention", regime="compile", verdict="slower", why="", basis="measured", ratio=1.2, predicted_s=1.2
    )
    measured = stepped(reports["rewritten"], 0.5, measured=runs)
    assert fact(measured, "Expected").startswith(
        "a step is slower by runs of this very case: 1.00 s to 1.20 s (+20.0%, measured)"
    )
    assert SLOWER in highlights(measured).warnings
    assert "runs of this very case" in fact(measured, "Basis")


def test_the_largest_boundary(reports):
    report = reports["rewritten"]
    (border,) = report.boundaries
    larger = border.model_copy(update={"cost_us": 1234.5, "basis": "measured", "path": "blocks.3.attn"})
    both = report.model_copy(update={"boundaries": (border, larger, larger)})
    assert fact(both, "Boundary").startswith(
        "largest: 2 x attention:sdpa at blocks.*.attn, 2,469.0 us a step (measured)"
    )
    unknown = report.model_copy(update={"boundaries": (border.model_copy(update={"cost_us": None}),)})
    assert "cost unknown" in fact(unknown, "Boundary")
    assert "Boundary" not in [f.label for f in highlights(reports["no site"]).facts]


def test_warnings(reports):
    def warned(report):
        return "\n".join(highlights(report).warnings)

    plain = reports["rewritten"]
    assert "Dynamo made no graph" in warned(reports["no graph"])
    assert "1 graph break ends an executable, 437.0 us a step (" in warned(reports["graph break"])
    breaks = tuple(BreakInfo(reason="print was called", location=f"model.py:{i}") for i in (7, 9))
    assert "2 graph breaks, each ends an executable: the first at model.py:7: print was called" in warned(
        updated(plain, graph_breaks=breaks)
    )
    assert "kernel calls split the graph: 2 executables become 4" in warned(reports["graph break"])
    assert "TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION=1" in warned(updated(plain, eager_fallback=True))
    assert "1 site left alone and 1 near miss; most often limit (1): head_size 192" in warned(reports["refused"])
    assert "policy" not in warned(reports["kept"])
    assert "tp 4: figures are those of one rank" in warned(updated(plain, tp=4))
    assert "dynamic sizes: x[0] = s0" in warned(updated(plain, dynamic_sizes=("x[0] = s0",)))
    unproved = tuple(s.model_copy(update={"proof": None}) for s in plain.sites)
    assert "no rewritten site was proved" in warned(plain.model_copy(update={"sites": unproved}))
    assert "no rewritten site was proved" not in warned(plain)
    kept = ArtifactsInfo(predicted_neffs=1, predicted_kernel_calls=1, processes=(), agree=False)
    assert "what was compiled differs from what was predicted" in warned(plain.model_copy(update={"artifacts": kept}))


def test_slower_verdicts_are_warned_of_where_the_plan_calls_the_kernel(reports):
    plain = reports["rewritten"]

    def judged(kernel, policy="all"):
        slow = Verdict(kernel=kernel, regime="compile", verdict="slower", why="", basis="assumed", ratio=1.05)
        summary = plain.summary.model_copy(update={"policy": policy})
        return highlights(plain.model_copy(update={"verdicts": (slow,), "summary": summary})).warnings

    assert "verdict on attention: slower, 1.050 times a step without it (assumed)" in judged("attention")
    assert not [w for w in judged("attention", "auto") if "verdict" in w]
    assert not [w for w in judged("rope") if "verdict" in w]
    assert not [w for w in judged("attention+rope") if "verdict" in w]


# *** what to do next


def test_the_next_step(reports):
    best = reports["rewritten"].model_copy(update={"effect": None})
    assert next_step(best) == NextStep(
        "compile the model with this plan", "torch.compile(model, backend=fluxrewrite.backend())"
    )
    assert next_step(reports["kept"]).command == "fluxrewrite kernels"
    assert next_step(reports["no site"]).why == "list what is looked for, and within which limits"
    assert BetterPlan("", kernels=("rope", "qkv:triple")).options == "--kernels rope,qkv:triple"


def test_the_call_names_what_is_not_the_default(reports):
    def call(policy, kernels=None):
        report = reports["rewritten"]
        update = {"policy": policy, "kernels": kernels or report.summary.kernels}
        return this_plan(report.model_copy(update={"summary": report.summary.model_copy(update=update)}))

    assert call("auto") == 'torch.compile(model, backend=fluxrewrite.backend(policy="auto"))'
    assert call("my_policy") == "torch.compile(model, backend=fluxrewrite.backend(policy=my_policy))"
    assert call("all", ("attention", "rope")) == (
        'torch.compile(model, backend=fluxrewrite.backend(\n    kernels="attention,rope"))'
    )
    assert this_plan(reports["kept"]) == ""
