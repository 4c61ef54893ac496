"""The picture of README.md, and the commands that it gives."""

import re
import shlex
from pathlib import Path

import pytest

from fluxrewrite.cli import main
from fluxrewrite.draw.svg import map_svg

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_picture_is_up_to_date(klein):
    (path,) = re.findall(r"!\[.*?\]\((docs/.*?\.svg)\)", README)
    assert (ROOT / path).read_text(encoding="utf-8") == map_svg(klein), "run: make map"


@pytest.mark.slow
def test_the_commands_of_the_section_run(tmp_path, monkeypatch):
    section = README.partition("## A report to look at")[2].partition("\n## ")[0]
    lines = [
        line.partition("#")[0] for block in re.findall(r"```\n(.*?)```", section, re.S) for line in block.splitlines()
    ]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("fluxrewrite ")]
    assert len(commands) == 7
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for command in commands:
        assert main(command) == 0, command
        output = Path(command[command.index("-o") + 1])
        assert output.stat().st_size > 1000
