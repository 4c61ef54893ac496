"""One graph with every form of every pass, and graphs on sizes that no machine would run."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import symbolic_trace
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from fluxrewrite.graph import GraphView
from fluxrewrite.models.capture import capture
from fluxrewrite.rewrite.proof import Prover, Store
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Site

B, S, L, H, D = 2, 12, 10, 16, 8
W = H * D
LOW = torch.finfo(torch.float32).min


def halves(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def neighbours(x, cos, sin):
    first, second = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack((-second, first), dim=-1).flatten(-2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


def pairwise(x, cos, sin):
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)


def complexes(x, freqs):
    return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * freqs).flatten(-2)


def spelled(q, k, v, mask=None, drop=None, keep=None, scale=0.3):
    scores = q @ k.mT * scale
    scores = scores if mask is None else scores + mask
    scores = scores if drop is None else scores.masked_fill(drop, float("-inf"))
    scores = scores if keep is None else torch.where(keep, scores, LOW)
    return scores.softmax(-1) @ v


class Everything(nn.Module):
    """Projections as three layers, one layer and two; norms, rotations and attention in every form."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(24, W), nn.Linear(24, W), nn.Linear(24, W)
        self.packed, self.kv = nn.Linear(24, 3 * W + 20, bias=False), nn.Linear(24, 2 * W)
        self.gain, self.other = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))

    def projected(self, x):
        q, k, v = self.packed(x).split([W, W, W + 20], -1)
        twice = x * 2
        k2, v2 = self.kv(twice).chunk(2, -1)
        return [(self.q(x), self.k(x), self.v(x)), (q, k, v[..., :W]), (self.q(twice), k2, v2)], v[..., W:]

    def forward(self, x, cos, sin, freqs, mask, added, image, text):
        groups, rest = self.projected(x)
        out = [rest]
        for q, k, v in groups:
            heads = [t.unflatten(-1, (H, D)) for t in (q, k, v)]
            out.append(F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in heads)).transpose(1, 2))
        q, k, v = (t.unflatten(-1, (H, D)).transpose(1, 2) for t in groups[0])
        out += [
            halves(q, cos, sin),
            neighbours(q, cos, sin),
            pairwise(q, cos[:, ::2], sin[:, 1::2]),
            complexes(q, freqs),
        ]
        out += [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.2),
            F.scaled_dot_product_attention(q, k, v, mask),
            F.scaled_dot_product_attention(q, k[:, ::4], v[:, ::4], added, enable_gqa=True),
            spelled(q, k, v), spelled(q, k, v, mask=added), spelled(q, k, v, drop=mask), spelled(q, k, v, keep=mask),
        ]  # fmt: skip
        return out + self.regions(image, text, cos[:, None], sin[:, None])

    def regions(self, image, text, cos, sin):
        def norm(t, gain):
            return F.rms_norm(t, (D,), gain, 1e-6)

        joined = [torch.cat((norm(text, self.other), norm(image, g)), 1) for g in (self.gain, self.other)]
        joined = [neighbours(t, cos, sin) for t in joined] + [torch.cat((text * 2, image), 1)]
        whole = torch.cat((image, text * 2), 1)
        single = [halves(norm(whole * n, self.gain), cos, sin) for n in (1.0, 3.0)] + [whole * 2]
        return [
            F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in g)).transpose(1, 2) for g in (joined, single)
        ]


def inputs():
    return {
        "x": torch.randn(B, S, 24), "cos": torch.randn(S, D), "sin": torch.randn(S, D),
        "freqs": torch.randn(S, D // 2, dtype=torch.complex64), "mask": torch.ones(S, S).tril().bool(),
        "added": torch.randn(B, 1, S, S), "image": torch.randn(B, S - 2, H, D), "text": torch.randn(B, 2, H, D),
    }  # fmt: skip


@pytest.fixture(scope="session")
def everything():
    """The graph as Dynamo makes it."""
    (gm,) = capture(Everything(), inputs()).graphs
    return gm


class Later(nn.Module):
    """Keys and values of another input than the queries; a rotation by matrices, and what no pattern knows."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(24, W), nn.Linear(24, W), nn.Linear(24, W)

    def forward(self, x, y, r, cos, sin):
        q, k, v = (f(t).unflatten(-1, (H, D)).transpose(1, 2) for f, t in ((self.q, x), (self.k, y), (self.v, y)))
        turned = (r * q.reshape(*q.shape[:-1], -1, 1, 2)).sum(dim=-1).reshape(*q.shape)
        a, b = k.chunk(2, -1)
        k = torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)), -1)
        weights = torch.einsum("bhqd,bhkd->bhqk", turned, k).softmax(-1)
        return F.scaled_dot_product_attention(q, k, v), turned, torch.einsum("bhqk,bhkd->bhqd", weights, v)


@pytest.fixture
def later(tmp_path):
    """The sites of `Later`."""
    given = {"x": torch.randn(B, S, 24), "y": torch.randn(B, S, 24), "r": torch.randn(S, D // 2, 2, 2)}
    given |= {"cos": torch.randn(S, D // 2), "sin": torch.randn(S, D // 2)}
    (gm,) = capture(Later(), given).graphs
    return Sites(gm, tmp_path / "later")


class Sites:
    """The sites of a graph, and their proofs with a store of their own."""

    def __init__(self, gm, folder, provider="reference"):
        self.view, self.selection = GraphView(gm.graph), Selection.of(provider=provider)
        self.folder = folder
        passes = self.selection.passes.values()
        self.all = [s for p in passes for s in p.find(self.view) if isinstance(s, Site)]

    def of(self, kind, form=None):
        return [s for s in self.all if s.kind == kind and form in (None, s.form)]

    def prove(self, site, rewriter=None, prover=None):
        kernel = None if site.inline else self.selection.kernels[site.kind]
        prover = prover or Prover(Store(self.folder))
        return prover(self.view, site, rewriter or self.selection.passes[site.kind], kernel)


@pytest.fixture
def sites(everything, tmp_path):
    return Sites(everything, tmp_path)


@pytest.fixture
def faked(tmp_path):
    """`faked(fn, name=tensor on "meta", ...)`: sites of a graph on tensors of any size, none of which exists."""

    def run(fn, **given):
        gm = symbolic_trace(fn)
        with FakeTensorMode() as mode:
            tensors = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu") for t in given.values()]
            FakeTensorProp(gm, mode).propagate_dont_convert_inputs(*tensors)
        return Sites(gm, tmp_path)

    return run
