import math
from itertools import product

import pytest
import torch
from fluxrewrite.kernels.harness import cases as matrix
from fluxrewrite.kernels.harness.cases import CheckCase, cases, limits_of, run_case, simulators
from fluxrewrite.kernels.toolchain import Emulator

from fluxrewrite.errors import InputError
from fluxrewrite.kernel import Limit
from fluxrewrite.provider import Implementation
from fluxrewrite.provider.registry import implementations

ROPE = CheckCase("rope", "bf16", {"sequence": 8, "heads": 2, "head_size": 64})
EMULATOR = simulators("emulator")


def broken(change):
    """The builtin rope, its result changed."""
    rope = implementations("builtin")["rope"].launch
    return lambda execution, *arguments: change(rope(execution, *arguments))


def test_the_grid_is_covered():
    found = {
        (c.kernel, c.dtype, c.sizes.get("sequence"), c.sizes.get("head_size"), c.sizes.get("heads")) for c in cases()
    }
    grid = product(
        ("rope", "attention", "norm_rope_attention"),
        ("bf16", "fp32"),
        (1, 77, 128, 130, 512, 768, 1000, 1536),
        (64, 128),
        (1, 6, 24),
    )
    assert set(grid) <= found
    assert {
        ("qkv", d, s, None, None) for d in ("bf16", "fp32") for s in (1, 77, 128, 130, 512, 768, 1000, 1536)
    } <= found
    assert {c.sizes["hidden"] for c in cases() if c.kernel == "qkv"} == {768, 3072}
    forms = {(c.kernel, k, v) for c in cases() for k, v in c.sizes.items()}
    assert {("attention", "mask", 1), ("attention", "mask", 2), ("attention", "causal", 1)} <= forms
    assert {
        ("attention", "kv_heads", 1),
        ("qkv", "key", 256),
        ("qkv", "packed", 1),
        ("norm_rope_attention", "bounded", 1),
    } <= forms
    assert {("rope", "interleaved", i) for i in (0, 1)} <= forms


def test_names_are_unique_and_the_quick_part_has_every_group():
    names = [str(c) for c in cases()]
    assert len(set(names)) == len(names)
    groups = {(c.kernel, c.dtype, c.logits) for c in cases()}
    assert {(c.kernel, c.dtype, c.logits) for c in cases() if c.quick} == groups
    assert {c.cores for c in cases() if c.quick} == {1, 2}


def test_limits():
    assert limits_of(CheckCase("rope", "fp32", {})) == (1e-5, 0.9999)
    assert limits_of(CheckCase("rope", "bf16", {})) == (1e-2, 0.9999)
    assert limits_of(CheckCase("attention", "fp32", {}, 1e4)) == (2 * 2**-10, 0.9999)
    assert limits_of(CheckCase("attention", "bf16", {}, 1e4)) == (1e-2, 0.9999)
    assert limits_of(CheckCase("norm_rope_attention", "bf16", {}, 1e4)) == (pytest.approx(math.sqrt(0.02)), 0.99)


def test_a_right_kernel_passes_and_seeds_change_the_inputs():
    (first,), (again,), (other,) = (run_case(ROPE, EMULATOR, seed=s) for s in (0, 0, 1))
    assert first.passed
    assert first.simulator == "emulator"
    assert 0 < first.error < first.tolerance
    assert first.error == again.error != other.error


def test_two_cores_are_two_cores(provide):
    seen = []
    rope = implementations("builtin")["rope"].launch
    provide({"rope": lambda execution, *a: (seen.append(execution.cores), rope(execution, *a))[1]})
    run_case(CheckCase("rope", "bf16", ROPE.sizes, cores=2), EMULATOR, "mine")
    assert seen == [2]


def off_by(out):
    out[..., 3] *= 1.2
    return out


