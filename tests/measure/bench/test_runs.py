"""Files of runs: what they say, and that they are whole or not there."""

import errno
import json
import os

import pytest

from fluxrewrite.cost import runs
from fluxrewrite.cost.runs import load_runs, save_runs
from fluxrewrite.errors import InputError


def test_saved_and_loaded_are_the_same(made, tmp_path):
    path = tmp_path / "runs.json"
    save_runs(made(), path)
    assert load_runs(path) == made()
    assert json.loads(path.read_text())["schema"] == "fluxrewrite.runs/1"
    assert [p.name for p in tmp_path.iterdir() if "runs.json" in p.name] == ["runs.json"]


def test_figures_of_a_variant(made, row):
    found = made(row("vanilla", 1.0, {}), row("qkv", 0.9, {"qkv:triple": 2}))
    vanilla, qkv = found.variants
    assert vanilla.warm == (*[1.0] * 8, *[1.002] * 4)
    assert vanilla.warm_s_per_step == 1.0
    assert vanilla.noise == pytest.approx(0.002)
    assert vanilla.cold_first_step_s == 30.0
    assert found.ratio(qkv) == pytest.approx(0.9)
    assert found.growth(qkv) == 0
    assert found.noise(qkv) == 0.01
    assert not qkv.differs


def test_without_warm_runs_or_vanilla_there_are_no_ratios(made, row):
    cold = row("qkv", 0.9, {}, runs=[{"steps_s": [5.0, 1.0, 1.0, 1.0]}])
    found = made(row("vanilla", 1.0, {}), cold)
    assert found.variants[1].warm_s_per_step is None
    assert found.variants[1].noise == 0
    assert found.ratio(found.variants[1]) is None
    assert found.noise(found.variants[1]) is None
    assert found.growth(found.variants[1]) == pytest.approx(5 / 30 - 1)
    assert made(cold).ratio(made(cold).variants[0]) is None
    nothing = made(row("qkv", 0.9, {}, runs=[])).variants[0]
    assert nothing.cold_first_step_s is None


def test_noise_adds_the_uncertainty_of_both_medians(made, row):
    wide = row("qkv", 0.9, {"qkv:triple": 2})
    for run in wide["runs"][1:]:
        run["steps_s"] = [0.85, 0.9, 0.9, 0.95]
    found = made(row("vanilla", 1.0, {}), wide)
    assert found.noise(found.variants[1]) == pytest.approx(0.05 / 0.9 + 0.002)


@pytest.mark.parametrize(
    ("name", "calls", "fields", "drift"),
    [
        ("auto", {}, {}, 0.04),
        ("qkv", {"qkv:triple": 2}, {}, 0.0),
        ("eager", {}, {}, 0.0),
        ("auto", {}, {"inline": 2}, 0.0),
        ("auto", {}, {"output": {"digest": "e", "finite": True, "cosine": 0.5}}, 0.0),
        ("auto", {}, {"runs": []}, 0.0),
    ],
)
def test_variants_of_one_program_show_the_difference_between_processes(made, row, name, calls, fields, drift):
    found = made(row("vanilla", 1.0, {}), row(name, 1.04, calls, **fields), row("rope", 1.02, {"rope:interleaved": 6}))
    assert found.drift == pytest.approx(drift)
    assert found.noise(found.variants[2]) == pytest.approx(max(0.01, drift))


@pytest.mark.parametrize(
    ("output", "differs"),
    [
        ({"digest": "d", "finite": True, "cosine": 0.9991}, False),
        ({"digest": "d", "finite": True, "cosine": 0.9989}, True),
        ({"digest": "d", "finite": False}, True),
        ({"digest": "d", "finite": True}, False),
        (None, False),
    ],
)
def test_other_latents_than_vanillas(made, row, output, differs):
    assert made(row("qkv", 0.9, {}, output=output)).variants[0].differs == differs


BAD = [
    (lambda c: c.pop("case"), "case: Field required"),
    (lambda c: c.update(schema="fluxrewrite.runs/2"), "schema: Input should be 'fluxrewrite.runs/1'"),
    (lambda c: c.update(more=1), "more: Extra inputs are not permitted"),
    (lambda c: c["variants"].append(c["variants"][0]), "two variants with the same name"),
    (lambda c: c["variants"][0]["runs"][1]["steps_s"].pop(), "'vanilla' has a run of 3 steps, setup says 4"),
    (lambda c: c["variants"][1].update(beside=[{"steps_s": [1.0]}]), "'qkv' has a run of 1 steps, setup says 4"),
    (lambda c: c["variants"][0]["runs"].extend(c["variants"][0]["runs"][:1]), "'vanilla' has 5 runs, setup says 4"),
    (lambda c: c["variants"][1]["runs"][0]["steps_s"].__setitem__(0, -1.0), "variants.1.runs.0.steps_s.0"),
    (lambda c: c["variants"][1]["calls"].update(qkv=0), "variants.1.calls.qkv"),
]


@pytest.mark.parametrize(("damage", "message"), BAD, ids=[m for _, m in BAD])
def test_the_error_for_a_damaged_file_names_the_field(content, tmp_path, damage, message):
    broken = content()
    damage(broken)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(InputError) as caught:
        load_runs(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "fluxrewrite bench MODEL --save FILE" in str(caught.value)


def test_the_error_for_half_a_file_has_its_position(made, tmp_path):
    path = tmp_path / "half.json"
    path.write_text(made().to_json()[:500])
    with pytest.raises(InputError, match=r"half\.json:\d+:\d+: not JSON"):
        load_runs(path)


def test_a_full_disk_leaves_the_old_file(made, tmp_path, monkeypatch):
    path = tmp_path / "runs.json"
    save_runs(made(), path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs.os, "fsync", full)
    with pytest.raises(InputError, match=r"runs\.json: the runs cannot be kept \(No space left on device\); make room"):
        save_runs(made(date="later"), path)
    assert load_runs(path) == made()
    assert [p.name for p in tmp_path.iterdir() if "runs.json" in p.name] == ["runs.json"]


def test_a_link_stays_a_link(made, tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "kept.json")
    save_runs(made(), tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert load_runs(tmp_path / "kept.json") == made()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has /dev/full")
def test_a_device_file_is_not_replaced(made):
    from pathlib import Path

    with pytest.raises(InputError, match="No space left on device"):
        save_runs(made(), Path("/dev/full"))
    assert not Path("/dev/full").is_file()
    save_runs(made(), Path("/dev/null"))
    assert not Path("/dev/null").is_file()


def test_a_folder_that_is_gone(made, tmp_path):
    with pytest.raises(InputError, match="No such file or directory"):
        save_runs(made(), tmp_path / "gone" / "runs.json")
