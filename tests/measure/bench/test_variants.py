"""Variants by name."""

import pytest

from fluxrewrite.errors import InputError
from fluxrewrite.measure.bench import DEFAULT_VARIANTS
from fluxrewrite.measure.bench.variants import backend_of, parse_variants


def parsed(text):
    return [(c.name, c.policy, c.kernels) for c in parse_variants(text)]


def test_names_policies_and_kernels():
    assert parsed("vanilla, eager,auto,measure,all,none") == [
        ("vanilla", None, ()),
        ("eager", None, ()),
        *((p, p, ()) for p in ("auto", "measure", "all", "none")),
    ]
    assert parsed("qkv:triple,qkv+attention") == [
        ("qkv:triple", "all", ("qkv:triple",)),
        ("qkv+attention", "all", ("qkv", "attention")),
    ]


def test_default_is_the_experiments_table():
    assert [c.name for c in parse_variants(DEFAULT_VARIANTS)] == [
        "vanilla", "qkv", "attention", "qkv+attention", "norm_rope_attention", "auto",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vanilla,flash", "unknown variant 'flash' .*known: vanilla, eager, auto, measure, all, none, and kernels"),
        ("qkv:double", "unknown variant 'qkv:double' .*unknown form 'double'.*triple"),
        ("qkv+", r"unknown variant 'qkv\+'"),
        ("vanilla+qkv", r"unknown variant 'vanilla\+qkv'"),
        ("qkv,qkv", "'qkv' is listed twice"),
        (" , ", "names no variant; known: vanilla"),
    ],
)
def test_unknown_and_repeated_variants(text, message):
    with pytest.raises(InputError, match=message):
        parse_variants(text)


def test_the_backend_of_a_variant(setup):
    vanilla, both, auto = parse_variants("vanilla,qkv+attention,auto")
    assert backend_of(vanilla, setup()) is None
    made = backend_of(both, setup(provider="builtin"))
    assert made is not None
    assert (made.reporting.strict, made.settings.policy, made.inner_name) == (True, "all", "eager")
    selection = made.settings.selection
    assert (selection.names(), selection.provider) == (("attention", "qkv"), "builtin")
    predicted = backend_of(auto, setup(profile="trn2"))
    assert predicted is not None
    assert predicted.settings.target is not None
    assert (predicted.settings.policy, predicted.settings.target.device.name) == ("auto", "trn2")
    with pytest.raises(InputError, match="unknown provider 'nki'"):
        backend_of(both, setup(provider="nki"))
