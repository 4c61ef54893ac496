"""nkilib's limits by version: each fires, FLUX.2-klein-4B as it is, and errors."""

import pytest
import torch
from fluxrewrite.kernels.nkilib import limits

from fluxrewrite.errors import InputError
from fluxrewrite.graph import GraphView
from fluxrewrite.kernel import load_kernels
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.provider.registry import provided
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Code

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FITS = {
    "rope": {"batch": 1, "sequence": 512, "heads": 16, "head_size": 128, "table_dtype": "float32", "table_batch": 1},
    "qkv": {"batch": 1, "sequence": 768, "hidden": 3072, "columns": 2304},
    "attention": {
        "batch": 1, "heads": 6, "kv_heads": 6, "sequence": 768, "kv_sequence": 768, "head_size": 128, "mask": "none", "scale": None,
    },
}  # fmt: skip
OLD, UNTILED, NEW = ("2.27",), ("2.28", "2.29", "2.30", "2.31"), ("2.32",)
BREAKS = [
    ("rope", limits.VERSIONS, {"head_size": 96}, BF16, "head_size 96: the kernel takes head_size in {64, 128}"),
    ("rope", OLD, {"sequence": 513}, BF16, "sequence 513: the kernel takes sequence <= 512"),
    ("rope", OLD, {"heads": 17}, BF16, "heads 17: the kernel takes heads <= 16"),
    ("rope", OLD, {"batch": 65}, BF16, "batch 65: the kernel takes batch <= 64"),
    ("rope", UNTILED, {"heads": 145}, BF16, "batch*heads*sequence 74240: the kernel takes batch*heads*sequence"),
    ("rope", UNTILED, {"heads": 73}, FP32, "batch*heads*sequence 37376: the kernel takes batch*heads*sequence"),
    ("rope", UNTILED, {"heads": 1, "sequence": 10923}, FP16, "(bfloat16 float16) <= 10922"),
    ("rope", UNTILED, {"heads": 1, "sequence": 5462}, FP32, "sequence 5462: the kernel takes sequence (float32) <= 5461"),
    ("rope", UNTILED, {"sequence": "s0"}, BF16, "batch*heads*sequence 1*16*s0"),
    ("rope", OLD, {"sequence": "s0"}, BF16, "sequence s0: the kernel takes sequence <= 512"),
    ("qkv", limits.VERSIONS, {}, FP32, "dtype float32: the kernel takes dtype in {bfloat16, float16}"),
    ("qkv", limits.VERSIONS, {"hidden": 3000}, BF16, "hidden 3000: the kernel takes hidden multiple of 128"),
    ("qkv", limits.VERSIONS, {"hidden": 24704}, BF16, "hidden 24704: the kernel takes hidden <= 24576"),
    ("qkv", limits.VERSIONS, {"columns": 4097}, BF16, "columns 4097: the kernel takes columns <= 4096"),
    ("attention", limits.VERSIONS, {}, FP32, "dtype float32: the kernel takes dtype in {bfloat16}"),
    ("attention", limits.VERSIONS, {}, FP16, "dtype float16: the kernel takes dtype in {bfloat16}"),
    ("attention", limits.VERSIONS, {"mask": "bool"}, BF16, "mask bool: the kernel takes mask in {none}"),
    ("attention", limits.VERSIONS, {"mask": "additive"}, BF16, "mask additive: the kernel takes mask in {none}"),
    ("attention", limits.VERSIONS, {"head_size": 129}, BF16, "head_size 129: the kernel takes head_size <= 128"),
    ("attention", limits.VERSIONS, {"value_size": 129}, BF16, "value_size 129: the kernel takes value_size <= 128"),
    ("attention", OLD, {"heads": 17}, BF16, "batch*heads 17: the kernel takes batch*heads <= 16"),
    ("attention", OLD, {"sequence": 32769}, BF16, "sequence 32769: the kernel takes sequence <= 32768"),
    ("attention", OLD, {"kv_sequence": 32769}, BF16, "kv_sequence 32769: the kernel takes kv_sequence <= 32768"),
    ("attention", OLD, {"heads": 3, "sequence": 32768, "kv_sequence": 32768}, BF16, "<= 2147483648"),
    ("attention", ("2.28",), {"heads": 33}, BF16, "batch*heads 33: the kernel takes batch*heads <= 32"),
    ("attention", ("2.28",), {"heads": 33, "sequence": 36864, "kv_sequence": 36864}, BF16, "<= 43486543872"),
    ("attention", ("2.28",), {"sequence": 36865}, BF16, "sequence 36865: the kernel takes sequence <= 36864"),
    ("attention", ("2.28",), {"kv_sequence": 36865}, BF16, "kv_sequence 36865: the kernel takes kv_sequence <= 36864"),
    ("attention", (*UNTILED[1:], *NEW), {"batch": 2, "heads": 257}, BF16, "batch*heads 514: the kernel takes batch*heads <= 512"),
    ("attention", (*UNTILED[1:], *NEW), {"sequence": 131073}, BF16, "sequence 131073: the kernel takes sequence <= 131072"),
    ("attention", (*UNTILED[1:], *NEW), {"kv_sequence": 131073}, BF16, "kv_sequence <= 131072"),
    ("attention", limits.VERSIONS, {"sequence": "s0"}, BF16, "sequence s0: the kernel takes"),
    ("attention", limits.VERSIONS, {"batch": "s1"}, BF16, "batch*heads s1*6: the kernel takes"),
]  # fmt: skip


