"""`tools/fuzz.py` as it is called."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "fuzz.py"


def run(*args):
    found = subprocess.run([sys.executable, TOOL, *map(str, args)], capture_output=True, text=True, check=False)
    return found.returncode, found.stdout, found.stderr


def test_a_run_says_what_was_found_and_by_which_change():
    code, out, _ = run("--cases", 60, "--seed", 100, "--proof", "structural")
    assert code == 0, out
    assert "60 cases in" in out
    assert "wrong rewrites: 0; found as what they are not: 0; crashes: 0" in out
    assert "close but wrong, without a wrong rewrite: 100.00% of" in out


@pytest.mark.slow
def test_case_n_is_the_same_wherever_it_is_run():
    one, two = (run("--cases", 1, "--seed", 4711, "--show")[1] for _ in range(2))
    assert one == two
    assert one.startswith("4711: ")


@pytest.mark.slow
def test_two_processes_find_what_one_does():
    (code, one, _), (_, two, _) = (run("--cases", 120, "--jobs", jobs, "--only", "wrong") for jobs in (1, 2))
    assert code == 0, one
    assert [line for line in one.splitlines() if " in " not in line] == [
        line for line in two.splitlines() if " in " not in line
    ]


def test_fewer_than_a_case_is_refused():
    code, _, err = run("--cases", 0)
    assert code == 2
    assert "--cases" in err
