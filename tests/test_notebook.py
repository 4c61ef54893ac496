"""The notebook of examples/: stored as it was executed, and executed anew."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra test")

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "inspect.ipynb"
MACHINE = re.compile(r"/(root|home|tmp|work|usr|opt|Users)/|site-packages")


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


def shown(notebook):
    """What each cell printed and shows, without figures of time, which differ each time."""
    found = []
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        for output in cell.outputs:
            data = {"text/plain": output.text} if output.output_type == "stream" else dict(output.data)
            data = {kind: re.sub(r"Traced in .*? MB", "", text) for kind, text in data.items()}
            found.append((output.output_type, data))
    return found


def test_it_is_stored_whole_and_names_no_machine(stored):
    nbformat.validate(stored)
    code = [c for c in stored.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = shown(stored)
    assert len(outputs) == len(code) - 1, "the first cell shows nothing"
    assert {kind for kind, _ in outputs} <= {"stream", "execute_result"}
    pages = [d["text/html"] for _, d in outputs if "text/html" in d]
    assert len(pages) == 1
    assert pages[0].startswith("<iframe ")
    assert any("| auto |" in d.get("text/markdown", "") for _, d in outputs)
    assert not MACHINE.search(NOTEBOOK.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_it_runs_and_shows_what_is_stored(stored):
    client = pytest.importorskip("nbclient", reason="needs the extra test").NotebookClient
    anew = nbformat.read(NOTEBOOK, as_version=4)
    for cell in anew.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    client(anew, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    assert shown(anew) == shown(stored)
