"""The house: imports run from right to left in `LAYERS`, in no circle, and the digests of sources miss no file."""

import ast
import importlib
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from documented import ROOT
from import_graph import LAYERS, MAY_IMPORT, arrows, circles, modules, wrong

from fluxrewrite.dynamo.cache_key import cache_key
from fluxrewrite.kernel import load_kernels
from fluxrewrite.provider import digests
from fluxrewrite.rewrite.proof import prover
from fluxrewrite.rewrite.selection import Selection

FILES = modules(ROOT)


def test_no_arrow_runs_the_wrong_way():
    found = arrows(ROOT)
    assert len(found) > 500, "the imports of the project were not read"
    assert not wrong(found), "\n".join(map(str, wrong(found)))


def test_no_circle_of_files():
    assert not circles(arrows(ROOT)), "\n\n".join("\n".join(map(str, chain)) for chain in circles(arrows(ROOT)))


def test_every_place_of_the_core_has_a_layer():
    places = {
        p.stem for p in (ROOT / "fluxrewrite").iterdir() if not p.name.startswith("__") and p.suffix in (".py", "")
    }
    assert places == {name for layer in LAYERS for name in layer}
    assert len(places) <= 16


def test_contributing_shows_the_layers():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (shown,) = re.findall(r"^errors \|.*$", text, re.MULTILINE)
    assert shown == " | ".join(", ".join(layer) for layer in LAYERS)
    for top, allowed in MAY_IMPORT.items():
        assert f"`{top}/` imports {', '.join(allowed)}" in text


@pytest.fixture
def house(tmp_path):
    """`house(files)`: a small tree; returns its root."""

    def build(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return build


WRONG = {
    "at the top": "from ..report import model\n",
    "in a function": "def f():\n    from ..report.model import Report\n    return Report\n",
    "for a type checker": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fluxrewrite.report.model import Report\n",
    "by its whole name": "import fluxrewrite.report.model\n",
}


@pytest.mark.parametrize("how", WRONG)
def test_a_planted_wrong_arrow_is_found_with_file_and_line(house, how):
    root = house(
        {"fluxrewrite/cost/bad.py": WRONG[how], "fluxrewrite/report/model.py": "", "fluxrewrite/report/__init__.py": ""}
    )
    (found,) = wrong(arrows(root))
    line = 1 + next(i for i, text in enumerate(WRONG[how].splitlines()) if "report" in text)
    assert (found.file, found.line) == ("fluxrewrite/cost/bad.py", line)
    assert str(found).startswith(f"fluxrewrite/cost/bad.py:{line}: fluxrewrite.cost.bad imports fluxrewrite.report")


def test_passes_and_kernels_do_not_import_each_other(house):
    root = house(
        {"passes/one.py": "from fluxrewrite.kernels import two\n", "kernels/two.py": "", "kernels/__init__.py": ""}
    )
    assert [a.file for a in wrong(arrows(root))] == ["passes/one.py"]


def test_a_planted_circle_is_found(house):
    root = house(
        {
            "fluxrewrite/graph/a.py": "from .b import x\n",
            "fluxrewrite/graph/b.py": "def f():\n    from . import c\n",
            "fluxrewrite/graph/c.py": "from fluxrewrite.graph.a import y\n",
            "fluxrewrite/graph/d.py": "from .a import y\n",
        }
    )
    (chain,) = circles(arrows(root))
    assert sorted(a.file for a in chain) == [f"fluxrewrite/graph/{name}.py" for name in "abc"]


# *** digests of sources


def test_the_digest_of_the_core_reads_every_file_of_it():
    core = {
        p.resolve() for name, p in FILES.items() if not name.startswith(("fluxrewrite.passes", "fluxrewrite.kernels"))
    }
    assert len(core) > 100
    assert {p.resolve() for p in digests.core_files()} == core


def _edited(monkeypatch, path):
    """As if a comment had been added to the file."""
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda p: read(p) + (b"# edited\n" if p.resolve() == path.resolve() else b"")
    )


def _keys():
    """Keys of what is kept on disk: of proofs by pass, of compiled artifacts, of measured times by kernel."""
    for cached in (prover._core, prover._pass_text, prover._op_text):
        cached.cache_clear()
    selection = Selection.of(None, execution="emulate")
    kernels = {k.kind: selection.kernels[k.kernel] for k in selection.passes.values()}
    proofs = {
        f"proof of {kind}": prover._sources(type(rewriter), kernels[kind])
        for kind, rewriter in selection.passes.items()
    }
    times = {f"times of {kind}": digests.kernel_text(kernel) for kind, kernel in kernels.items()}
    return {**proofs, **times, "compiled": cache_key(selection, "all", None, _inner)}


