"""nkilib's kernels behind the ops, against the ops' references.

`Documented` stands for the library: it takes exactly the layouts of AWS's pages and computes in float32, so layouts are checked
without the library. With `--nkilib=PATH` the real sources run in the emulator.
"""

from __future__ import annotations

import sys

import pytest
import torch
from fluxrewrite.kernels.nkilib import PROVIDER, adapters, checkout, limits
from fluxrewrite.kernels.toolchain import Emulator

import fluxrewrite
from fluxrewrite.errors import InputError
from fluxrewrite.kernel import load_kernels
from fluxrewrite.provider.registry import implementations
from fluxrewrite.rewrite.selection import Selection

BF16 = torch.bfloat16
OPS = load_kernels()


class Documented:
    """The library's three kernels by their documentation; `calls` counts them."""

    def __init__(self):
        self.calls = 0

    def run(self, entry, *arguments, cores=1, **options):
        assert all(a.is_contiguous() for a in arguments if isinstance(a, torch.Tensor))
        self.calls += 1
        return getattr(self, entry.rpartition(":")[2])(*arguments, **options)

    def RoPE(self, x, cos, sin, lnc_shard, contiguous_layout):
        size, batch, _, positions = x.shape
        assert cos.shape == sin.shape == (size // 2, batch, positions)
        assert lnc_shard is False
        first, second = x.float().chunk(2) if contiguous_layout else (x.float()[0::2], x.float()[1::2])
        cos, sin = cos.float().unsqueeze(2), sin.float().unsqueeze(2)
        parts = (first * cos - second * sin, second * cos + first * sin)
        out = torch.cat(parts) if contiguous_layout else torch.stack(parts, 1).flatten(0, 1)
        return out.to(x.dtype)

    def qkv(self, x, weights, bias=None):
        assert x.dim() == 3
        assert weights.shape[0] == x.shape[2]
        assert bias is None or bias.shape == (1, weights.shape[1])
        return (x.float() @ weights.float() + (0 if bias is None else bias.float())).to(x.dtype)

    def attention_cte(self, q, k, v, scale, causal_mask, tp_q, tp_k, tp_out):
        q, k = (t.float() if turned else t.float().transpose(1, 2) for t, turned in ((q, tp_q), (k, tp_k)))
        assert not tp_out
        assert q.shape[-1] == k.shape[-1] == v.shape[-1]
        k, v = (t.repeat_interleave(q.shape[0] // t.shape[0], 0) for t in (k, v.float()))
        scores = scale * q @ k.transpose(1, 2)
        if causal_mask:
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
        return (scores.softmax(-1) @ v).to(BF16)


@pytest.fixture
def documented(tmp_path):
    """The stand-in, with an empty package of the library's name on the path."""
    package = tmp_path / "src" / "nkilib_src" / "nkilib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    with checkout(tmp_path):
        yield Documented()


def rope(batch=1, heads=6, positions=768, size=128, table="half", axis=2, tables_batch=None, **kept):
    """Arguments of the op but for `interleaved`; tables with one value a pair, or with each twice ("neighbours", "halves")."""
    shape = (batch, heads, positions, size) if axis == 2 else (batch, positions, heads, size)
    angles = torch.rand(*(tables_batch or ()), positions, size // 2) * 6
    if table != "half":
        angles = angles.repeat_interleave(2, -1) if table == "neighbours" else torch.cat((angles, angles), -1)
    return torch.randn(shape, dtype=BF16), angles.cos(), angles.sin(), table != "halves", axis, *kept.values()


def linear(rows, hidden):
    return torch.randn(rows, hidden, dtype=BF16) / hidden**0.5


def qkv(tokens, hidden, widths, biases=(False, False, False)):
    weights = list(linear(sum(widths), hidden).split(widths))
    given = [torch.randn(w, dtype=BF16) if b else None for w, b in zip(widths, biases, strict=True)]
    pieces = [n for i, width in enumerate(widths) for n in (i, 0, width)]
    return torch.randn(*tokens, hidden, dtype=BF16), weights, given, pieces


def packed_qkv(tokens, hidden, widths, bias=False):
    starts = [sum(widths[:i]) for i in range(len(widths))]
    pieces = [n for piece in zip(starts, widths, strict=True) for n in (0, *piece)]
    given = torch.randn(sum(widths), dtype=BF16) if bias else None
    return torch.randn(*tokens, hidden, dtype=BF16), [linear(sum(widths), hidden)], [given], pieces


def attention(batch, heads, queries, keys=None, size=64, kv_heads=None, layout="bhsd", value_size=None, **options):
    def make(n, length, width):
        shape = (batch, n, length, width) if layout == "bhsd" else (batch, length, n, width)
        return torch.randn(shape, dtype=BF16)

    tensors = (
        make(heads, queries, size),
        make(kv_heads or heads, keys or queries, size),
        make(kv_heads or heads, keys or queries, value_size or size),
    )
    given = {"mask": None, "scale": None, "is_causal": False, "layout": layout, "out_layout": "bhsd", **options}
    return *tensors, *given.values()


def turned_key():
    q, _, v, *rest = attention(1, 2, 100, 130)
    return q, torch.randn(1, 2, 64, 130, dtype=BF16).transpose(2, 3), v, *rest


CASES = {
    "interleaved": lambda: ("rope", rope(table="neighbours")),
    "interleaved-24-heads": lambda: ("rope", rope(heads=24, table="neighbours")),
    "interleaved-half-width": lambda: ("rope", rope(axis=1)),
    "rotate-half": lambda: ("rope", rope(table="halves", axis=1)),
    "rotate-half-24-heads": lambda: ("rope", rope(heads=24, table="halves")),
    "size-64": lambda: ("rope", rope(heads=2, positions=36, size=64, axis=1)),
    "table-1": lambda: ("rope", rope(heads=2, positions=36, tables_batch=(1,))),
    "batch-tables": lambda: ("rope", rope(batch=2, heads=3, positions=40, tables_batch=(2,), table="halves", axis=1)),
    "batch-in-groups": lambda: ("rope", rope(batch=2, heads=24, positions=768, tables_batch=(2,), table="neighbours")),
    "float32-out": lambda: ("rope", rope(heads=2, positions=40, out_dtype=torch.float32)),
    "three-axes": lambda: ("rope", (torch.randn(2, 40, 64, dtype=BF16), *torch.randn(2, 40, 32), False, 1)),
    "strides": lambda: ("rope", (torch.randn(1, 36, 2, 64, dtype=BF16).transpose(1, 2), *torch.randn(2, 36, 32), True, 2)),
    "qkv-2304": lambda: ("qkv", qkv((1, 768), 512, (768, 768, 768))),
    "qkv-2304-bias": lambda: ("qkv", qkv((1, 256), 512, (768, 768, 768), (True, True, True))),
    "qkv-batch": lambda: ("qkv", qkv((2, 80), 256, (256, 128, 128), (False, True, False))),
    "qkv-few-tokens": lambda: ("qkv", qkv((1, 36), 128, (128, 128, 128), (True, False, True))),
    "qkv-tokens-only": lambda: ("qkv", qkv((100,), 128, (128, 64, 64))),
    "qkv-packed": lambda: ("qkv", packed_qkv((1, 100), 128, (128, 64, 64))),
    "qkv-packed-rest": lambda: ("qkv", packed_qkv((2, 80), 128, (128, 64, 64, 200, 24), bias=True)),
    "bhsd": lambda: ("attention", attention(1, 2, 256, size=128)),
    "causal": lambda: ("attention", attention(1, 2, 300, is_causal=True)),
    "bshd": lambda: ("attention", attention(2, 2, 130, layout="bshd", out_layout="bshd")),
    "bshd-causal": lambda: ("attention", attention(2, 2, 130, layout="bshd", out_layout="bshd", is_causal=True)),
    "mixed-layouts": lambda: ("attention", attention(1, 2, 130, layout="bshd")),
    "grouped": lambda: ("attention", attention(2, 4, 130, 200, kv_heads=2)),
    "cross-longer": lambda: ("attention", attention(1, 2, 130, 300, is_causal=True)),
    "cross-shorter": lambda: ("attention", attention(1, 2, 300, 130, is_causal=True)),
    "scale": lambda: ("attention", attention(1, 2, 130, scale=0.3)),
    "narrow-value": lambda: ("attention", attention(1, 2, 130, value_size=32)),
    "wide-value": lambda: ("attention", attention(1, 2, 130, size=40, value_size=64)),
    "turned-key": lambda: ("attention", turned_key()),
}  # fmt: skip


def assert_like_the_reference(name, arguments, found, error):
    expected = OPS[name].op(*arguments)
    for a, b in zip(*((t if isinstance(t, (tuple, list)) else (t,)) for t in (expected, found)), strict=True):
        assert (a.shape, a.dtype, b.is_contiguous()) == (b.shape, b.dtype, True)
        a, b = a.double().flatten(), b.double().flatten()
        assert (a - b).norm() <= error * a.norm()
        assert torch.cosine_similarity(a, b, dim=0) >= 0.9999


@pytest.mark.parametrize("version", ["2.29", "2.32"])
@pytest.mark.parametrize("case", CASES)
def test_layouts(documented, case, version):
    name, arguments = CASES[case]()
    found = implementations(f"nkilib@{version}")[name].launch(documented, *arguments)
    assert_like_the_reference(name, arguments, found, 5e-3)


@pytest.mark.parametrize("case", CASES)
def test_numbers_of_the_real_sources(nkilib, case):
    name, arguments = CASES[case]()
    found = implementations("nkilib@2.29")[name].launch("emulate", *arguments)
    assert_like_the_reference(name, arguments, found, 1e-2)


@pytest.mark.parametrize(
    ("tiled", "batch", "heads", "calls"),
    [(True, 2, 24, 1), (False, 1, 6, 1), (False, 1, 24, 2), (False, 2, 24, 4), (False, 2, 6, 1)],
)
def test_rope_is_called_in_groups_that_fit(documented, tiled, batch, heads, calls):
    adapters.rope(tiled, documented, *rope(batch=batch, heads=heads))
    assert documented.calls == calls


def test_one_group_more_would_not_fit():
    """The working set that groups are made by is that of the real sources: more is refused by the emulator."""
    heads = max(n for n in range(99) if limits.rope_bytes(n, 768, 2) <= limits.SBUF_BYTES)
    assert heads == 18
    assert limits.rope_bytes(24, 768, 2) > 224 * 1024


def test_the_real_rope_does_not_fit_without_groups(nkilib):
    with pytest.raises(Exception, match="sbuf_capacity"):
        adapters.rope(True, "emulate", *rope(heads=24))


def test_no_copies_where_memory_is_right(documented):
    seen = []
    documented.attention_cte = lambda q, k, v, **options: seen.extend((q, k, v, options)) or q
    q, k, v, *rest = turned_key()
    adapters.attention(documented, q, k, v, *rest)
    assert [t.data_ptr() for t in seen[:3]] == [t.data_ptr() for t in (q, k, v)]
    assert (seen[3]["tp_q"], seen[3]["tp_k"]) == (True, False)


def test_tables_of_two_values_a_pair_are_refused(documented):
    x, cos, sin, *rest = rope(heads=2, positions=40, table="neighbours")
    cos[3, 4] += 1
    with pytest.raises(InputError, match="two values for one pair; use provider builtin"):
        adapters.rope(True, documented, x, cos, sin, *rest)


def test_masks_are_refused(documented):
    with pytest.raises(InputError, match="takes no mask; use provider builtin"):
        adapters.attention(documented, *attention(1, 2, 40, mask=torch.ones(40, 40, dtype=torch.bool)))


def test_without_the_library_it_is_said_early(monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "nkilib" not in p])
    remedy = r"execution='emulate' with provider nkilib needs nkilib, AWS's NKI library.*src/nkilib_src of a checkout"
    with pytest.raises(InputError, match=remedy):
        Selection.of(None, "nkilib@2.29", "emulate")
    with pytest.raises(InputError, match=remedy):
        PROVIDER.check("emulate")
    with pytest.raises(InputError, match=remedy):
        torch.ops.fluxrewrite.attention(*attention(1, 2, 40), "emulate", "nkilib")
    assert Selection.of(None, "nkilib@2.29").provider == "nkilib@2.29"


def test_with_the_library_the_check_passes(documented):
    PROVIDER.check("emulate")
    assert Selection.of(None, "nkilib@2.29", "emulate").kernels["rope"].execution == "emulate"


def test_on_a_device_its_packages_are_needed_first(documented):
    with pytest.raises(InputError, match="torch_neuronx and nki"):
        PROVIDER.check("device")


def test_checkout_without_the_library(tmp_path):
    with (
        pytest.raises(InputError, match=r"no nkilib there; give a checkout of .* with src/nkilib_src/nkilib"),
        checkout(tmp_path),
    ):
        pass  # fmt: skip


def _library(path, folder, text):
    package = path / "src" / folder / "nkilib" / "core" / "qkv"
    package.mkdir(parents=True)
    for parent in (package.parent.parent, package.parent, package):
        (parent / "__init__.py").write_text("")
    (package / "qkv.py").write_text(f"import nki\ndef qkv(x, weights): return x.reshape(1)\nVERSION = {text!r}\n")
    return path


@pytest.mark.parametrize("folder", ["nkilib_src", "nkilib_standalone"])
def test_checkouts_do_not_mix(tmp_path, folder):
    """Two checkouts in one process: each has its own kernel, and what was imported before comes back."""
    from fluxrewrite.kernels import toolchain

    paths = [_library(tmp_path / n, folder, n) for n in ("one", "two")]
    before, entry = list(sys.path), "nkilib.core.qkv.qkv:qkv"
    marker = sys.modules["nkilib"] = type(sys)("nkilib")
    try:
        kernels = []
        for path in (*paths, paths[0]):
            with checkout(path) as found:
                assert found == path / "src" / folder
                kernels.append(toolchain._emulated(entry))
            assert sys.modules["nkilib"] is marker
    finally:
        del sys.modules["nkilib"]
    assert [k.__globals__["VERSION"] for k in kernels] == ["one", "two", "one"]
    assert kernels[0] is kernels[2]
    assert sys.path == before
    assert not [n for n in sys.modules if n.startswith("nkilib.")]


def test_the_repository_installed_by_its_own_name(documented, tmp_path, monkeypatch):
    """`pip install` of the repository makes `nkilib_src.nkilib`; it is found where there is no `nkilib`."""
    source = tmp_path / "src"
    (source / "nkilib_src" / "__init__.py").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(source), *(p for p in sys.path if "nkilib" not in p)])
        seen = []
        documented.run = lambda entry, q, *_, **__: seen.append(entry) or q
        adapters.attention(documented, *attention(1, 2, 40))
    sys.modules.pop("nkilib_src", None)
    assert seen == ["nkilib_src.nkilib.core.attention.attention_cte:attention_cte"]


@pytest.mark.parametrize("tokens", [(12, 24), (100, 150)], ids=["few-tokens", "many-tokens"])
def test_flux2_with_the_real_sources(nkilib, flux2, tokens):
    """End to end in bfloat16; qkv takes its kernel for few tokens (up to 96) or the one for many."""
    model, inputs = flux2(BF16)
    for (name, ids), n in zip(
        (("encoder_hidden_states", "txt_ids"), ("hidden_states", "img_ids")), tokens, strict=True
    ):
        inputs[name] = torch.randn(1, n, inputs[name].shape[-1], dtype=BF16)
        inputs[ids] = torch.randint(0, 9, (1, n, 4)).float()
    backend = fluxrewrite.backend(
        "eager", "qkv,rope,attention", strict=True, provider="nkilib@2.29", execution="emulate"
    )
    with torch.no_grad():
        a = model(**inputs)[0].double().flatten()
        b = torch.compile(model, backend=backend)(**inputs)[0].double().flatten()
    assert (a - b).norm() <= 1e-2 * a.norm()
    assert torch.cosine_similarity(a, b, dim=0) >= 0.9999
    (report,) = backend.reports
    taken = {k: (s.found, s.rewritten) for k, s in report.summary.kinds.items()}
    assert taken == {"attention": (4, 4), "qkv": (6, 6), "rope": (8, 8)}
    assert {s.kernel.provider for s in report.sites} == {"nkilib@2.29"}


def test_the_emulator_as_a_toolchain(nkilib):
    arguments = attention(1, 2, 130)
    assert_like_the_reference("attention", arguments, adapters.attention(Emulator(), *arguments), 1e-2)
