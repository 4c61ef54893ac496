"""The program in docs/neuron.md, on a small model and the stand-in, or on the device where there is one."""

import json
import re
from pathlib import Path

import pytest

from fluxrewrite.dynamo.inner.neuron import NO_FALLBACK
from fluxrewrite.provider.custom_call import TARGET

PAGE = Path(__file__).parents[2] / "docs" / "neuron.md"
CONFIG = {
    "_class_name": "Flux2Transformer2DModel",
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "joint_attention_dim": 96,
    "in_channels": 16,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 16, 16, 16],
}


@pytest.mark.slow
def test_the_program(neuron, tmp_path, monkeypatch):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for old, new in (("flux2-klein-4b", str(tmp_path)), ("Shapes(256, 512)", "Shapes(24, 12)")):
        assert old in program
        program = program.replace(old, new)
    program = program.replace('device="neuron"', f'device="{neuron.device}"')
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r"^   ", "", program, flags=re.M), {})
    report = json.loads(Path("report.json").read_text())
    assert report["model"]["eager_fallback"] is False
    assert {s["choice"] for s in report["sites"] if s["kind"] in ("qkv", "norm_rope_attention")} == {"kernel"}
    if not neuron.real:
        assert set(neuron.module.calls) == {"qkv", "norm_rope_attention"}


def test_settings_are_those_that_the_code_reads():
    text = PAGE.read_text()
    assert f"export {NO_FALLBACK}=1" in text
    assert f"`{TARGET}`" in text
