"""The package of docs/extending.md: pass, op, NKI source, provider and entry points, as they stand there."""

import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points

import pytest
import torch
from documented import ROOT, fences

import fluxrewrite
from fluxrewrite import kernel
from fluxrewrite.provider.registry import implementations

PAGE = ROOT / "docs" / "extending.md"
FILES = {
    "softcap.py": "class Softcap(Pass)",
    "op.py": "custom_op",
    "nki_softcap.py": "@nki.jit",
    "provider.py": "PROVIDER = ",
}


def block(words, language="python"):
    (text,) = [f.text for f in fences(PAGE) if f.language == language and words in f.text]
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The package `mylib`, importable; its op is registered once in a process."""
    path = tmp_path_factory.mktemp("extending")
    (path / "mylib").mkdir()
    (path / "mylib" / "__init__.py").touch()
    for name, words in FILES.items():
        (path / "mylib" / name).write_text(block(words))
    sys.path.insert(0, str(path))
    yield path
    sys.path.remove(str(path))
    for name in [n for n in sys.modules if n.partition(".")[0] == "mylib"]:
        del sys.modules[name]


@pytest.fixture
def mylib(folder, monkeypatch):
    """The package as if it was installed with the entry points of the page."""
    groups = tomllib.loads(block("entry-points", "toml"))["project"]["entry-points"]
    mine = [EntryPoint(name, value, group) for group, found in groups.items() for name, value in found.items()]
    monkeypatch.setattr(
        kernel, "entry_points", lambda group: [*entry_points(group=group), *(e for e in mine if e.group == group)]
    )
    implementations.cache_clear()
    yield
    implementations.cache_clear()


def capped(x):
    return 5.0 * torch.tanh(x / 5.0)


def test_the_pass_finds_its_sites_and_nothing_else(mylib, check):
    report = check(capped, "softcap", x=torch.randn(3, 4))
    assert [(s.kind, s.form, s.choice) for s in report.sites] == [("softcap", "divided", "kernel")]
    report = check(lambda x: 5.0 * torch.tanh(x / 4.0), "softcap", x=torch.randn(3, 4))
    assert report.sites == ()
    assert "softcap" in fluxrewrite.inspect(lambda x: x + 1, x=torch.randn(2)).summary.kinds


def test_limits_of_the_op_and_of_the_provider(mylib, check):
    report = check(capped, "softcap", x=torch.randn(3, 4, dtype=torch.float64))
    assert [(r.code, r.message.partition(":")[0]) for s in report.sites for r in s.reasons] == [
        ("limit", "dtype float64")
    ]
    report = check(
        capped, "softcap", provider="mylib", x=torch.randn(1, 16385)
    )  # a second size: Dynamo makes it symbolic
    assert [r.message[:6] for s in report.sites for r in s.reasons] == ["size s"]
    torch._dynamo.reset()
    report = check(capped, "softcap", provider="mylib", x=torch.randn(1, 16385))
    assert [r.message.partition(":")[0] for s in report.sites for r in s.reasons] == ["size 16385"]
    assert "a row and its float32 copy stay in SBUF" in report.sites[0].reasons[0].message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_in_the_emulator(mylib, check, dtype):
    x = torch.randn(2, 150, 96, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2  # an ulp of bfloat16 at 5: the model rounds at every step
    report = check(capped, "softcap", tolerance, provider="mylib", execution="emulate", x=x)
    assert [s.kernel.provider for s in report.sites] == ["mylib"]


def test_the_programs(mylib, capsys):
    exec(block("compiled = torch.compile(capped"), {})
    assert float(capsys.readouterr().out.split("(")[1].split(")")[0]) < 1e-4
    exec(block("run = simulate(softcap"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("us modelled")
    assert {line.split()[0] for line in lines[1:]} == {"tensor", "vector", "scalar", "gpsimd", "dma"}


def test_a_row_that_fits_and_one_that_does_not(folder):
    """The limit that the provider of the page states is not above what fits on chip."""
    from fluxrewrite.kernels.emulator import EmulationError, installed, simulate

    with installed():
        names = {}
        exec(block("@nki.jit"), names)
    run = simulate(names["softcap"], numerics=False)
    run(torch.empty(128, 16384, device="meta"), 5.0)
    with pytest.raises(EmulationError, match="sbuf"):
        run(torch.empty(128, 65536, device="meta"), 5.0)
