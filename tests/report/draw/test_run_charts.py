"""A bench on the page: its table, its curves, and what is said where it is of something else."""

import itertools
import re

import pytest
from made_runs import MINI, made, record

from fluxrewrite.report.draw.page import page
from fluxrewrite.report.draw.run_charts import _axis, bench_of
from fluxrewrite.report.runs_table import cells

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def report(of):
    """A report that says it is on what the made runs are of."""
    found = of(lambda x: x.exp())
    sizes = {k: MINI[k] for k in ("batch", "image_tokens", "text_tokens", "dtype")}
    return found.model_copy(update={"model": found.model.model_copy(update={"name": MINI["model"], **sizes})})


def dots(chart, kind):
    """Heights of the dots of one line."""
    group = re.search(rf'<g class="c{kind}">.*?</g>', chart.picture, re.S)[0]
    return [float(y) for y in re.findall(r'cy="([\d.]+)"', group)]


def test_the_table_has_the_cells_of_the_bench(report):
    runs = made()
    text = page(report, runs)
    body = re.search(r'<table id="runs">.*?<tbody>(.*?)</tbody>', text, re.S)[1]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", r, re.S) for r in re.findall(r"<tr>(.*?)</tr>", body, re.S)]
    assert len(rows) == len(runs.variants)
    for row, variant in zip(rows, runs.variants, strict=True):
        wanted = cells(runs, variant)
        names = (
            "variant",
            "calls",
            "s_per_step",
            "steps_per_s",
            "ratio",
            "noise",
            "cold_step_s",
            "cold_growth",
            "peak_mb",
        )
        assert [*row[:3], *row[4:10]] == [wanted[n] for n in names]
        assert row[3] == f"{wanted['low_s']} - {wanted['high_s']}"
    assert [r[-1] for r in rows] == ["finite", *["0.999990, same bits"] * 3]


def test_curves_have_a_dot_for_each_step_and_slower_is_higher(report):
    bench = bench_of(report, made())
    cold, warm = bench.charts
    assert [name for name, _ in bench.legend] == ["vanilla", "qkv", "attention", "norm_rope_attention"]
    assert [len(dots(c, kind)) for c in bench.charts for _, kind in bench.legend] == [4] * 8
    assert dots(cold, 0)[0] < dots(cold, 0)[1], "the first cold step takes 30 s, the next 1 s"
    vanilla, qkv, attention = (dots(warm, kind)[0] for kind in range(3))
    assert attention < vanilla < qkv
    assert "qkv 30 0.9 0.9 0.9" in cold.words
    assert "attention 1.25 1.25 1.25 1.25" in warm.words


def test_one_run_of_one_step_and_a_failed_variant(report):
    setup = {**MINI, "steps": 1, "runs": 1}
    one = record("vanilla", 1.0, {}, runs=[{"steps_s": [2.0]}])
    failed = record("rope", 1.0, {}, runs=[], output=None, error=f"RuntimeError: {EVIL}")
    runs = made(one, failed, setup=setup)
    (cold,) = bench_of(report, runs).charts
    assert len(dots(cold, 0)) == 1
    text = page(report, runs)
    assert "failed: RuntimeError: &lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert EVIL not in text


def test_nothing_has_run(report):
    assert "Nothing has run." in page(report, made(variants=[]))


def test_more_variants_than_kinds_of_line(report):
    runs = made(*(record(f"v{i}", 1.0 + i / 10, {}) for i in range(10)))
    assert [kind for _, kind in bench_of(report, runs).legend] == [*range(8), 0, 1]


def test_notes_say_where_runs_are_not_of_the_report(report, of):
    assert bench_of(report, made()).notes == ()
    other = report.model_copy(update={"model": report.model.model_copy(update={"name": "flux1-dev", "tp": 4})})
    (note,) = bench_of(other, made()).notes
    assert note == "These runs are not of what the report is about: model flux2-klein-mini, not flux1-dev, tp 1, not 4."
    assert f'<p class="note">{note}</p>' in page(other, made())


def test_names_are_text(report):
    text = page(report, made(record("vanilla", 1.0, {}), record(EVIL, 2.0, {})))
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.002), (0.5, 0.5), (1.1, 60.0), (1e-3, 9e-3), (0.02, 300.0), (7.0, 8.0)]
)
def test_axes_hold_all_values_and_few_figures_that_do_not_overlap(low, high):
    marks, at = _axis(low, high)
    assert 2 <= len(marks) <= 12
    assert marks[0] <= low * 1.0001
    assert at(low) >= at(high)
    heights = [at(m) for m in marks]
    assert all(a - b >= 13.9 for a, b in itertools.pairwise(heights))
    assert all(5 <= at(s) <= 190 for s in (low, high))
