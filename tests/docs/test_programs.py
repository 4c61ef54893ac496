"""Every Python program of the pages, run as it stands there, on small models."""

import os
import re
import socket

import pytest
import torch
from documented import PAGES, ROOT, fences

import fluxrewrite

PROGRAMS = {f"{f.page}:{f.line}": f for page in PAGES for f in fences(page) if f.language == "python"}
ELSEWHERE = {"extending.md": "test_extending.py", "neuron.md": "../neuron/test_docs.py"}
HERE = {"README.md": "transformer = torch.compile", "faq.md": "def block()", "tensor-parallelism.md": "process_group"}


def program(page):
    (found,) = [f.text for f in PROGRAMS.values() if f.page == page and HERE[page] in f.text]
    return found


def test_every_program_is_run_by_a_test():
    for where, fence in PROGRAMS.items():
        if fence.page in ELSEWHERE:
            assert fence.page in (ROOT / "tests" / "docs" / ELSEWHERE[fence.page]).read_text()
        else:
            assert HERE.get(fence.page, "\0") in fence.text, f"{where}: no test runs this program"


@pytest.fixture
def eager(monkeypatch):
    """Nothing is compiled: Inductor takes its time, and what it does is tested elsewhere."""
    monkeypatch.setattr("fluxrewrite.dynamo.backend.default_inner", lambda: "eager")


def test_in_your_code(flux2, eager, monkeypatch):
    kept = []
    backend = fluxrewrite.backend
    monkeypatch.setattr(fluxrewrite, "backend", lambda **given: kept.append(backend(**given)) or kept[-1])
    transformer, inputs = flux2(num_layers=1, num_single_layers=1)
    names = {"transformer": transformer}
    exec(program("README.md"), names)
    with torch.no_grad():
        found, expected = names["transformer"](**inputs)[0], transformer(**inputs)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    sites = [s.kind for r in kept[0].reports for s in r.sites if s.choice == "kernel"]
    assert {"qkv", "norm_rope_attention"} == set(sites)


def test_the_arguments_that_the_readme_names():
    import inspect

    text = (ROOT / "README.md").read_text()
    named = re.search(r"`fluxrewrite\.backend\(([\w=, ]+)\)`", text)[1].replace("=", "").split(", ")
    assert set(named) <= set(inspect.signature(fluxrewrite.backend).parameters)


def test_a_model_of_ones_own(run, tmp_path):
    text = program("faq.md")
    (tmp_path / "mymodels.py").write_text(text)
    command = re.search(r"fluxrewrite inspect \S+", text)[0]
    code, out = run(command)
    assert code == 0
    assert "1 triple" in out


def test_several_processes(flux2, monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setitem(os.environ, name, value)
    model, _ = flux2(num_layers=1, num_single_layers=1)
    names = {"model": model, "torch": torch, "fluxrewrite": fluxrewrite}
    exec(program("tensor-parallelism.md"), names)
    assert (names["here"].rank, names["here"].world) == (0, 1)
    assert callable(names["run"])
