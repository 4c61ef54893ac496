import json

import pytest

from fluxrewrite.cost import load_evidence
from fluxrewrite.cost.published import from_table
from fluxrewrite.errors import InputError

SOURCE = "published experiments: NKI kernels by hand in FLUX.2-klein-4B; restated figures"


def test_the_shipped_evidence_is_the_published_table(table):
    assert load_evidence() == from_table(table, SOURCE)


def test_calls_follow_from_the_blocks(published):
    *_, compiled = published.tables
    both = compiled.run(["qkv", "attention"])
    assert both.calls == {"qkv:triple": 2 * 5, "attention": 5 + 20}
    assert both.specialisations == {"qkv:triple": 2, "attention": 1}


def test_cases_and_figures(published, table):
    lazy, eager, compiled = published.tables
    assert [(t.case.device, t.case.regime) for t in published.tables] == [
        ("trn1", "lazy"),
        ("trn2", "lazy"),
        ("trn2", "compile"),
    ]
    assert {t.case.model for t in published.tables} == {"flux2-klein-4b"}
    assert {t.case.tp for t in published.tables} == {4}
    assert lazy.baseline.warm_s_per_step == 0.824
    assert lazy.run(["qkv"]).warm_s_per_step == 14.86
    assert eager.baseline.warm_s_per_step == 0.835
    assert compiled.run(["attention"]).compile_s == 862.344
    assert "neuronxcc 2.0.236418" in compiled.stack
    assert compiled.source == table.name


def changed(table, change):
    content = json.loads(table.read_text())
    change(content)
    return json.dumps(content)


BAD = {
    "model": (lambda c: c.pop("model"), r"t\.json: model: Field required"),
    "negative": (
        lambda c: c["lazy"]["warm_s_per_step"].update(qkv=-1),
        r"t\.json: lazy\.warm_s_per_step\.qkv: .*greater than 0",
    ),
    "zero ranks": (lambda c: c.update(tensor_parallel=0), r"t\.json: tensor_parallel: .*greater than 0"),
    "hardware": (
        lambda c: c["compile"].update(hardware="p5.48xlarge"),
        r"compile\.hardware: 'p5\.48xlarge' is no instance",
    ),
    "variant": (
        lambda c: c["lazy"]["warm_s_per_step"].update(mlp=1),
        r"t\.json: lazy: unknown variant 'mlp'; known: vanilla",
    ),
    "vanilla": (lambda c: c["lazy"]["warm_s_per_step"].pop("vanilla"), r"t\.json: lazy: no variant 'vanilla'"),
    "nothing": (lambda c: (c.pop("lazy"), c.pop("compile")), r"t\.json: neither lazy nor compile given"),
}


@pytest.mark.parametrize("name", BAD)
def test_tables_that_cannot_be_used(tmp_path, table, name):
    change, message = BAD[name]
    path = tmp_path / "t.json"
    path.write_text(changed(table, change))
    with pytest.raises(InputError, match=message):
        from_table(path)


def test_equal_streams_share_a_specialisation(tmp_path, table):
    path = tmp_path / "t.json"
    path.write_text(changed(table, lambda c: c.update(image_tokens=512)))
    assert from_table(path).tables[-1].run(["qkv"]).specialisations == {"qkv:triple": 1}