def _inner(gm, inputs):
    return gm.forward


@pytest.fixture(scope="module")
def before():
    """The keys of the sources as they are."""
    return _keys()


CORE = (
    "errors",
    "graph/view",
    "graph/shapes",
    "rewrite/apply",
    "rewrite/proof/small_sizes",
    "rewrite/guards",
    "site",
    "pattern",
)


@pytest.mark.parametrize("name", [*(f"fluxrewrite/{n}" for n in CORE), "fluxrewrite/fusion/boundary/step_time"])
def test_an_edit_of_the_core_makes_proofs_and_compiled_artifacts_stale(monkeypatch, before, name):
    _edited(monkeypatch, ROOT / f"{name}.py")
    after = _keys()
    assert not [k for k in before if not k.startswith("times") and before[k] == after[k]]


@pytest.mark.parametrize(
    "path", sorted(p for p in (ROOT / "passes").rglob("*.py") if p.name != "__init__.py"), ids=lambda p: p.stem
)
def test_an_edit_of_a_pass_makes_its_proofs_and_compiled_artifacts_stale(monkeypatch, before, path):
    _edited(monkeypatch, path)
    changed = {k for k, v in _keys().items() if v != before[k]}
    assert "compiled" in changed
    users = [p for p in entry_points(group="fluxrewrite.passes") if path in _reached(p.load().__module__)]
    assert users
    assert {f"proof of {p.name}" for p in users} <= changed


def _reached(module):
    return {p.resolve() for p in digests.module_files(module)}


@pytest.mark.parametrize("kind", sorted(load_kernels()))
def test_an_edit_of_a_kernel_makes_its_proofs_times_and_compiled_artifacts_stale(monkeypatch, before, kind):
    _edited(monkeypatch, ROOT / "kernels" / f"{kind}.py")
    changed = {k for k, v in _keys().items() if v != before[k]}
    assert {f"proof of {kind}", f"times of {kind}", "compiled"} <= changed
    monkeypatch.undo()
    _edited(monkeypatch, ROOT / "kernels" / "nki" / f"{kind}.py")
    changed = {k for k, v in _keys().items() if v != before[k]}
    assert {f"times of {kind}", "compiled"} <= changed


# *** what is named in a string


def test_modules_that_are_named_in_strings_exist():
    """Workers are started by name, and entry points, rules and templates are looked up by name: a move must not lose them."""
    named = set()
    for path in FILES.values():
        named |= set(re.findall(r"[\"'](fluxrewrite(?:\.\w+)+)[\"']", path.read_text()))
    groups = {"fluxrewrite.passes", "fluxrewrite.kernels", "fluxrewrite.providers", "fluxrewrite.renderers"}
    named = {n for n in named if n.partition(".")[2].split(".")[0] in {place for layer in LAYERS for place in layer}}
    assert {"fluxrewrite.measure.bench.worker", "fluxrewrite.measure.oracle.xla_worker"} <= named
    missing = [n for n in sorted(named - groups) if n not in FILES]
    assert not missing


_IMPORTED = re.compile(r"^[>\s]*(?:from (fluxrewrite(?:\.\w+)*) import|import (fluxrewrite(?:\.\w+)+))", re.MULTILINE)
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]


def test_modules_that_pages_tools_and_programs_in_tests_import_exist():
    """Programs in strings are run by slow tests and readers only."""
    sources = [
        *PAGES,
        *(p for top in ("tests", "tools") for p in (ROOT / top).rglob("*.py") if "node_modules" not in str(p)),
    ]
    found = {(str(p.relative_to(ROOT)), a or b) for p in sources for a, b in _IMPORTED.findall(p.read_text())}
    assert len(found) > 500
    assert not [
        f"{path}: {name}" for path, name in sorted(found) if name not in FILES and name != "fluxrewrite.graph.a"
    ]


@pytest.mark.parametrize("worker", ["fluxrewrite.measure.bench.worker", "fluxrewrite.measure.oracle.xla_worker"])
def test_a_worker_module_can_be_run(worker):
    module = importlib.import_module(worker)
    assert "__main__" in Path(module.__file__).read_text()


def test_every_class_name_occurs_once():
    """`Run` in six files says nothing about any of them; NKI sources and the emulator count too."""
    found: dict[str, list[str]] = {}
    for name, path in FILES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name)
    assert len(found) > 300
    assert not {name: places for name, places in found.items() if len(places) > 1}
