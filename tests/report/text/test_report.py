"""The text of a report says what its JSON says, in 80 columns."""

from pathlib import Path

import pytest
from rich.console import Console

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.analysis import inspect_spec
from fluxrewrite.cost.noise import NEUTRAL
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.report.advice import auto_is_better, command
from fluxrewrite.report.boundary_rows import boundary_rows
from fluxrewrite.report.format import bytes_text, change_text, folded, sizes_text, time_text, trimmed
from fluxrewrite.report.model import BreakInfo
from fluxrewrite.report.text.report import render


def text_of(report, details="full"):
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        render(report, console, details)
    text = captured.get()
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    return text


def flat(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def klein():
    pytest.importorskip("diffusers")
    return inspect_spec(find_model("flux2-klein-4b"), Shapes(256, 512, 1))


@pytest.fixture(scope="module")
def reports():
    return {}


@pytest.fixture
def small(flux2, reports):
    """`small(**options)`: the report of a small model; each is made once."""

    def run(**options):
        key = tuple(sorted(options.items()))
        if key not in reports:
            net, inputs = flux2(num_layers=1, num_single_layers=1)
            reports[key] = fluxrewrite.inspect(net, options=Options(**options), **inputs)
        return reports[key]

    return run


def test_klein_is_compact_and_answers_first(klein):
    text = text_of(klein)
    assert len(text.splitlines()) <= 102
    words = ("Found ", "Predicted for", "Verdicts", "Boundaries", "would take", "What was found", "Trace", "Next:")
    order = [text.index(t) for t in words]
    assert order == sorted(order)
    assert text.index("Basis     A model's figures: nothing was run on hardware.") < text.index("Boundary ")


def test_figures_are_those_of_the_json(klein):
    text, e = flat(text_of(klein)), klein.effect
    assert f"time {time_text(e.step_before.us)} {time_text(e.step_after.us)} " in text
    assert f"memory traffic {bytes_text(e.bytes_before)} {bytes_text(e.bytes_after)} " in text
    assert (
        f"compiled kernels and calls {e.kernels_before} {e.kernels_after} {e.kernels_after - e.kernels_before:+d}"
        in text
    )
    assert f"executables {klein.segments.before} {klein.segments.after} " in text
    assert f"cold compile: {e.compile.seconds:.0f} s" in text
    assert f"distinct kernel calls: {e.compile.specialisations}" in text
    assert f"Predicted for {e.device}, {e.regime}; fusion by {e.compiler}; policy all" in text


def test_verdicts_are_those_of_the_json(klein):
    text = flat(text_of(klein))
    assert len(klein.verdicts) >= 4
    for v in klein.verdicts:
        assert f"{v.kernel} {v.verdict} {v.ratio:.3f} {v.basis} {flat(trimmed(v.why, 150))}" in text


def test_boundaries_add_up_to_those_of_the_json(klein):
    rows = boundary_rows(klein)
    assert sum(len(r.members) for r in rows) == len(klein.boundaries) == 55
    assert sum(r.bytes for r in rows) == sum(b.bytes for b in klein.boundaries) > 0
    assert sum(r.lost for r in rows) == sum(len(b.lost_fusions) for b in klein.boundaries)
    assert sum(r.cost_us for r in rows) == pytest.approx(sum(b.cost_us for b in klein.boundaries))
    assert [r.cost_us for r in rows] == sorted((r.cost_us for r in rows), reverse=True)
    text = flat(text_of(klein))
    for r in rows:
        size = bytes_text(r.bytes) if r.bytes else "0"
        assert f"{len(r.members)} {r.kind} {r.kernel} {size} {r.lost} {r.cost_us:,.1f} {r.basis} {r.path}" in text


def test_tensors_and_absorptions_in_words(klein):
    text = flat(text_of(klein))
    largest = max((b for b in klein.boundaries if b.tensors), key=lambda b: b.bytes)
    for t in largest.tensors:
        assert f"{t.role} {t.name} ({t.op}, {t.dtype} {'x'.join(map(str, t.shape))}, {bytes_text(t.bytes)})" in text
    saved = [a.bytes for b in klein.boundaries for a in b.absorptions if a.side == "after"]
    assert f"take the following silu + mul + cat into the kernel: saves {bytes_text(sum(saved))} of traffic" in text
    assert f"a step in {len(saved)} calls" in text


def test_choices_with_their_times(klein):
    text = flat(text_of(klein))
    for c in klein.effect.choices:
        assert f"{c.blocks} x {folded(c.block)}: {c.chosen} {c.chosen} {c.times_us[c.chosen]:.1f}" in text


def test_every_kernel_call_and_its_sizes(klein):
    text = flat(text_of(klein))
    assert "20 x norm_rope_attention:single at single_transformer_blocks.*.attn" in text
    for s in klein.sites:
        if s.choice == "kernel":
            assert sizes_text(s.shapes) in text


def changed(report, **fields):
    return report.model_copy(update={"effect": report.effect.model_copy(update=fields)})


def test_ranges_assumptions_and_executables_in_the_lazy_regime(small):
    report = small(regime="lazy", provider="reference")
    text, e = flat(text_of(report)), report.effect
    assert f"step after: {time_text(e.step_after.low_us)} to {time_text(e.step_after.high_us)}" in text
    assert f"{change_text(e.step_before.us, e.step_after.us)} assumed" in text
    assert report.segments.after > 1
    assert f"executables 1 {report.segments.after} {report.segments.after - 1:+d}" in text
    assert "split" in text
    assert "cold compile: unknown" in text


def test_auto_is_the_next_command_only_where_it_is_faster(small, klein):
    report = small(regime="lazy", provider="reference")
    assert auto_is_better(report)
    words = flat(text_of(report))
    assert 'Next: torch.compile(model, backend=fluxrewrite.backend( policy="auto", provider="reference"))' in words
    assert "try --policy auto (predicted to be faster)" in words
    assert 'Or take this plan: torch.compile(model, backend=fluxrewrite.backend( provider="reference"))' in words
    assert not auto_is_better(small(policy="auto", regime="lazy", provider="reference"))
    saved = sum(c.blocks * (c.times_us["none"] - c.times_us[c.chosen]) for c in klein.effect.choices)
    estimate = klein.effect.step_before.us - saved
    for us, better in ((estimate * (1 + 0.9 * NEUTRAL), False), (estimate * (1 + 1.1 * NEUTRAL), True)):
        step = klein.effect.step_after.model_copy(update={"us": us})
        assert auto_is_better(changed(klein, step_after=step)) == better
        words = "Next: fluxrewrite inspect flux2-klein-4b --policy auto\n  try --policy auto (predicted to be faster)"
        assert (words in text_of(changed(klein, step_after=step))) == better


def test_the_next_command_looks_for_the_same_kinds(klein):
    summary = klein.summary.model_copy(update={"kernels": ("qkv:triple", "attention")})
    narrow = klein.model_copy(update={"summary": summary})
    assert command(klein, "--policy auto") == "fluxrewrite inspect flux2-klein-4b --policy auto"
    effect = klein.effect.model_copy(
        update={"device": "acme1"}
    )  # the name in a profile file, which --device does not take
    own = klein.model_copy(update={"effect": effect})
    assert command(own, "--policy auto") == "fluxrewrite inspect flux2-klein-4b --device FILE --policy auto"
    assert command(narrow, "--policy auto") == (
        "fluxrewrite inspect flux2-klein-4b --kernels qkv:triple,attention \\\n    --policy auto"
    )
    assert command(narrow, "--kernels rope") == "fluxrewrite inspect flux2-klein-4b --kernels rope"


def test_auto_is_not_proposed_where_it_would_take_the_same(klein):
    slow = klein.effect.step_after.model_copy(update={"us": 1e9})
    kept = [s.model_copy(update={"choice": "keep"}) if s.form == "triple" else s for s in klein.sites]
    assert auto_is_better(changed(klein, step_after=slow))
    assert not auto_is_better(changed(klein, step_after=slow).model_copy(update={"sites": tuple(kept)}))


def test_a_kernel_that_its_verdict_calls_slower_is_left_out_next(klein):
    slow = tuple(v.model_copy(update={"verdict": "slower" if v.kernel == "qkv" else "neutral"}) for v in klein.verdicts)
    (joint,) = [c for c in klein.effect.choices if "qkv" not in {k.kind for k in c.taken}]
    choices = (joint,)
    same = klein.effect.step_after.model_copy(update={"us": 1.0})
    text = flat(text_of(changed(klein, choices=choices, step_after=same).model_copy(update={"verdicts": slow})))
    assert "Next: fluxrewrite inspect flux2-klein-4b --kernels norm_rope_attention try " in text
    assert "try --kernels norm_rope_attention (qkv is slower by its verdict)" in text


def test_policies(small):
    text = text_of(small(policy="auto", provider="reference"))
    assert "Plan: what auto took in each kind of block" in text
    kept = small(policy="auto", regime="lazy", provider="reference")
    assert not any(s.choice == "kernel" for s in kept.sites)
    text = flat(text_of(small(policy="none", provider="reference")))
    assert "policy: policy 'none' keeps it" in text
    assert "Boundaries" not in text


def test_choices_that_were_not_taken_are_not_called_taken(klein):
    auto = klein.model_copy(update={"summary": klein.summary.model_copy(update={"policy": "auto"})})
    assert "Best for each kind of block, but not taken" in text_of(auto)
    assert "took" not in text_of(auto)


def test_equal_blocks_are_one_entry(klein):
    block = klein.effect.choices[1]
    last = block.model_copy(update={"block": "single_transformer_blocks.20", "blocks": 1})
    assert f"21 x single_transformer_blocks.*: {block.chosen}" in text_of(changed(klein, choices=(block, last)))


def test_a_reason_stands_once_below_its_sites(small):
    text = text_of(small(policy="none", provider="reference"))
    assert text.count("policy: policy 'none' keeps it") == 1
    assert "at transformer_blocks.*.attn\n" in text
    assert "at single_transformer_blocks.*.attn\n" in text


def test_where_the_seconds_of_a_compile_come_from(klein):
    assert flat(klein.effect.compile.why.rpartition("; ")[2]) in flat(text_of(klein))


def test_tensor_parallel_figures_are_those_of_one_rank(small):
    note = "tp 2: all sizes, bytes and times are those of one rank, without collectives"
    assert note in flat(text_of(small(tp=2, provider="reference")))
    assert note not in flat(text_of(small(provider="reference")))


def test_graph_breaks_with_their_line(small):
    report = small(provider="reference")
    stop = report.boundaries[0].model_copy(
        update={"site": "", "kind": "split", "path": "model.py:7", "reason": "print was called", "cost_us": 437.0}
    )
    broken = report.model_copy(
        update={
            "boundaries": (*report.boundaries, stop, stop),
            "model": report.model.model_copy(
                update={"graph_breaks": (BreakInfo(reason="print", location="model.py:7"),)}
            ),
        }
    )
    text = flat(text_of(broken))
    assert "2 at model.py:7: print was called (874.0 us, " in text
    assert "graph break at model.py:7: print" in text
    assert len(boundary_rows(broken)) == len(boundary_rows(report))


def test_a_report_without_predictions(small):
    report = small(provider="reference").model_copy(update={"effect": None, "boundaries": (), "verdicts": ()})
    assert "was not predicted" in text_of(report)


def test_losses_elsewhere_and_measured_costs_are_told(klein):
    assert "80 more pairs of operations are no longer fused" in flat(text_of(changed(klein, lost_elsewhere=80)))
    assert "us measured" not in text_of(klein)
    first = klein.boundaries[0].model_copy(update={"basis": "measured", "cost_us": 9.0})
    assert "us measured: from the runs" in text_of(klein.model_copy(update={"boundaries": (first,)}))


def test_long_names_without_blanks_still_fit(klein):
    long = "a_very_long_module_name_" * 9
    path = klein.boundaries[0].model_copy(update={"path": long})
    choice = klein.effect.choices[0].model_copy(update={"block": long})
    report = changed(klein, choices=(choice,)).model_copy(update={"boundaries": (path,)})
    assert long[:20] in text_of(report)


WORDS = [
    (bytes_text(0), "0 B"), (bytes_text(999), "999 B"), (bytes_text(9437184), "9.44 MB"), (bytes_text(12684294146), "12.68 GB"),
    (bytes_text(-188743680), "-189 MB"), (time_text(12.34), "12.3 us"), (time_text(35511.9), "35.51 ms"),
    (time_text(6.2e6), "6.20 s"), (change_text(100, 98.1), "-1.9%"), (change_text(1, 2.27), "x 2.27"), (change_text(0, 3), ""),
    (folded("blocks.3.attn.12"), "blocks.*.attn.*"), (sizes_text({"a": 2, "b": 2, "c": "s0", "d": 2}), "a=b=2 c=s0 d=2"),
    (trimmed("one (" + "x" * 30 + ") two", 50), "one two"), (trimmed("one, two three", 10), "one, two …"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "wanted"), WORDS)
def test_words(found, wanted):
    assert found == wanted


def test_readme_shows_such_a_report(klein):
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    shown = readme.split("$ fluxrewrite inspect flux2-klein-4b --details none\n")[1].split("```")[0]
    assert shown.split() == text_of(klein, "none").split()
    assert all(len(line) <= 80 for line in shown.splitlines())
