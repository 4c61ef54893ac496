"""Artifacts of TorchNeuron read back. The folders are made up after its documentation: no device wrote them."""

import json

import pytest

import fluxrewrite
from fluxrewrite.cli import main
from fluxrewrite.errors import InputError
from fluxrewrite.report.artifacts import compared, read_artifacts
from fluxrewrite.report.model import Report
from fluxrewrite.report.text.report import rendered

KERNEL = "AwsNeuronCustomNativeKernel"
PRETTY = f"""module @graph {{
  func.func @main(%arg0: tensor<1x6x64xf32>) -> tensor<1x6x64xf32> {{
    %0 = stablehlo.custom_call @{KERNEL}(%arg0) {{backend_config = "e30="}} : (tensor<1x6x64xf32>) -> tensor<1x6x64xf32>
    %1 = stablehlo.custom_call @{KERNEL}(%0) {{backend_config = "e30="}} : (tensor<1x6x64xf32>) -> tensor<1x6x64xf32>
    %2 = stablehlo.custom_call @AwsNeuronSilu(%1) : (tensor<1x6x64xf32>) -> tensor<1x6x64xf32>
    return %2 : tensor<1x6x64xf32>
  }}
}}
"""
GENERIC = (
    f'%0 = "stablehlo.custom_call"(%arg0) <{{call_target_name = "{KERNEL}", has_side_effect = false}}> : (f) -> f\n'
)
HLO = f'%c = f32[2]{{0}} custom-call(%p), custom_call_target="{KERNEL}", backend_config="e30="\n'


@pytest.fixture
def kept(tmp_path):
    """`kept(process, neffs, *texts)`: a made-up folder of one process with so many NEFFs and these StableHLO modules."""

    def make(process, neffs, *texts):
        files = {f"neff/graph_{i}.neff": "" for i in range(neffs)} | {f"raw/graph_{i}.log": KERNEL for i in range(2)}
        files |= {f"stablehlo/graph_{i}.mlir": text for i, text in enumerate(texts)}
        files |= {f"fx_graphs/graph_{i}.txt": "" for i, _ in enumerate(texts)} | {"neff/graph_0.json": "{}"}
        for name, text in files.items():
            path = tmp_path / process / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_every_spelling_of_a_custom_call(kept):
    (process,) = read_artifacts(kept("proc_7", 2, PRETTY, GENERIC, HLO))
    assert (process.name, process.graphs, process.modules, process.neffs) == ("proc_7", 3, 3, 2)
    assert process.calls == {KERNEL: 4, "AwsNeuronSilu": 1}
    assert process.kernels == 4


def test_processes_are_kept_apart(kept):
    kept("run/proc_1", 1, PRETTY)
    folder = kept("run/proc_2", 3, GENERIC)
    assert [(p.name, p.neffs, p.kernels) for p in read_artifacts(folder)] == [
        ("run/proc_1", 1, 2), ("run/proc_2", 3, 1)
    ]  # fmt: skip
    assert read_artifacts(folder / "run" / "proc_1")[0].name == "."


@pytest.mark.parametrize("made", [[], ["neff"], ["neff", "stablehlo"]])
def test_a_folder_without_artifacts(tmp_path, made):
    for name in made:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"no neff/ or stablehlo/ .*PRESERVE_COMPILATION_ARTIFACTS=1"):
        read_artifacts(tmp_path)
    with pytest.raises(InputError, match=r"no such folder; .*PRESERVE_COMPILATION_ARTIFACTS=1"):
        read_artifacts(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"ML\xefR\x01", r"is MLIR bytecode; .*stablehlo-translate"), (b"\xff\xfe\x00", "no text of StableHLO")],
)
def test_modules_that_cannot_be_read(kept, content, told):
    folder = kept("p", 1)
    (folder / "p" / "stablehlo").mkdir()
    (folder / "p" / "stablehlo" / "graph_0.mlirbc").write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_artifacts(folder)


@pytest.fixture
def report(flux2):
    model, inputs = flux2()
    return fluxrewrite.inspect(model, **inputs)


def text_of(report):
    from rich.console import Console

    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        console.print(rendered(report))
    assert all(len(line.rstrip()) <= 80 for line in captured.get().splitlines())
    return captured.get()


def test_what_was_predicted_beside_what_was_compiled(kept, report):
    sites = sum(s.choice == "kernel" for s in report.sites)
    assert sites > 2
    told = compared(report, read_artifacts(kept("p", 1, GENERIC * sites)))
    assert (told.artifacts.agree, told.artifacts.predicted_neffs, told.artifacts.predicted_kernel_calls) == (
        True,
        1,
        sites,
    )
    assert "These differ" not in text_of(told)
    assert Report.model_validate_json(told.to_json()) == told
    for neffs, calls in ((2, sites), (1, sites - 1)):
        told = compared(report, read_artifacts(kept(f"q{neffs}", neffs, GENERIC * calls)))
        assert not told.artifacts.agree
        assert "These differ" in text_of(told)
    assert report.artifacts is None
    assert "What was compiled" not in text_of(report)


def test_the_command(kept, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder = kept("proc_1", 1, PRETTY)
    model = ["inspect", "flux2-klein-mini", "--artifacts"]
    assert main([*model, str(folder), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["artifacts"]
    assert (found["agree"], found["predicted_neffs"]) == (False, 1)
    assert found["processes"] == [
        {"name": "proc_1", "fx_graphs": 1, "stablehlo_modules": 1, "neffs": 1, "kernel_calls": 2,
         "custom_calls": {KERNEL: 2, "AwsNeuronSilu": 1}}
    ]  # fmt: skip
    assert main([*model, str(folder)]) == 0
    out = capsys.readouterr().out
    assert "What was compiled" in out
    assert "other custom calls: AwsNeuronSilu" in out
    assert main([*model, str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
