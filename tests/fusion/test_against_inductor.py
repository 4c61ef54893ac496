"""The model of Inductor's fusion against Inductor: same bytes, same pairs of producer and consumer fused."""

import pytest
import torch
import torch.nn.functional as F
from torch.torch_version import TorchVersion

from fluxrewrite.fusion import fuse, load_rules
from fluxrewrite.graph import GraphView
from fluxrewrite.graph.edges import edges
from fluxrewrite.measure.oracle.inductor import inductor_fusion

pytestmark = pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.13", reason="Inductor's internals are those of torch 2.13"
)

X = torch.zeros(128, 256)
W = torch.zeros(256, 256)
Q = torch.zeros(1, 4, 32, 16)


def shared_expensive(x):
    y = x.exp()
    return y * 2, y.t() + 1


def shared_cheap(x):
    y = x + 1
    return y * 2, y * 3


def many_reads(a, b, c, d, e, f):
    y = a + b + c + d + e + f
    return y * 2, y.sum(-1)


def modulated(x, shift, scale):
    return F.layer_norm(x, (256,)) * (1 + scale) + shift


def rotated(x, cos, sin):
    real, imag = x.reshape(128, 128, 2).unbind(-1)
    return x * cos + torch.stack([-imag, real], -1).flatten(1) * sin


def swiglu(x, w):
    gate, up = F.linear(x, w).chunk(2, -1)
    return F.silu(gate) * up


def joined(x, y):
    return torch.cat([x * 2, y + 1], 0)


def joined_and_used(x, y):
    return torch.cat([x * 2, y + 1], 0) * 3


def joined_then_relu(x, y):
    return torch.cat([x * 2, y + 1], 0).relu()


def joined_with_input(x, y):
    return torch.cat([x, y * 2], -1)


def attended(q, k, v):
    return F.scaled_dot_product_attention(q * 2, k, v).transpose(1, 2).flatten(2) + 1


def gated(x, gate, w):
    y = x + gate * F.linear(x, w)
    return y, F.layer_norm(y, (256,))


CASES = {
    "chain": (lambda x: (x.exp() * 2 + 1).sin(), [X]),
    "broadcast": (lambda x, s: (x + s).relu() * s, [X, torch.zeros(256)]),
    "sum": (lambda x: (x * 2).sum(-1) + 1, [X]),
    "mean": (lambda x: x - x.mean(-1, keepdim=True), [X]),
    "softmax": (lambda x: F.softmax(x * 2, -1) + 1, [X]),
    "rms_norm": (lambda x, w: F.rms_norm(x, (256,), w) * 2, [X, torch.zeros(256)]),
    "layer_norm": (modulated, [X, torch.zeros(256), torch.zeros(256)]),
    "expensive": (shared_expensive, [X]),
    "cheap": (shared_cheap, [X]),
    "reads": (lambda a, b, c, d, e: (y := a + b + c + d + e) * 2 + y.exp(), [X.clone() for _ in range(5)]),
    "linear": (lambda x, w: F.linear(x * 2, w).relu() + 1, [X, W]),
    "part": (lambda x: x[:32] * 2 + 1, [X]),
    "transposed": (lambda x, w: F.linear(x.view(128, 4, 64).transpose(0, 1).reshape(128, 256), w), [X, W]),
    "rotated": (rotated, [X, X.clone(), X.clone()]),
    "swiglu": (swiglu, [X, W]),
    "cat": (joined, [X, X.clone()]),
    "cat used": (joined_and_used, [X, X.clone()]),
    "cat with an input": (joined_with_input, [X, X.clone()]),
    "attention": (attended, [Q, Q.clone(), Q.clone()]),
    "gated": (gated, [X, torch.zeros(256), W]),
    "cast": (lambda x: (x.to(torch.bfloat16) + 1).float() * 2, [X]),
    "dropout that is off": (lambda x: F.dropout(x.exp(), 0.5, False).sin() + F.dropout(x.relu(), 0.0), [X]),
}


KNOWN = {
    "relu after cat": (joined_then_relu, [X, X.clone()]),  # Inductor moves relu in front of cat
    "sum of a stored value": (many_reads, [X.clone() for _ in range(6)]),  # it leaves the sum a kernel of its own
}


def both(trace, fn, inputs):
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    gm = trace(fn, **dict(zip(names, inputs, strict=True)))
    fakes = [n.meta["example_value"] for n in gm.graph.find_nodes(op="placeholder")]
    view = GraphView(gm.graph)
    pairs = [(a.name, b.name) for a, b in edges(view)]
    for fusion in (fuse(view, load_rules("inductor")).fusion, inductor_fusion(gm, fakes)):
        yield fusion.bytes, {p for p in pairs if fusion.fused(*p)}


@pytest.mark.parametrize("case", CASES)
def test_inductor_says_the_same(trace, case):
    predicted, actual = both(trace, *CASES[case])
    assert predicted == actual


@pytest.mark.xfail(strict=True, reason="not in the rules")
@pytest.mark.parametrize("case", KNOWN)
def test_known_differences(trace, case):
    predicted, actual = both(trace, *KNOWN[case])
    assert predicted == actual
