"""What the pages take from the code, and `tools/docs_reference.py`, which writes it."""

import importlib
import sys
import tomllib

import pytest
from documented import ROOT, fences

from fluxrewrite.cost.devices import device_names
from fluxrewrite.report.budget import BY_KIND, METRICS, parse_limit, read_budget
from fluxrewrite.site import Code


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setattr(sys, "argv", ["docs_reference.py", "--check"])
    return importlib.import_module("docs_reference")


def test_pages_say_what_the_code_says(reference, capsys):
    assert reference.main() == 0, f"{capsys.readouterr().out}run: make docs-reference"


def test_an_outdated_page_is_named_and_written_again(reference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(reference.pages, "__defaults__", (tmp_path / "docs",))
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "a.md"
    page.write_text("before\n<!-- generated: metrics -->\nold\n<!-- end -->\nafter\n")
    assert reference.main() == 1
    assert "not up to date: docs/a.md" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["docs_reference.py"])
    assert reference.main() == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| `barriers` | kernel calls inside an executable |" in text
    monkeypatch.setattr(sys, "argv", ["docs_reference.py", "--check"])
    assert reference.main() == 0


def test_a_page_with_an_unknown_table(reference, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.md").write_text("<!-- generated: metric -->\n<!-- end -->")
    monkeypatch.setattr(reference.pages, "__defaults__", (tmp_path,))
    assert reference.main() == 2
    assert "a.md: no table 'metric'; there are reason-codes, metrics" in capsys.readouterr().err


def test_every_reason_code_metric_and_device_has_a_row(reference):
    codes = [line for line in reference.reason_codes().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in codes] == [c.value for c in Code]
    assert all(line.count(" | ") == 1 and len(line.split(" | ")[1]) > 10 for line in codes)
    assert all(f"| `{name}` |" in reference.metrics() for name in METRICS)
    assert all(f"| `{name}` | `{name}.qkv` |" in reference.metrics_by_kind() for name in BY_KIND)
    assert all(f" {name} |" in reference.devices().splitlines()[0] for name in device_names())


def test_every_command_and_option_is_in_the_reference(reference):
    text = reference.cli()
    for path, command in reference._commands(reference.typer.main.get_command(reference.app)):
        section = text.partition(f"## fluxrewrite {path}\n")[2].partition("\n## ")[0]
        assert command.help.splitlines()[0] in section
        assert all(option in section for p in command.params if p.param_type_name == "option" for option in p.opts)


def test_the_budget_of_the_page_is_one(tmp_path):
    (budget,) = [f.text for f in fences(ROOT / "docs" / "ci.md") if f.language == "toml"]
    (tmp_path / "budget.toml").write_text(budget)
    limits = read_budget(tmp_path / "budget.toml", ["norm_rope_attention", "qkv"])
    assert [x.metric for x in limits] == ["barriers", "boundary_bytes", "kernels.norm_rope_attention", "graph_breaks"]
    for name in (*METRICS, *(f"{n}.qkv" for n in BY_KIND)):
        parse_limit(f"{name} > 1")


def test_the_extra_and_the_constraints_name_the_same_packages():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name.partition(">=")[0] for name in extras["docs"]} <= pinned
