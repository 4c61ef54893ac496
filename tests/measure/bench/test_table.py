"""The table in every form."""

import csv
import io
import json

import pytest
from rich.console import Console

from fluxrewrite.cost.runs import Runs
from fluxrewrite.cost.runs_as_evidence import evidence_of
from fluxrewrite.report.runs_table import COLUMNS, as_csv, as_markdown, notes
from fluxrewrite.report.text.runs import rendered


def text(runs, width=80):
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(rendered(runs))
    return captured.get()


@pytest.fixture
def mixed(made, row):
    """A fast variant, one that computes something else, one whose runs differ, and one that failed."""
    restless = row("norm_rope_attention", 0.9, {"norm_rope_attention:joint": 1})
    restless["runs"][2].update(steps_s=[1.1] * 4, others=0.4)
    restless["runs"][3].update(steps_s=[0.9] * 4)
    restless["runs"][0].update(others=0.9)
    other = {"digest": "e", "finite": True, "cosine": 0.5}
    return made(
        row("vanilla", 1.0, {}),
        row("qkv", 0.9, {"qkv:triple": 2, "qkv:packed": 2}),
        row("attention", 1.25, {"attention:sdpa": 3}, output=other),
        restless,
        row("rope", 1.0, {}),
        row("auto", 1.0, {}, runs=[], output=None, peak_rss_mb=None, error="RuntimeError: a | b"),
    )


def test_csv_has_a_row_for_each_variant(mixed):
    rows = list(csv.DictReader(io.StringIO(as_csv(mixed))))
    assert [r["variant"] for r in rows] == [v.name for v in mixed.variants]
    assert list(rows[0]) == list(COLUMNS)
    qkv, failed = rows[1], rows[-1]
    assert (qkv["calls"], qkv["warm_runs"], float(qkv["s_per_step"]), float(qkv["ratio"])) == ("4", "3", 0.9, 0.9)
    assert (float(qkv["low_s"]), float(qkv["high_s"])) == (0.9, 0.9018)
    assert float(qkv["steps_per_s"]) == pytest.approx(1 / 0.9, rel=1e-3)
    assert (float(qkv["cold_step_s"]), qkv["cold_growth"], float(qkv["peak_mb"])) == (30.0, "+0.0%", 1000.0)
    assert float(rows[2]["cosine"]) == 0.5
    assert failed["error"] == "RuntimeError: a | b"
    assert [r["others"] for r in rows] == ["0.0%"] * 3 + ["40.0%", "0.0%", ""]
    assert {k for k, v in failed.items() if v} == {"variant", "error"}


def test_memory_of_all_ranks_is_shown_next_to_that_of_the_largest(made, row, content):
    case = {**content()["case"], "tp": 4}
    runs = made(row("vanilla", 1.0, {}, peak_rss_sum_mb=3500.0), case=case)
    assert ", tp 4, " in text(runs)
    assert "1000          3500" in text(runs)
    assert "| all ranks MB |" in as_markdown(runs)
    assert next(csv.DictReader(io.StringIO(as_csv(runs))))["sum_mb"] == "3500"
    assert "all ranks MB" not in text(made(row("vanilla", 1.0, {})))
    assert evidence_of(runs, "runs.json").tables[0].case.tp == 4


def test_markdown_is_one_table(mixed):
    lines = as_markdown(mixed).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(mixed.variants)
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert table[0].split(" | ")[2] == "s a step"
    assert "device MB" not in table[0]
    assert table[3].startswith(
        "| qkv | 4 | 0.9000 | 0.9000 - 0.9018 | 1.111 | 0.900 | 1.0% | 30.00 | +0.0% | 1000 | 0.999990"
    )
    assert table[-1].startswith("| auto: RuntimeError: a \\| b |")


def test_json_is_the_file(mixed):
    assert Runs.model_validate_json(mixed.to_json()) == mixed
    assert json.loads(mixed.to_json())["variants"][1]["calls"] == {"qkv:triple": 2, "qkv:packed": 2}


def test_text_fits_80_columns_and_shows_errors_as_rows(mixed):
    shown = text(mixed)
    assert max(map(len, shown.splitlines())) <= 80
    assert "flux2-klein-mini, bfloat16, tp 1, batch 1, 256 + 512 tokens" in shown
    warm, cold = shown.index("warm "), shown.index("cold, memory")
    assert [line.split()[0] for line in shown[warm:cold].splitlines()[1:] if line.strip()] == [
        "vanilla", "qkv", "attention", "norm_rope_attention", "rope",
    ]  # fmt: skip
    assert "auto: RuntimeError: a | b" in shown
    assert "0.500000 !" in shown[cold:]


def test_the_order_of_the_runs_is_shown(made, row):
    both = [row("vanilla", 1.0, {}), row("qkv", 0.9, {"qkv:triple": 2})]
    assert "the first run cold, one variant after the other" in text(made(*both))
    assert "the first run cold, warm ones in turn\n" in text(made(*both, in_turn=True))
    later = row("rope", 0.9, {"rope:interleaved": 2}, beside=[{"steps_s": [1.0] * 4, "others": 0.3}])
    runs = made(*both, later, in_turn=True)
    assert "in turn, some at a time, each next to vanilla" in " ".join(text(runs).split())
    assert "meanwhile (rope 30%)" in " ".join(notes(runs))


def test_notes_name_doubtful_variants(mixed):
    restless, disturbed, other, untaken = notes(mixed)
    assert "meanwhile (norm_rope_attention 40%)" in disturbed
    assert restless.startswith("A warm step is known to no better than 5% (norm_rope_attention 22%)")
    assert other.startswith("! attention: the last latents are not vanilla's")
    assert untaken == "No kernel was called in rope; fluxrewrite inspect flux2-klein-mini says why."


def test_a_note_says_that_vanilla_is_missing(made, row):
    (note,) = notes(made(row("qkv", 0.9, {"qkv:triple": 2})))
    assert "Without the variant vanilla" in note
    assert list(notes(made(row("vanilla", 1.0, {})))) == []


def test_latents_that_are_not_finite_and_device_memory(made, row):
    bad = row("qkv", 0.9, {"qkv:triple": 1}, output={"digest": "d", "finite": False}, peak_device_mb=2048.5)
    shown = made(row("vanilla", 1.0, {}), bad)
    assert "not finite !" in text(shown)
    assert "device MB" in text(shown)
    assert "device MB" in as_markdown(shown)
    assert "not finite" in as_csv(shown)
    assert " !" not in as_csv(shown)


def test_nothing_has_run(made, row):
    empty = made().model_copy(update={"variants": ()})
    assert "nothing has run" in text(empty)
    cold = made(row("vanilla", 1.0, {}, runs=[{"steps_s": [3.0, 1.0, 1.0, 1.0]}]))
    assert "first step" in text(cold)
    assert "ratio" not in text(cold)
