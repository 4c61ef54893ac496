import logging
from importlib.metadata import EntryPoint

import pytest
import torch

from fluxrewrite import kernel
from fluxrewrite.errors import InputError
from fluxrewrite.kernel import Kernel, Limit, load_kernels, load_plugins, plugin_names
from fluxrewrite.site import Code


@pytest.mark.parametrize(
    ("limit", "size", "fits"),
    [
        (Limit("n", maximum=4), 4, True),
        (Limit("n", maximum=4), 5, False),
        (Limit("n", multiple_of=2), 6, True),
        (Limit("n", multiple_of=2), 7, False),
        (Limit("n", one_of=(64, 128)), 64, True),
        (Limit("n", one_of=(64, 128)), 65, False),
        (Limit("n", maximum=4), "s0", False),
        (Limit("other", maximum=4), 99, True),
    ],
)
def test_limit(limit, size, fits):
    reason = limit.check({"n": size})
    assert (reason is None) == fits
    if reason is not None:
        assert reason.code == Code.LIMIT
        assert str(size) in reason.message


def test_limit_names_its_source():
    assert "page 7" in Limit("n", maximum=1, source="page 7").check({"n": 2}).message


def test_dtype_is_a_limit_like_any_other():
    k = Kernel("k", None, (Limit("dtype", one_of=("float32",)),), "")
    assert k.refusals({}, torch.float32) == ()
    assert "bfloat16" in k.refusals({}, torch.bfloat16)[0].message


def test_kernels_are_installed():
    found = load_kernels()
    assert sorted(found) == ["attention", "norm_rope_attention", "qkv", "rope"]
    assert all(k.provider == "reference" and k.limits and k.summary for k in found.values())


def test_unknown_name_lists_the_known():
    with pytest.raises(InputError, match="unknown kernel 'flash'; known: attention, norm_rope_attention, qkv, rope"):
        load_plugins("fluxrewrite.passes", ("flash",))


def test_a_package_that_is_not_installed_is_reported():
    for read in (load_plugins, plugin_names):
        with pytest.raises(InputError, match="not installed"):
            read("fluxrewrite.nothing")


def test_names_of_plugins_load_none(monkeypatch):
    entries = [EntryPoint("b", "no_such_module:x", "g"), EntryPoint("a", "", "g")]
    monkeypatch.setattr(kernel, "entry_points", lambda group: entries)
    assert plugin_names("g") == ("a", "b")


def test_broken_plugin_is_left_out_with_a_warning(monkeypatch, caplog):
    entries = [EntryPoint("good", "math:pi", "g"), EntryPoint("bad", "no_such_module:x", "g")]
    monkeypatch.setattr(kernel, "entry_points", lambda group: entries)
    with caplog.at_level(logging.WARNING):
        assert list(load_plugins("g")) == ["good"]
    assert "no_such_module" in caplog.text


def test_named_plugin_that_cannot_be_loaded_is_an_error(monkeypatch):
    monkeypatch.setattr(kernel, "entry_points", lambda group: [EntryPoint("bad", "no_such_module:x", "g")])
    with pytest.raises(InputError, match="'bad' cannot be loaded"):
        load_plugins("g", ("bad",))
