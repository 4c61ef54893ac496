"""Guards found and disabled in a tree of a few lines; `make mutate` does it to the passes and the matcher."""

import dataclasses
import importlib
import json

import pytest
import typer
from documented import ROOT
from mutants import Runner, Unfit, guards_of, instrumented

SOURCE = '''"""Says which numbers are taken."""

from __future__ import annotations


def taken(n) -> int | None:
    if n < 0 or n == 7:
        return None
    if n > 100:
        return None
    if n == 50 and n % 2 == 0:
        return None
    return n


def quick(n) -> int | None:
    if n == 0:
        return None
    return taken(n) if n else None
'''
TEST = """from made.rule.numbers import quick, taken


def test_negative_numbers_are_not_taken():
    assert taken(-1) is None


def test_seven_is_seen_and_not_required():
    taken(7)


def test_others_are_taken():
    assert taken(3) == 3
    assert quick(2) == 2
    assert quick(0) is None
"""
DEPENDENT = """

seen = []


def test_what_the_next_one_needs():
    seen.append(taken(3))


def test_of_the_one_before():
    assert seen and taken(-2) is None
"""
PROJECT = """[tool.setuptools.package-dir]
"made.rule" = "rule"
"""


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("mutate_guards")


@pytest.fixture
def job(tool, tmp_path):
    """A project whose package `made.rule` lies in the folder rule, as passes/ and kernels/ do here."""
    root = tmp_path / "project"
    for name, text in {
        "pyproject.toml": PROJECT, "made/__init__.py": "", "rule/__init__.py": "", "rule/numbers.py": SOURCE,
        "tests/test_numbers.py": TEST,
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return tool.Job(root, ("rule/numbers.py",), ("tests",), (), root / "reasons.toml")


def test_a_folder_without_sources_is_an_error_and_not_a_tree_without_guards(tool, job, monkeypatch, capsys):
    with pytest.raises(Unfit, match=r"no file matches rules/\*\*/\*.py"):
        dataclasses.replace(job, files=(*job.files, "rules/**/*.py")).tree([])
    monkeypatch.setattr(tool, "Job", lambda tests: dataclasses.replace(job, files=("rules/*.py",)))
    with pytest.raises(typer.Exit) as caught:
        tool.main(list_=True)
    assert caught.value.exit_code == 2
    assert "no file matches rules/*.py" in capsys.readouterr().err


def test_sources_of_every_pass_are_among_those_with_guards(tool):
    found = set(tool.Job().tree([]).sources)
    passes = {str(p.relative_to(ROOT)) for p in (ROOT / "passes").rglob("*.py")}
    assert len(passes) > 15
    assert passes <= found


def statuses(found):
    return {o.guard.key: o.status for o in found}


def test_a_guard_is_killed_survives_or_is_never_seen(tool, job, tmp_path, capsys):
    save = tmp_path / "guards.json"
    tree = job.tree([])
    found = tool.run(job, tree, 1, save)
    assert statuses(found) == {
        "taken: n < 0": "killed",
        "taken: n == 7": "survived",
        "taken: n > 100": "never",
        "taken: n == 50 and n % 2 == 0": "never",
        "quick: n == 0": "survived",
        "quick: n": "never",
    }
    killed = next(o for o in found if o.guard.key == "taken: n < 0")
    assert killed.by == "tests/test_numbers.py::test_negative_numbers_are_not_taken"
    assert {entry["guard"] for entry in json.loads(save.read_text())} == {o.guard.key for o in found}
    assert (job.root / "rule/numbers.py").read_text() == SOURCE

    assert not tool.summary(found, job.equivalent(), tree, 0)
    assert "rule/numbers.py:7: taken: n == 7: survived 1 tests" in capsys.readouterr().out

    job.reasons.write_text(
        '["rule/numbers.py"]\n' + "".join(f'"{o.guard.key}" = "why"\n' for o in found if o.status != "killed")
    )
    assert tool.summary(found, job.equivalent(), tree, 0)
    job.reasons.write_text(job.reasons.read_text() + '"taken: n < 0" = "not so"\n"taken: n == 8" = "gone"\n')
    assert not tool.summary(found, job.equivalent(), tree, 0)
    out = capsys.readouterr().out
    assert "taken: n < 0: listed as equivalent, but killed by tests/test_numbers.py" in out
    assert "taken: n == 8: listed as equivalent, but there is no such guard" in out


def test_guards_killed_before_are_skipped(tool, job, tmp_path, monkeypatch):
    save = tmp_path / "guards.json"
    tree = job.tree([])
    before = [tool.Outcome(guard, "killed", "a test") for guard in tree.guards.values()]
    tool._save(save, before, tree)
    monkeypatch.setattr(tool, "Runner", None)
    assert tool.run(job, tree, 1, save, resume=True) == before
    (job.root / "rule/numbers.py").write_text(SOURCE + "\n")
    with pytest.raises(TypeError):
        tool.run(job, job.tree([]), 1, save, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tests/test_numbers.py", TEST.replace("== 3", "== 4")), "does not pass with all guards in place"),
        (("tests/test_numbers.py", "def test_nothing():\n    pass\n"), "is imported from nowhere"),
        (("tests/test_numbers.py", f"{TEST}{DEPENDENT}"), "test_of_the_one_before fails when it runs alone"),
    ],
)
def test_no_verdict_where_none_is_possible(tool, job, change, message):
    (job.root / change[0]).write_text(change[1])
    with pytest.raises(Unfit, match=message):
        tool.run(job, job.tree([]), 1)


