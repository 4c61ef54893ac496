"""The model of XLA's fusion against XLA, for transformers of real widths. Both see the very same graph.

Bytes are compared with the oracle's `touched`: a `Group` counts distinct bytes that a kernel reads, and of an operand that
it reads in part only that part; XLA reads no more than the slices, too. Whole operands would charge a kernel that takes
3072 of a packed projection's 27648 columns with all of them.
"""

import json

import pytest
import torch

from fluxrewrite.fusion import fuse, load_rules
from fluxrewrite.graph import GraphView
from fluxrewrite.graph.edges import edges
from fluxrewrite.measure.oracle.compare import agreement, lost_fusions, rank_agreement
from fluxrewrite.measure.oracle.xla_graph import xla_fusion_of
from fluxrewrite.measure.oracle.xla_worker import traced
from fluxrewrite.models import Shapes
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection

pytest.importorskip("torch_xla", reason="torch-xla is not installed here: make test-xla")

VARIANTS = [
    "qkv",
    "rope",
    "attention",
    "norm_rope_attention",
    "qkv,attention",
    "attention,norm_rope_attention,qkv,rope",
]
CONFIGS = {
    # The widths of FLUX.2-klein-4B, one double and two single blocks.
    "flux2": {
        "_class_name": "Flux2Transformer2DModel",
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 7680,
        "in_channels": 128,
        "guidance_embeds": False,
    },
    # FLUX.1-dev's: the rules were not written from it. Its linear layers have biases.
    "flux1": {
        "_class_name": "FluxTransformer2DModel",
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "in_channels": 64,
        "guidance_embeds": True,
    },
}


class Both:
    """Prediction and answer for one model, by kinds of site replaced."""

    def __init__(self, model):
        self.model, self._known = model, {}
        self.view, *_ = self.ask(None)
        self.edges = [(a.name, b.name) for a, b in edges(self.view)]

    def ask(self, kernels):
        if kernels not in self._known:
            gm = traced(self.model, Shapes(256, 512), kernels, torch.float32)
            view = GraphView(gm.graph)
            answer = xla_fusion_of(gm, touched=True)
            self._known[kernels] = view, fuse(view, load_rules("xla")).fusion, answer
        return self._known[kernels]

    def extra(self, kernels):
        return tuple(
            after.bytes - before.bytes for after, before in zip(self.ask(kernels)[1:], self.ask(None)[1:], strict=True)
        )

    def lost(self, kernels):
        inside = {}
        for decision in make_plan(self.view, Selection.of(kernels)).decisions:
            if decision.choice == "kernel":
                site = decision.finding
                inside |= {n.name: id(site) for n in (*site.interior, *site.outputs)}
        between = [(a, b) for a, b in self.edges if a not in inside or inside[a] != inside.get(b)]
        pairs = zip(self.ask(None)[1:], self.ask(kernels)[1:], strict=True)
        return tuple(lost_fusions(before, after, between) for before, after in pairs)


@pytest.fixture(scope="module", params=list(CONFIGS))
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "config.json").write_text(json.dumps(CONFIGS[request.param]))
    return Both(str(folder))


@pytest.mark.parametrize("kernels", VARIANTS)
def test_lost_fusions(both, kernels):
    found = agreement(*both.lost(kernels))
    assert min(found.precision, found.recall) >= 0.9, found


def test_some_fusions_are_lost(both):
    assert len(both.lost("rope")[1]) >= 10
    assert len(both.lost("attention")[1]) >= 4


@pytest.mark.parametrize("kernels", VARIANTS)
def test_extra_bytes(both, kernels):
    predicted, actual = both.extra(kernels)
    assert predicted == pytest.approx(actual, rel=0.1)


def test_variants_rank_as_xla_ranks_them(both):
    predicted, actual = ({v: both.extra(v)[side] for v in VARIANTS} for side in (0, 1))
    assert rank_agreement(predicted, actual) == 1


def test_fused_before_anything_is_replaced(both):
    predicted, actual = ({e for e in both.edges if f.fused(*e)} for f in both.ask(None)[1:])
    assert len(actual) > 80
    assert actual <= predicted