def constant(value):
    return lambda out: torch.full_like(out, value)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (off_by, ""),
        (lambda out: -out, ""),
        (constant(0.0), ""),
        (constant(math.nan), "not finite"),
        (constant(math.inf), "not finite"),
        (lambda out: out[:, :4], "shape (1, 4, 2, 64), expected (1, 8, 2, 64)"),
        (lambda out: out / torch.zeros(3), "RuntimeError"),
    ],
)
def test_planted_errors_fail(provide, change, note):
    provide({"rope": broken(change)})
    (result,) = run_case(ROPE, EMULATOR, "mine")
    assert not result.passed
    assert result.excess > 1
    assert note in result.note
    assert bool(result.note) == bool(note)


def test_what_the_device_refuses_fails_with_its_reason(provide):
    attention = implementations("builtin")["attention"].launch
    provide({"rope": lambda execution, x, *_: attention(execution, *[torch.zeros(1, 1, 4, 200)] * 3)})
    (result,) = run_case(ROPE, EMULATOR, "mine")
    assert not result.passed
    assert "EmulationError" in result.note


def test_zero_is_compared_with_zero():
    zero = torch.zeros(3)
    assert matrix._worst([zero], [zero.double()]) == (0.0, 1.0)
    assert matrix._worst([zero + 1], [zero.double()]) == (math.inf, 0.0)


def test_the_worst_output_counts():
    a = torch.ones(3)
    assert matrix._worst([a, 2 * a, a], [a.double()] * 3)[0] == pytest.approx(1.0)


def test_cases_beyond_the_limits_are_not_run(provide):
    limit = Limit("sequence", maximum=4, source="page 7")
    provide({"rope": Implementation(broken(constant(0.0)), (limit,), ""), "norm_rope_attention": lambda *a: None})
    (result,) = run_case(ROPE, EMULATOR, "mine")
    assert result.outside
    assert result.passed
    assert "page 7" in result.note
    bounded = CheckCase("norm_rope_attention", "bf16", {"sequence": 8, "heads": 1, "bounded": 1})
    (result,) = run_case(bounded, EMULATOR, "mine")
    assert result.outside
    assert "no such mode" in result.note


def test_what_an_adapter_cannot_express_is_outside(provide):
    def refuse(*_):
        raise InputError("no tables like these")

    provide({"rope": refuse})
    (result,) = run_case(ROPE, EMULATOR, "mine")
    assert result.outside
    assert result.note == "no tables like these"


def test_simulators_without_nki(monkeypatch):
    monkeypatch.setattr(matrix, "has_nki", lambda: False)
    assert list(simulators(None)) == list(simulators("emulator")) == ["emulator"]
    for choice in ("nki", "both"):
        with pytest.raises(InputError, match=f"--simulator {choice}: nki .* is not installed"):
            simulators(choice)
    with pytest.raises(InputError, match="unknown simulator 'other'; known: emulator, nki, both"):
        simulators("other")


def test_both_simulators_are_compared_with_each_other(monkeypatch):
    class Wrong(Emulator):
        def run(self, entry, *arguments, cores=1, **options):
            return super().run(entry, *arguments, cores=cores, **options) * 1.05

    monkeypatch.setattr(matrix, "has_nki", lambda: True)
    monkeypatch.setattr(matrix, "Simulator", lambda cores: Wrong(cores=cores))
    assert list(simulators(None)) == ["emulator", "nki"]
    assert list(simulators("nki")) == ["nki"]
    results = {r.simulator: r for r in run_case(ROPE, simulators("both"))}
    assert list(results) == ["emulator", "nki", "nki against emulator"]
    assert results["emulator"].passed
    assert not results["nki"].passed
    assert results["nki against emulator"].error == pytest.approx(0.05, rel=0.1)


@pytest.mark.slow
def test_matrix_on_two_cores():
    """A fifth of the full matrix; the tests of each NKI kernel have the rest."""
    for case in cases():
        if case.cores == 2:
            (result,) = run_case(case, EMULATOR)
            assert result.passed, result
