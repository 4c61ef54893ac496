"""A folder with the files that the commands of the pages name, and models that are captured and analysed once."""

import gc
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from documented import ROOT, fences

from fluxrewrite import analysis
from fluxrewrite.cli import main
from fluxrewrite.cost.runs import Runs
from fluxrewrite.measure import calibrate

SMALL = ROOT / "examples" / "small"
CALL = '%0 = stablehlo.custom_call @AwsNeuronCustomNativeKernel(%arg0) {backend_config = "e30="} : (f) -> f\n'


@pytest.fixture(scope="session")
def known():
    """Captures and analyses by what they are of: many commands look at the same graphs, and show the same report in other forms."""
    return {}


@pytest.fixture
def analysed_once(known, monkeypatch):
    capture, analyse = analysis.capture_spec, analysis.inspect_graphs

    def captured(spec, shapes, dtype, dynamic=False, tp=1):
        key = (spec.name, shapes, dtype, dynamic, tp)
        if key not in known:
            known[key] = capture(spec, shapes, dtype, dynamic, tp)
        return known[key]

    def analysed(spec, shapes, dtype, options):
        key = (spec.name, shapes, dtype, options)
        if key not in known:
            known[key] = analyse(spec, shapes, dtype, options)
        return known[key]

    monkeypatch.setattr(analysis, "capture_spec", captured)
    monkeypatch.setattr(analysis, "inspect_graphs", analysed)


@pytest.fixture
def run(analysed_once, tmp_path, monkeypatch, capsys):
    """`run(command)`: exit code and what was printed, in a folder of its own that `shelf` has filled."""

    def call(text):
        words = shlex.split(text)
        assert words[0] == "fluxrewrite"
        code = main(words[1:])
        out = capsys.readouterr()
        return code, out.out + out.err

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(
        calibrate, "QUICK", calibrate.Effort(1, 1, 1e-4, 64, 2)
    )  # rounds of a moment: the time says nothing
    yield call
    gc.enable()  # `inspect` leaves the collector off
    sys.modules.pop("mymodels", None)


@pytest.fixture(scope="session")
def made():
    """Files that commands write, by name: each is made once, of the small model."""
    return {}


@pytest.fixture
def shelf(run, made, tmp_path):
    """`shelf(command)`: put the files there that a command reads."""

    def fill(text):
        words = set(re.findall(r"[\w.]+", text))
        if "small" in words:
            shutil.copytree(SMALL, "small")
        for name in words & set(_READ):
            if name not in made and not Path(name).exists():
                _READ[name](run, name)
                made[name] = Path(name).read_bytes()
            elif not Path(name).exists():
                Path(name).write_bytes(made[name])
        if "artifacts" in words and "--artifacts" in text:
            for name, content in {"neff/g.neff": "", "stablehlo/g.mlir": CALL, "fx_graphs/g.txt": ""}.items():
                path = tmp_path / "artifacts" / "proc_7" / name
                path.parent.mkdir(parents=True)
                path.write_text(content)

    return fill


def _report(policy):
    def make(run, name):
        if not Path("small").exists():
            shutil.copytree(SMALL, "small")
        sizes = "--image-tokens 24 --text-tokens 12"
        assert run(f"fluxrewrite inspect small {sizes} --policy {policy} --format json -o {name}")[0] == 0

    return make


def _shown(page, language, words):
    def make(_, name):
        (text,) = [f.text for f in fences(ROOT / "docs" / page) if f.language == language and words in f.text]
        Path(name).write_text(text)

    return make


def _runs(run, name):
    case = {"model": "flux2-klein-mini", "dtype": "bfloat16", "batch": 1, "image_tokens": 256, "text_tokens": 512}
    variants = [
        {
            "name": variant,
            "kernels": list(calls),
            "calls": calls,
            "specialisations": dict.fromkeys(calls, 1),
            "runs": [{"steps_s": [9.0, s]}, {"steps_s": [s, s]}, {"steps_s": [s, s]}],
            "peak_rss_mb": 1000.0,
            "output": {"digest": "d", "finite": True, "cosine": None},
        }
        for variant, s, calls in (("vanilla", 1.0, {}), ("attention", 1.25, {"attention:sdpa": 3}))
    ]
    content = {
        "schema": "fluxrewrite.runs/1",
        "date": "2026-01-01T00:00:00+00:00",
        "versions": {"fluxrewrite": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "diffusers": None},
        "machine": {"processor": "a processor", "cores": 2, "threads": 2, "device": "a processor"},
        "case": {"device": "cpu", "regime": "compile", "tp": 1, **case},
        "setup": {**case, "steps": 2, "runs": 3},
        "variants": variants,
    }
    Path(name).write_text(Runs.model_validate_json(json.dumps(content)).to_json())


def _evidence(run, name):
    _runs(run, "runs.json")
    assert run(f"fluxrewrite calibrate --from runs.json -o {name}")[0] == 0


def _profile(_, name):
    shutil.copy(ROOT / "fluxrewrite" / "cost" / "data" / "devices" / "cpu.json", name)


_READ = {
    "report.json": _report("all"),
    "before.json": _report("none"),
    "after.json": _report("auto"),
    "old.json": _report("all"),
    "new.json": _report("all"),
    "budget.toml": _shown("ci.md", "toml", "fail_on"),
    "mymodels": None,
    "runs.json": _runs,
    "evidence.json": _evidence,
    "here.json": _profile,
}
del _READ["mymodels"]
