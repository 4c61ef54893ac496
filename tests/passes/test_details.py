"""`Site.extra`: a frozen record of its pass, or the mapping of a pass from elsewhere; and what reports show of it."""

from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.attention.attention import Attention
from fluxrewrite.passes.attention.call import AttentionDetails
from fluxrewrite.passes.norm_rope_attention import NormRopeDetails
from fluxrewrite.passes.qkv.qkv import Qkv, QkvDetails
from fluxrewrite.passes.rope.tables import RopeDetails

from fluxrewrite.graph import GraphView
from fluxrewrite.site import Site


def projected(x, wq, wk, wv):
    q, k, v = (F.linear(x, w).unflatten(-1, (2, 8)).transpose(1, 2) for w in (wq, wk, wv))
    return F.scaled_dot_product_attention(q, k, v)


@pytest.fixture
def view(trace):
    return GraphView(
        trace(projected, x=torch.randn(1, 6, 16), **{n: torch.randn(16, 16) for n in ("wq", "wk", "wv")}).graph
    )


def test_sites_hold_frozen_records_of_their_pass(view):
    (attention,), (qkv,) = Attention().find(view), Qkv().find(view)
    assert (type(attention.extra), type(qkv.extra)) == (AttentionDetails, QkvDetails)
    with pytest.raises(FrozenInstanceError):
        attention.extra.layout = "bhsd"


def test_details_are_the_fields_in_order_then_the_notes(view):
    (attention,), (qkv,) = Attention().find(view), Qkv().find(view)
    assert list(attention.details) == ["call", "layout", "out_layout", "turned", "transposed", "rank", "causal"]
    assert attention.details["layout"] == attention.extra.layout == "bshd"
    assert list(qkv.details) == ["parts", "roles", "projections"]


def test_a_mapping_serves_a_pass_from_elsewhere():
    given = Site("softcap", "", "", {}, (), (), {}, torch.float32, extra={"cap": 30.0}, notes={"cap_source": "config"})
    assert given.details == {"cap": 30.0, "cap_source": "config"}
    assert Site("softcap", "", "", {}, (), (), {}, torch.float32).details == {}


def test_the_order_of_fields_is_that_of_reports():
    names = {kind: list(kind.__dataclass_fields__) for kind in (RopeDetails, NormRopeDetails)}
    assert names == {
        RopeDetails: ["axis", "turned", "folded", "out_dtype", "squeeze", "tables", "interleaved"],
        NormRopeDetails: ["eps", "rope", "scale", "interleaved"],
    }
