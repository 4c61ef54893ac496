"""Other models than FLUX.2: what is found in them is what they compute, and the page that says so is current."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import CASES, Case
from zoo.compare import Row, compare
from zoo.table import below, row_text
from zoo.truth import observe

pytest.importorskip("diffusers")
PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
QUICK = {
    "WanTransformer3DModel": "num_layers",
    "PixArtTransformer2DModel": "num_layers",
}
SLOW = (
    "SD3Transformer2DModel", "HunyuanDiT2DModel", "LuminaNextDiT2DModel", "CogView4Transformer2DModel",
    "QwenImageTransformer2DModel",
    "ZImageTransformer2DModel", "PRXTransformer2DModel", "Cosmos3OmniTransformer", "LTXVideoTransformer3DModel",
    "CogVideoXTransformer3DModel", "MochiTransformer3DModel", "AllegroTransformer3DModel", "StableAudioDiTModel", "T5FilmDecoder",
    "Gemma2Model", "PhiModel", "Kandinsky5Transformer3DModel",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_operations_of_each_model_are_found(name):
    case = CASES[name]
    row = compare(replace(case, config={**case.config, "num_layers": 1}))
    assert (row.problem, row.equal) == ("", True)
    assert row.found == row.there
    assert row.there["attention"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_page_is_current(name):
    row = compare(CASES[name])
    assert row.equal
    assert row_text(row) in PAGE.read_text(), "run python tools/coverage.py --format markdown"


@pytest.mark.slow
def test_page_has_every_class():
    page = PAGE.read_text()
    assert [name for name in CASES if name not in page] == []


class Toy(nn.Module):
    """Self-attention spelled out, then cross-attention; one rotation by a function of another module."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.to_q, self.to_kv = (nn.Linear(8, n) for n in (8, 8, 8, 8, 16))

    def forward(self, x, y):
        scores = (self.q(x) @ self.k(x).transpose(-1, -2)).softmax(-1)
        x = F.dropout(scores, 0.5, self.training) @ self.v(x)
        k, v = self.to_kv(y).chunk(2, -1)
        return F.scaled_dot_product_attention(self.to_q(x), k, v)


def test_ground_truth_of_a_toy():
    truth, _ = observe(Case("Toy"), Toy().eval(), {"x": torch.randn(1, 4, 8), "y": torch.randn(1, 5, 8)})
    assert len(truth.attention) == 2
    assert [g.kind for g in truth.groups] == ["qkv", "kv"]


def test_linear_attention_is_no_attention():
    class Linear(Toy):
        def forward(self, x):
            return self.q(x).relu() @ (self.k(x).relu().transpose(-1, -2) @ self.v(x))

    truth, _ = observe(Case("Linear"), Linear().eval(), {"x": torch.randn(1, 4, 8)})
    assert (truth.attention, truth.groups) == ([], [])


def test_goals():
    there, few = {"attention": 50, "rope": 20, "qkv": 20}, {"attention": 48, "rope": 19, "qkv": 18}
    short = below(
        [Row("A", "", there, few, error=0.0), Row("B", "", there, there, error=1e-3), Row("C", "", problem="no")]
    )
    assert short == ["B: outputs differ by 1.0e-03"]
    assert below([Row("A", "", there, few, error=0.0)])[0].startswith("attention: 48 of 50")
