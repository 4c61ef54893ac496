"""The wheel, and what it must not bring along."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

import fluxrewrite

ROOT = Path(__file__).parents[1]


def test_every_module_of_the_tree_is_packaged():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for top in ("fluxrewrite", "passes", "kernels")
        for path in (ROOT / top).rglob("__init__.py")
    }
    places = {p: tool["package-dir"].get(p, p.replace(".", "/")) for p in tool["packages"]}
    assert set(places.values()) == folders


WITHOUT_TORCH = {
    "help": "--help",
    "help of a command": "inspect --help",
    "a command that is none": "nonsense",
    "device profiles": "devices",
    "two reports": "diff report.json report.json",
    "a file that is none": "diff nowhere.json nowhere.json",
}


@pytest.fixture(scope="module")
def report():
    return fluxrewrite.inspect(lambda x: x + 1, x=torch.ones(2)).to_json()


@pytest.mark.parametrize("what", WITHOUT_TORCH)
def test_what_needs_no_torch_does_not_wait_for_it(what, report, tmp_path):
    (tmp_path / "report.json").write_text(report)
    program = "import sys; from fluxrewrite.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    found = subprocess.run(
        [sys.executable, "-c", program, *WITHOUT_TORCH[what].split()], cwd=tmp_path, capture_output=True, text=True
    )
    modules = found.stderr.split()
    assert "fluxrewrite.cli" in modules
    assert "torch" not in modules


def test_public_names_are_imported_on_first_use():
    program = (
        "import sys, fluxrewrite; assert 'torch' not in sys.modules; "
        "assert set(fluxrewrite.__all__) <= set(dir(fluxrewrite)); "
        "assert fluxrewrite.backend is fluxrewrite.Backend; "
        "assert all(getattr(fluxrewrite, n).__name__ == n for n in fluxrewrite.__all__ if n != 'backend')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        fluxrewrite.nonsense  # noqa: B018


SOURCES = {top: sorted((ROOT / top).rglob("*.py")) for top in ("fluxrewrite", "passes", "kernels", "tools")}


@pytest.mark.parametrize("top", SOURCES)
def test_limits_of_style(top):
    assert SOURCES[top], f"{top}/ has no sources"
    for path in SOURCES[top]:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = (node.end_lineno or 0) - node.lineno + 1
                assert size <= 40, f"{path}:{node.lineno}: {node.name} has {size} lines"


def test_readme_names_the_test_command_of_ci():
    assert "make test" in (ROOT / "README.md").read_text()
    assert "make test\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_wheel_in_an_empty_environment(tmp_path):
    def run(*command):
        return subprocess.run(
            [str(c) for c in command], check=True, cwd=tmp_path, env=env, capture_output=True, text=True
        ).stdout

    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("fluxrewrite-*.whl")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"fluxrewrite"}
    run(sys.executable, "-m", "venv", "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[diffusers]")
    out = run(tmp_path / "env" / "bin" / "fluxrewrite", "inspect", "flux2-klein-4b")
    assert "25 of 25" in out
    assert (
        run(python, "-c", "import importlib.util as u; print(u.find_spec('kernels'), u.find_spec('passes'))")
        == "None None\n"
    )
