import json

import pytest

from fluxrewrite.cli import main
from fluxrewrite.cost import device_names, load_device
from fluxrewrite.cost.data_files import shipped
from fluxrewrite.errors import InputError
from fluxrewrite.fusion import load_rules
from fluxrewrite.fusion.boundary.target import REGIMES, Target


@pytest.mark.parametrize(("device", "rules", "reference"), [("trn2", "neuronx", False), ("cpu", "inductor", True)])
def test_defaults_follow_the_device(device, rules, reference):
    target = Target.of(device)
    assert target.device.name == device
    assert target.regime == "compile"
    assert target.rules == load_rules(rules)
    assert target.calls_reference is reference
    assert target.evidence.tables


@pytest.mark.parametrize("device", device_names())
@pytest.mark.parametrize("regime", REGIMES)
def test_every_shipped_device_in_every_regime_that_it_knows(device, regime):
    if regime in load_device(device).regimes:
        assert Target.of(device, regime, "xla").rules == load_rules("xla")
    else:
        with pytest.raises(InputError, match=f"{device}.*{regime}"):
            Target.of(device, regime)


MODULE = """
import torch
def nothing(): return torch.nn.ReLU(), {"input": torch.randn(3)}
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run(*args)`: exit code and stderr of `fluxrewrite inspect` on a small model."""
    import sys

    (tmp_path / "target_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def go(*args):
        code = main(["inspect", "target_models:nothing", *map(str, args)])
        out = capsys.readouterr()
        return code, out.out, out.err

    yield go
    sys.modules.pop("target_models", None)


def a_profile(**changes):
    content = json.loads(shipped("devices")["trn2"].read_text())
    return json.dumps({**content, **changes})


RULES = load_rules("inductor").model_dump(mode="json")
BAD = {
    "unknown device": ("--device", "trn9", ["'trn9'", "trn1, trn2, trn3"]),
    "missing profile": ("--device", "none.json", ["none.json", "calibrate"]),
    "profile not JSON": ("--device", ("d.json", "{"), ["d.json:1:2", "not JSON"]),
    "profile lacks a field": ("--device", ("d.json", '{"schema": "fluxrewrite.device/1"}'), ["d.json", "name"]),
    "profile with text for a number": (
        "--device",
        ("d.json", a_profile(memory={"value": "fast", "unit": "GB/s", "basis": "assumed", "source": "x"})),
        ["d.json", "memory.value"],
    ),
    "profile in another unit": (
        "--device",
        ("d.json", a_profile(memory={"value": 1, "unit": "MB/s", "basis": "assumed", "source": "x"})),
        ["d.json", "memory", "MB/s"],
    ),
    "profile not a text": ("--device", ("d.json", b"\xff\xfe\x00"), ["d.json", "UTF-8"]),
    "profile a list": ("--device", ("d.json", "[]"), ["d.json"]),
    "unknown regime": ("--regime", "eager", ["'eager'", "lazy"]),
    "unknown compiler": ("--compiler", "gcc", ["'gcc'", "inductor, neuronx, xla"]),
    "rules not JSON": ("--compiler", ("r.json", "{"), ["r.json", "JSON"]),
    "rules with an unknown field": ("--compiler", ("r.json", json.dumps({**RULES, "fuses": 1})), ["r.json", "fuses"]),
    "rules of a wrong type": (
        "--compiler",
        ("r.json", json.dumps({**RULES, "most_reads": 0})),
        ["r.json", "most_reads"],
    ),
    "rules not a text": ("--compiler", ("r.json", b"\xff\xfe\x00"), ["r.json", "JSON"]),
    "missing evidence": ("--evidence", "none.json", ["none.json", "calibrate"]),
    "evidence not JSON": ("--evidence", ("e.json", "nothing"), ["e.json:1:1", "not JSON"]),
    "evidence lacks a table's field": (
        "--evidence",
        ("e.json", '{"schema": "fluxrewrite.evidence/1", "tables": [{"stack": "s"}]}'),
        ["e.json", "tables.0"],
    ),
    "unknown policy": ("--policy", "best", ["'best'", "auto"]),
    "a policy that runs kernels": ("--policy", "measure", ["'measure'", "auto"]),
    "unknown provider": ("--provider", "mine", ["mine", "builtin"]),
    "no ranks": ("--tp", "0", ["tp 0", "1 or more"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_that_names_file_and_field(run, tmp_path, name):
    option, given, expected = BAD[name]
    if isinstance(given, tuple):
        given, content = given
        (tmp_path / given).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = run(option, given)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1
    for words in expected:
        assert words in err


def test_a_folder_is_no_file(run, tmp_path):
    for option in ("--device", "--compiler", "--evidence"):
        code, out, err = run(option, tmp_path)
        assert (code, out, err.count("\n")) == (2, "", 1), option
        assert str(tmp_path.name) in err


def test_a_regime_that_the_device_does_not_know(run, tmp_path):
    (tmp_path / "d.json").write_text(a_profile(name="mine", regimes=["compile"]))
    code, _, err = run("--device", "d.json", "--regime", "lazy")
    assert code == 2
    assert "'mine' is not run in regime 'lazy'; it knows compile" in err
    assert run("--device", "d.json")[0] == 0


def test_files_of_ones_own(run, tmp_path):
    (tmp_path / "d.json").write_text(a_profile(name="mine"))
    (tmp_path / "r.json").write_text(json.dumps({**RULES, "name": "my compiler"}))
    (tmp_path / "e.json").write_text('{"schema": "fluxrewrite.evidence/1", "tables": []}')
    given = ("--device", "d.json", "--compiler", "r.json", "--evidence", "e.json", "--evidence", "e.json")
    code, out, _ = run(*given, "--format", "json")
    assert code == 0
    effect = json.loads(out)["effect"]
    assert (effect["device"], effect["compiler"]) == ("mine", "my compiler")


def test_a_name_decides_nothing(tmp_path):
    """What the profile says counts, in both directions."""
    path = tmp_path / "mine.json"
    for name, like in (("acme1", "trn2"), ("trn2-like", "cpu")):
        content = json.loads(shipped("devices")[like].read_text())
        path.write_text(json.dumps({**content, "name": name}))
        mine, shipped_one = Target.of(path), Target.of(like)
        assert mine.device.name == name
        assert (mine.rules, mine.calls_reference) == (shipped_one.rules, shipped_one.calls_reference)


def test_a_compiler_that_the_profile_names_and_that_is_none(run, tmp_path):
    (tmp_path / "d.json").write_text(a_profile(name="acme1", compiler="gcc"))
    code, out, err = run("--device", "d.json")
    assert (code, out) == (2, "")
    assert "compiler of device 'acme1': unknown compiler 'gcc'; known: inductor, neuronx, xla" in err
    assert run("--device", "d.json", "--compiler", "xla")[0] == 0


def test_a_regime_that_is_none_at_all():
    with pytest.raises(InputError, match="unknown regime 'eager'; known: compile, lazy"):
        Target.of("trn2", "eager")
