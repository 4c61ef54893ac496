"""Every command that README.md, CONTRIBUTING.md and docs/ show."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from doc_commands import ByTest, NotHere, Recipe, Run, Target, Tool, Whole, how
from documented import LANGUAGES, PAGES, PROGRAMS, ROOT, Command, commands, fences

from fluxrewrite.cli import app

COMMANDS = list({c.text: c for c in reversed(commands())}.values())[::-1]
_OWN = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}  # pytest may run under make
CI = (ROOT / ".ci" / "run").read_text()


def of(kind):
    """The commands that are run so."""
    found = []
    for command in COMMANDS:
        try:
            row = how(command)
        except LookupError:  # test_every_command_is_known says so
            continue
        if isinstance(row, kind):
            found.append(pytest.param(command, row, id=command.text))
    return found


def runs(wanted):
    """What `Run` rows run, each once: the command, and exit code."""
    found = {p.values[1].of(p.values[0]): p.values for p in of(Run) if wanted(p.values[1])}
    return [pytest.param(text, row.code, id=text) for text, (_, row) in found.items()]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.text)
def test_every_command_is_known(command):
    how(command)


def test_unknown_options_are_reported():
    with pytest.raises(Exception, match="--flag"):
        _read(Command("x.md:3", "fluxrewrite inspect flux2-dev --flag"))


def test_a_command_that_no_test_runs_is_reported_with_its_place():
    with pytest.raises(LookupError, match=r"x\.md:3: nobody runs `fluxrewrite inspect --all`"):
        how(Command("x.md:3", "fluxrewrite inspect --all"))


def test_commands_are_found_in_every_kind_of_place():
    texts = {c.text for c in COMMANDS}
    assert {
        "fluxrewrite verify flux2-klein-mini",  # a session
        "pip install torch==2.13.0",  # a list
        "pytest --nkilib=PATH",  # the running text
        ". neuron/bin/activate",  # behind &&
    } <= texts
    assert not [t for t in texts if "#" in t]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_command_hides_in_a_block_of_another_language(page):
    for fence in fences(page):
        language = fence.language or "text"
        assert language in LANGUAGES, f"{page.name}:{fence.line}"
        if language in ("text", "toml"):
            hidden = [x for x in fence.text.splitlines() if re.match(rf"\$ |({'|'.join(PROGRAMS)}) ", x)]
            assert not hidden, f"{page.name}:{fence.line}: {hidden}: a block of commands is sh or console"


@pytest.mark.parametrize(("text", "code"), runs(lambda row: not row.slow))
def test_smaller(text, code, run, shelf):
    shelf(text)
    found, out = run(text)
    assert (found, "Traceback" in out) == (code, False), out
    _has_written(text)


@pytest.mark.slow
@pytest.mark.parametrize(("text", "code"), runs(lambda row: row.slow))
def test_smaller_but_not_quick(text, code, run, shelf):
    shelf(text)
    found, out = run(text)
    assert (found, "Traceback" in out) == (code, False), out
    _has_written(text)


@pytest.mark.parametrize(("command", "row"), of(Whole))
def test_options_are_real_ones(command, row):
    _read(command)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "row"), of(Whole))
def test_a_command_runs_as_written(command, row, run, shelf):
    shelf(command.text)
    code, out = run(command.text)
    assert code == 0, out
    _has_written(command.text)


def _read(command):
    """Read the options of a command without running it; raises for one that does not exist, or a value that cannot be."""
    name, *given = command.words[1:]
    typer.main.get_command(app).commands[name].make_context(name, given)


def _has_written(text):
    """A file that the command names as its output is there and says something."""
    for option in ("-o", "--save", "--trace"):
        words = shlex.split(text)
        if option in words:
            assert Path(words[words.index(option) + 1]).stat().st_size > 500, text


@pytest.mark.parametrize(("command", "row"), of(Target))
def test_ci_calls_the_target(command, row):
    for target in command.text.split()[1:]:
        assert f"make {target}\n" in CI
        assert f"\n{target}: " in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(("command", "row"), of(Recipe))
def test_the_recipe_is_a_command_that_is_run(command, row):
    dry = ["make", "--dry-run", "--assume-old=.venv/.installed", *command.words[1:]]
    lines = subprocess.run(dry, cwd=ROOT, check=True, capture_output=True, text=True, env=_OWN).stdout.splitlines()
    typed = [re.sub(r"^\w+=\S+ |\.venv/bin/", "", line).strip() for line in lines]
    found = [how(Command(command.where, re.sub(r"^\w+=\S+ ", "", line))) for line in typed]
    assert found
    assert all(isinstance(f, (Whole, Run, Tool, ByTest)) for f in found)


@pytest.mark.parametrize(("command", "row"), of(ByTest))
def test_another_test_runs_it(command, row):
    if row.by.startswith("make "):
        assert f"{row.by}\n" in CI
    else:
        file, _, name = row.by.partition("::")
        assert f"def {name}" in (ROOT / file).read_text()
    for path in re.findall(r"(?:tests|tools|examples)/[\w/.]+", command.text):
        assert (ROOT / path).exists()


@pytest.mark.parametrize(("command", "row"), of(NotHere))
def test_what_is_not_run_is_at_least_written_right(command, row):
    assert row.why
    words = command.words
    if words[0] == "make":
        assert all(f"\n{target}: " in (ROOT / "Makefile").read_text() for target in words[1:])
    elif words[0] == "fluxrewrite":
        _read(command)
    for path in re.findall(r"(?:tests|tools|examples)/[\w/.]+\.py", command.text):
        assert (ROOT / path).exists()