def refusals(name, version, sizes, dtype):
    kernel = provided(load_kernels().values(), f"nkilib@{version}", "reference")[name]
    return kernel.refusals({**FITS[name], **sizes}, dtype)


@pytest.mark.parametrize("version", limits.VERSIONS)
@pytest.mark.parametrize("name", FITS)
def test_what_fits_every_version(name, version):
    assert refusals(name, version, {}, BF16) == ()


@pytest.mark.parametrize(("name", "versions", "sizes", "dtype", "message"), BREAKS, ids=lambda v: str(v)[:40])
def test_every_limit_fires_in_its_versions_and_in_no_other(name, versions, sizes, dtype, message):
    for version in limits.VERSIONS:
        found = refusals(name, version, sizes, dtype)
        assert any(message in r.message for r in found) == (version in versions), (version, found)
        assert all(r.code == Code.LIMIT for r in found)


def test_every_limit_of_every_version_has_a_case_that_breaks_it():
    fired = {}
    for name, versions, sizes, dtype, _ in BREAKS:
        for version in versions:
            known = {**FITS[name], **sizes, "dtype": str(dtype).removeprefix("torch.")}
            broken = [limit for limit in limits.LIMITS[name][version] if limit.check(known) is not None]
            fired.setdefault((name, version), set()).update(broken)
    for name, by_version in limits.LIMITS.items():
        for version, all_limits in by_version.items():
            assert {str(x) for x in all_limits} == {str(x) for x in fired[name, version]}


@pytest.mark.parametrize("version", limits.VERSIONS)
def test_every_limit_says_where_it_is_from(version):
    for by_version in limits.LIMITS.values():
        for limit in by_version[version]:
            assert "source" in limit.source or f"docs {version}" in limit.source


def test_newer_rope_has_no_limit_on_sizes():
    assert refusals("rope", "2.32", {"sequence": 10**6, "heads": 128, "batch": 512}, BF16) == ()


def test_the_newest_version_is_the_default():
    kernels = [provided(load_kernels().values(), text, "reference") for text in ("nkilib", "nkilib@2.32")]
    assert kernels[0]["rope"].limits == kernels[1]["rope"].limits
    assert set(kernels[0]) == {"rope", "qkv", "attention"}


def test_unknown_version():
    with pytest.raises(
        InputError, match=r"unknown version '2.26' of provider 'nkilib'; known: nkilib@2.27, .*nkilib@2.32"
    ):
        Selection.of(None, "nkilib@2.26")


@pytest.fixture
def klein(capture_preset):
    """`klein(tp)`: the graph of one of `tp` ranks."""
    pytest.importorskip("diffusers")
    shapes = Shapes(256, 512, 1)
    spec = find_model("flux2-klein-4b")
    return lambda tp: GraphView(capture_preset(spec, shapes, torch.bfloat16, tp=tp).graphs[0].graph)


@pytest.fixture
def decide(klein):
    """`decide(kind, provider, tp)`: the decisions on klein-4B's sites of that kind."""

    def run(kind, provider, tp=1, kernels=None):
        plan = make_plan(klein(tp), Selection.of(kernels, provider))
        return [d for d in plan.decisions if d.finding.kind == kind]

    return run


def messages(decision):
    return " ".join(r.message for r in decision.reasons)


def test_klein_rope_is_too_long_for_227(decide):
    found = decide("rope", "nkilib@2.27")
    assert len(found) == 50
    for d in found:
        assert d.status == "ineligible"
        assert "sequence 768: the kernel takes sequence <= 512" in messages(d)


@pytest.mark.parametrize("version", limits.VERSIONS[1:])
def test_klein_rope_fits_later_versions(decide, version):
    found = decide("rope", f"nkilib@{version}")
    assert [(d.status, d.choice) for d in found] == [("eligible", "kernel")] * 50


@pytest.mark.parametrize("version", limits.VERSIONS)
def test_klein_qkv_is_too_wide_for_one_rank_and_fits_four(decide, version):
    one, four = decide("qkv", f"nkilib@{version}"), decide("qkv", f"nkilib@{version}", tp=4)
    assert len(one) == len(four) == 30
    assert all("columns 9216: the kernel takes columns <= 4096" in messages(d) for d in one)
    assert all((d.status, d.choice) == ("eligible", "kernel") for d in four)


def test_klein_attention_is_taken_where_nkilib_has_no_larger_kernel(decide):
    larger = decide("norm_rope_attention", "nkilib@2.29")
    assert len(larger) == 25
    assert {r.code for d in larger for r in d.reasons} == {Code.NO_KERNEL}
    assert [d.choice for d in decide("attention", "nkilib@2.29")] == ["kernel"] * 25
    assert {d.choice for d in decide("attention", "builtin")} == {"keep"}  # part of norm_rope_attention there
    tested = decide("attention", "nkilib@2.27")
    assert all("batch*heads 24: the kernel takes batch*heads <= 16" in messages(d) for d in tested)
    assert [d.choice for d in decide("attention", "nkilib@2.27", tp=4)] == ["kernel"] * 25
