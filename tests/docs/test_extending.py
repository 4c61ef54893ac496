"""The package of docs/extending.md: pass, op, NKI source, provider and entry points, as the page has them."""

import io
import json
import re
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points

import pytest
import torch
from documented import ROOT, fences
from rich.console import Console

import fluxrewrite
from fluxrewrite import kernel
from fluxrewrite.fusion.boundary.target import Target
from fluxrewrite.provider.registry import implementations
from fluxrewrite.report.draw.page import page
from fluxrewrite.report.text.report import render

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


KIB = 1024


def between(x):
    """Without a call all of it is one kernel; with one, relu and the addition are kernels of their own."""
    return capped(x.relu()) + 1


@pytest.fixture(params=["compile", "lazy"])
def predicted(mylib, request):
    options = fluxrewrite.Options(kernels="softcap", provider="mylib", regime=request.param)
    return fluxrewrite.inspect(between, x=torch.randn(256, 256), options=options)


def test_the_call_is_a_boundary_in_the_json(predicted):
    report = json.loads(predicted.to_json())
    (border,) = report["boundaries"]
    lazy = report["effect"]["regime"] == "lazy"
    assert (border["kind"], border["bytes"]) == ("split" if lazy else "barrier", 2 * 256 * KIB)
    assert [(t["name"], t["role"], t["bytes"]) for t in border["tensors"]] == [
        ("relu", "operand", 256 * KIB), ("mul", "result", 256 * KIB)
    ]  # fmt: skip
    assert [(f["producer"], f["consumer"]) for f in border["lost_fusions"]] == [("relu", "truediv"), ("mul", "add")]
    assert [c["site"] for c in report["calls"]] == [border["site"]] == ["model.softcap.0"]
    effect = report["effect"]
    assert (effect["kernels_before"], effect["kernels_after"]) == (1, 3)
    assert effect["bytes_after"] - effect["bytes_before"] == 2 * border["bytes"]
    assert report["segments"] == {"before": 1, "after": 3 if lazy else 1}
    assert [p["kind"] for b in report["blocks"] for p in b["after"]] == ["fused", "opaque", "fused"]


def test_the_time_of_the_step_has_the_call_in_it(predicted):
    """Three kernels of 512 KiB; the call reaches half of the peaks, as the page's `efficiency` has it, and has its own cost."""
    device = Target.of("trn2").device
    launches = 2 * device.launch.value if predicted.effect.regime == "lazy" else 0
    memory = (1 + 2 + 1) * 512 * KIB / device.memory.value / 1e3
    expected = memory + 3 * device.kernel.value + device.call.value + launches
    assert predicted.effect.step_after.us == pytest.approx(expected, rel=1e-5)


def test_the_call_is_a_boundary_in_the_text(predicted):
    written = io.StringIO()
    render(predicted, Console(file=written, width=160))
    (row,) = [line for line in written.getvalue().splitlines() if re.match(r" +1 +(barrier|split) ", line)]
    assert row.split()[1:5] == [predicted.boundaries[0].kind, "softcap:divided", "524", "kB"]


def test_the_call_is_a_boundary_in_the_page(predicted):
    text = page(predicted)
    (panel,) = re.findall(r'<article id="site-.*?</article>', text, re.S)
    assert "softcap:divided</b> at model: eligible, taken by a kernel (mylib)" in panel
    assert f'{predicted.boundaries[0].kind.capitalize()}: <data value="{512 * KIB}">' in panel
    assert f'data-new="{512 * KIB}"' in text


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
