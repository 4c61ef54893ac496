import json

import pytest
import torch
from decisions import decided_by, files

from fluxrewrite.cost import device_names, load_device
from fluxrewrite.cost.devices import Device, Figure, emulated_names
from fluxrewrite.errors import InputError


def test_shipped_profiles_are_complete_and_say_where_each_figure_comes_from():
    assert device_names() == ("cpu", "trn1", "trn2", "trn3")
    for name in device_names():
        device = load_device(name)
        assert device.name == name
        assert {"bfloat16", "float16", "float32"} <= set(device.matmul)
        assert all(len(figure.source) > 10 for figure in device.figures.values())


def test_figures_of_a_core_follow_from_the_documents():
    trn1, trn2, trn3 = (load_device(n) for n in ("trn1", "trn2", "trn3"))
    assert trn1.memory.value == min(16 * 17, 820 / 2)
    assert trn2.memory.value == min(2 * 16 * 23, 2900 / 4)
    assert trn3.memory.value == min(2 * 16 * 33, 4700 / 4)
    assert trn2.matmul["bfloat16"].value == 2 * 79
    assert trn2.vector.value == round(2 * 128 * 0.96)
    assert trn2.call.value == 2 * 1.3


def test_no_launch_time_is_published_so_every_neuron_profile_assumes_a_range():
    for name in ("trn1", "trn2", "trn3"):
        launch = load_device(name).launch
        assert launch.basis == "assumed"
        assert launch.range == (30, 500)


def test_dtypes_are_taken_by_any_of_their_names():
    device = load_device("trn2")
    assert (
        device.rate("bf16") is device.rate(torch.bfloat16) is device.rate("torch.bfloat16") is device.rate("bfloat16")
    )
    with pytest.raises(InputError, match="no matmul rate for int8; it has bfloat16, float16, float32"):
        device.rate(torch.int8)


def test_what_was_decided_by_the_name_is_in_the_profile():
    fields = ("compiler", "runs_kernels", "emulated_as", "physical_cores")
    assert {n: tuple(getattr(load_device(n), f) for f in fields) for n in device_names()} == {
        "cpu": ("inductor", False, None, 1),
        "trn1": ("neuronx", True, "trn1", 1),
        "trn2": ("neuronx", True, "trn2", 2),
        "trn3": ("neuronx", True, "trn3", 2),
    }
    assert emulated_names() == ("trn1", "trn2", "trn3")
    assert load_device("trn3").emulated() == "trn3"
    with pytest.raises(InputError, match="no model of kernel calls on cpu: the emulator models trn1, trn2, trn3"):
        load_device("cpu").emulated()


def test_no_file_decides_by_the_name_of_a_device():
    """A comparison with "trn2", a table by it, or a test of how the name begins would leave out a user's own profile."""
    found = decided_by({*emulated_names(), "inf1", "inf2"}, beginnings=("trn", "inf"))
    assert [path.as_posix() for path in files(found)] == ["kernels/emulator/specs.py"], (
        found
    )  # the devices that it models


def test_regimes():
    device = load_device("trn2").model_copy(update={"regimes": ("compile",)})
    device.check_regime("compile")
    with pytest.raises(InputError, match="'trn2' is not run in regime 'lazy'; it knows compile"):
        device.check_regime("lazy")


def test_a_profile_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    device = load_device("trn2").model_copy(update={"name": "mine"})
    path.write_text(device.model_dump_json(by_alias=True))
    assert load_device(path) == load_device(str(path)) == device


def test_unknown_device():
    with pytest.raises(InputError, match=r"unknown device 'tpu'; known: cpu, trn1, trn2, trn3, or a profile"):
        load_device("tpu")


def corrupt(change):
    content = json.loads(load_device("trn2").model_dump_json(by_alias=True))
    change(content)
    return json.dumps(content)


CORRUPT = {
    "not JSON": ('{"schema": ', r"dev\.json:1:12: not JSON"),
    "empty": ("", r"dev\.json:1:1: not JSON"),
    "a list": ("[]", r"dev\.json: the file: Input should be"),
    "missing field": (corrupt(lambda c: c.pop("memory")), r"dev\.json: memory: Field required"),
    "unknown field": (corrupt(lambda c: c.update(hbm=3)), r"dev\.json: hbm: Extra inputs"),
    "negative": (corrupt(lambda c: c["memory"].update(value=-1)), r"dev\.json: memory\.value: .*greater than 0"),
    "zero": (corrupt(lambda c: c["matmul"]["bfloat16"].update(value=0)), r"matmul\.bfloat16\.value: .*greater than 0"),
    "infinite": (corrupt(lambda c: c["call"].update(value=float("inf"))), r"call\.value: .*finite"),
    "a text": (corrupt(lambda c: c["call"].update(value="fast")), r"call\.value: .*number"),
    "unit": (corrupt(lambda c: c["call"].update(unit="ms")), r"call: unit 'ms' where 'us' is meant"),
    "unit of a rate": (corrupt(lambda c: c["matmul"]["float16"].update(unit="GFLOP/s")), r"matmul\.float16: unit"),
    "basis": (corrupt(lambda c: c["call"].update(basis="guessed")), r"call\.basis: .*'measured'"),
    "no source": (corrupt(lambda c: c["call"].update(source="")), r"call\.source: .*at least 1"),
    "range": (corrupt(lambda c: c["launch"].update(low=600)), r"launch: value 437 is not between low 600 and high 500"),
    "regime": (corrupt(lambda c: c.update(regimes=["eager"])), r"regimes\.0: .*'compile' or 'lazy'"),
    "no compiler": (
        corrupt(lambda c: c.pop("compiler")),
        r'dev\.json: compiler: Field required; add "compiler": "inductor"',
    ),
    "no runs_kernels": (corrupt(lambda c: c.pop("runs_kernels")), r"dev\.json: runs_kernels: Field required; add "),
    "from before": (
        corrupt(lambda c: [c.pop(n) for n in ("compiler", "runs_kernels", "emulated_as", "physical_cores")]),
        r'compiler: Field required \(and 1 more\); add "compiler": "inductor" and "runs_kernels": false for a processor, '
        r'"neuronx" and true for a Neuron device, or write the profile again with `fluxrewrite calibrate',
    ),
    "empty compiler": (corrupt(lambda c: c.update(compiler="")), r"compiler: .*at least 1"),
    "physical cores": (corrupt(lambda c: c.update(physical_cores=3)), r"physical_cores: .*1 or 2"),
    "schema": (corrupt(lambda c: c.update(schema="fluxrewrite.device/9")), r"schema: .*fluxrewrite\.device/1"),
    "two wrong": (corrupt(lambda c: (c.pop("memory"), c.pop("call"))), r"memory: Field required \(and 1 more\)"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_profiles(tmp_path, name):
    text, message = CORRUPT[name]
    path = tmp_path / "dev.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as found:
        load_device(path)
    assert "fluxrewrite calibrate" in str(found.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read \(No such file"):
        load_device(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"folder\.json: cannot be read \(Is a directory"):
        load_device(tmp_path / "folder.json")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe4"}')
    with pytest.raises(InputError, match=r"latin\.json: not a text in UTF-8"):
        load_device(tmp_path / "latin.json")


def test_a_figure_without_a_range_is_its_own():
    figure = Figure(value=3, unit="us", basis="assumed", source="test", high=5)
    assert figure.range == (3, 5)
    assert Device.model_validate_json(load_device("cpu").model_dump_json(by_alias=True)) == load_device("cpu")
