import json
from importlib.resources import files

import pytest

from fluxrewrite.errors import InputError
from fluxrewrite.fusion import load_rules
from fluxrewrite.fusion.rules import known_rules

GOOD = {"name": "mine", "evidence": {}, "parts": {"add": ["map"]}}


@pytest.fixture
def written(tmp_path):
    def run(**changes):
        path = tmp_path / "rules.json"
        path.write_text(json.dumps({**GOOD, **changes}))
        return str(path)

    return run


def test_known():
    assert known_rules() == ("inductor", "neuronx", "xla")


@pytest.mark.parametrize("name", ["inductor", "neuronx", "xla"])
def test_every_rule_that_is_set_has_its_evidence(name):
    rules = load_rules(name)
    said = json.loads((files("fluxrewrite.fusion") / "data" / f"{name}.json").read_text())
    assert set(said) - {"name", "evidence", "parts", "assumed"} <= set(rules.evidence)
    assert all(rules.evidence.values())


def test_neuronx_says_that_it_is_assumed():
    rules = load_rules("neuronx")
    assert "assumed" in rules.name
    assert rules.assumed
    assert "no oracle" in rules.evidence["all"]


def test_an_operation_that_the_rules_do_not_name_is_a_call():
    assert load_rules("xla").of("some_new_operation") == ("library",)


def test_from_a_file(written):
    rules = load_rules(written(window=7))
    assert (rules.name, rules.window, rules.of("add")) == ("mine", 7, ("map",))


def test_unknown_name():
    with pytest.raises(InputError, match=r"unknown compiler 'gcc'; known: inductor, neuronx, xla, or a JSON file"):
        load_rules("gcc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windw": 3}, "windw: Extra inputs"),
        ({"window": 1}, "window: Input should be greater than or equal to 2"),
        ({"parts": {"add": ["mop"]}}, "parts.add.0: Input should be"),
        ({"storage": "never"}, "storage: Input should be"),
        ({"steps": {"silu": [{"kind": "map", "of": ["input"]}]}}, "steps need storage 'by_use'"),
        ({"storage": "by_use", "steps": {"silu": [{"kind": "map"}]}}, "steps.silu.0.of: Field required"),
        (
            {"storage": "by_use", "steps": {"x": [{"kind": "dot", "of": [], "last": "key"}]}},
            "steps.x.0.last: String should match",
        ),
    ],
)
def test_a_wrong_field_is_named(written, changes, message):
    with pytest.raises(InputError, match=r"rules\.json: ") as caught:
        load_rules(written(**changes))
    assert message in str(caught.value)


def test_bad_json(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"broken.json: the file: Invalid JSON"):
        load_rules(str(path))
