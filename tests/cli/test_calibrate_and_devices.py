"""`fluxrewrite devices` and `fluxrewrite calibrate`."""

import json
from pathlib import Path

import pytest

from fluxrewrite.cli import main
from fluxrewrite.cost import device_names, load_device, load_evidence
from fluxrewrite.cost.published import from_table
from fluxrewrite.measure import calibrate


@pytest.fixture(autouse=True)
def narrow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def table():
    """The published table that the shipped evidence comes from."""
    return Path(__file__).parents[1] / "data" / "seed_results.json"


@pytest.fixture
def run(capsys):
    def call(*args):
        code = main([str(a) for a in args])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_devices_are_listed_in_80_columns(run):
    code, out, _ = run("devices")
    assert code == 0
    assert out.splitlines()[0].split() == ["a", "core", *device_names()]
    assert "437 a" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", device_names())
def test_a_device_shows_every_figure_with_basis_and_source(run, name):
    code, out, _ = run("devices", name)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    words = "".join(out.split())
    for figure_name, figure in load_device(name).figures.items():
        assert figure_name in out
        assert f"{figure.value:g} {figure.unit}" in out
        assert figure.basis in out
    assert "".join(load_device(name).title.split()) in words


def test_a_table_becomes_evidence(run, table):
    code, out, _ = run("calibrate", "--from", table, "-o", "ev.json", "--source", "the experiments")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "18.0 times" in out
    assert "+11,600" in out
    found = load_evidence(["ev.json"], shipped_too=False)
    assert found == from_table(table, "the experiments")


def test_nothing_is_written_without_output(run, table, tmp_path):
    code, out, _ = run("calibrate", "--from", table)
    assert code == 0
    assert "Not saved; use -o FILE to save it" in out
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny(monkeypatch):
    """The measurement in less than a second. `tests/measure/test_calibrate.py` tests what it measures."""
    effort = calibrate.Effort(rounds=2, stream_mb=1, matmul_s=1e-4, matmul_max=256, loops=5)
    measure = calibrate.calibrate
    seen = []

    def small(given, **options):
        seen.append((given, options["threads"]))
        return measure(effort, backend="eager", **options)

    monkeypatch.setattr(calibrate, "calibrate", small)
    return seen


def test_a_profile_is_measured_shown_and_written(run, tiny):
    code, out, _ = run("calibrate", "--quick", "--threads", 1, "-o", "here.json")
    assert code == 0
    assert tiny == [(calibrate.QUICK, 1)]
    device = load_device("here.json")
    assert device.memory.basis == "measured"
    assert f"{device.memory.value:g} GB/s" in out
    assert "Saved to here.json" in out
    assert max(map(len, out.splitlines())) <= 80
    assert run("devices", "here.json")[0] == 0
    assert run("calibrate")[0] == 0
    assert tiny[1] == (calibrate.FULL, None)


@pytest.mark.parametrize(("spread", "warned"), [(0.4, False), (0.6, True)])
def test_a_busy_machine_gets_a_warning(run, monkeypatch, spread, warned):
    device = load_device("cpu")
    noisy = device.memory.model_copy(update={"spread": spread})
    monkeypatch.setattr(calibrate, "calibrate", lambda *a, **o: device.model_copy(update={"memory": noisy}))
    code, out, _ = run("calibrate")
    assert code == 0
    assert ("differ by more than 50% (memory)" in out) == warned


BAD = [
    (("devices", "trn9"), "unknown device 'trn9'; known: cpu, trn1, trn2, trn3"),
    (("devices", "none.json"), "none.json: cannot be read"),
    (("devices", "bad.json"), "bad.json: memory: Field required"),
    (("calibrate", "--from", "none.json"), "none.json: cannot be read"),
    (("calibrate", "--from", "text.json"), "text.json:1:1: not JSON"),
    (("calibrate", "--from", "bad.json"), "bad.json: model: Field required"),
    (("calibrate", "--from", "bad.json", "--quick"), "have no effect with --from, which measures nothing"),
    (("calibrate", "--from", "bad.json", "--threads", "2"), "have no effect with --from, which measures nothing"),
    (("calibrate", "--source", "me"), "name the table with --from"),
    (("calibrate", "--threads", "0"), "threads 0: must be 1 or more"),
    (("calibrate", "-o", "no/such/file.json"), "the folder no/such does not exist"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, args, message):
    content = json.loads(load_device("trn2").model_dump_json(by_alias=True))
    content.pop("memory")
    (tmp_path / "bad.json").write_text(json.dumps(content))
    (tmp_path / "text.json").write_text("hello")
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("fluxrewrite: ")