def test_tests_of_another_copy_are_noticed(job, tmp_path):
    """As where an installed package is found in front of the copy."""
    with Runner(job.tree([]), tmp_path / "copy") as runner:
        list(runner.record(job.tests))
        (tmp_path / "copy/made/rule/numbers.py").write_text(SOURCE)
        with pytest.raises(Unfit, match="it is not the copy that is tested"):
            runner.control()


def keys(body, returns="int | None"):
    text = "\n".join(f"    {line}" for line in body.splitlines())
    return [(g.text, g.needed) for g in guards_of(f"def f(a, b, c) -> {returns}:\n{text}\n", "f.py")]


def test_operands_that_refuse_alone_are_guards_of_their_own():
    assert keys("if a or not (b and c):\n    return None") == [("a", False), ("b", True), ("c", True)]
    assert keys("if a and b:\n    raise ValueError") == [("a and b", False)]
    assert keys("if a and (b or c):\n    return []") == [("a and (b or c)", False), ("b", False), ("c", False)]
    assert keys("for x in a:\n    if any(b or y for y in x):\n        continue") == [("b", False), ("y", False)]


def test_locals_have_the_guards_of_their_conditions():
    assert keys("fits = a and b\nif not fits:\n    return None\nreturn c") == [("a", True), ("b", True)]
    assert keys("no = a(1) or b(2)\nif no is not None:\n    return no\nreturn c") == [("a(1)", False), ("b(2)", False)]


def test_answers_under_a_condition_are_guarded_and_choices_are_not():
    assert keys("if a and b:\n    return c\nreturn None") == [("a", True), ("b", True)]
    assert keys("if a and b:\n    return c\nreturn a") == []
    assert keys("if a:\n    b = 1\nreturn b") == []
    assert keys("return a if b else None") == [("b", True)]
    assert keys("return a if b else c") == []
    assert keys("return a and b", "bool") == [("a", True), ("b", True)]
    assert keys("return a and b") == []
    assert keys("return a or fail(b)") == [("a", True)]


def test_lines_stay_where_they_are():
    guards = guards_of(SOURCE, "numbers.py")
    text = instrumented(SOURCE, "numbers.py", dict(enumerate(guards, 1)))
    assert len(text.splitlines()) == len(SOURCE.splitlines())
    assert "if _guards_.off(1, n < 0) or _guards_.off(2, n == 7):" in text
