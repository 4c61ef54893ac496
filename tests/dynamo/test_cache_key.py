"""What the key of compiled artifacts depends on, and what it does not."""

import sys
import uuid
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import fluxrewrite
from fluxrewrite.dynamo.cache_key import cache_key
from fluxrewrite.fusion.boundary.target import Target
from fluxrewrite.kernel import Limit
from fluxrewrite.provider import registry
from fluxrewrite.provider.digests import NO_SOURCE, folder_digest, function_digest, kernel_text, module_digest
from fluxrewrite.rewrite.selection import Selection


def inner(gm, inputs):
    return gm.forward


def key(selection=None, policy="all", target=None, backend=inner, options=None):
    return cache_key(selection or Selection.of(("rope", "attention")), policy, target, backend, options)


def limited():
    selection = Selection.of(("rope", "attention"))
    rope = selection.kernels["rope"]
    rope = replace(rope, limits=(*rope.limits, Limit("heads", maximum=3)))
    return replace(selection, kernels={**selection.kernels, "rope": rope})


def test_it_is_a_uuid_and_the_same_every_time():
    assert str(uuid.UUID(key())) == key()
    assert fluxrewrite.backend(inner=inner).cache_key == fluxrewrite.backend(inner=inner).cache_key


CHANGES = {
    "kernels": lambda: key(Selection.of("rope")),
    "form": lambda: key(Selection.of(("rope:complex", "attention"))),
    "provider": lambda: key(Selection.of(("rope", "attention"), "nkilib")),
    "version": lambda: key(Selection.of(("rope", "attention"), "nkilib@2.27")),
    "execution": lambda: key(Selection.of(("rope", "attention"), execution="emulate")),
    "limit": lambda: key(limited()),
    "policy": lambda: key(policy="auto"),
    "callable": lambda: key(policy=lambda site: True),
    "device": lambda: key(target=Target.of("trn2")),
    "other device": lambda: key(target=Target.of("trn3")),
    "regime": lambda: key(target=Target.of("trn2", "lazy")),
    "compiler": lambda: key(target=Target.of("trn2", compiler="xla")),
    "inner": lambda: key(backend=torch._dynamo.lookup_backend("inductor")),
    "options": lambda: key(options={"max_autotune": True}),
}


def test_each_option_makes_another_key():
    keys = {"as it is": key(), **{name: change() for name, change in CHANGES.items()}}
    assert len(set(keys.values())) == len(keys), keys


def test_versions_make_another_key(monkeypatch):
    before = key()
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert key() != before


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A kernel in a package of its own, which imports a helper."""
    folder = tmp_path / "keyed_kernels"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("def inner(): return 1\n")
    (folder / "deep.py").write_text("from . import helper\n")
    (folder / "kernel.py").write_text("import os\nfrom keyed_kernels.deep import helper\ndef kernel(): return helper\n")
    (folder / "other.py").write_text("import keyed_kernels.kernel\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [n for n in sys.modules if n.startswith("keyed_kernels")]:
        del sys.modules[name]


@pytest.mark.parametrize("file", ["kernel.py", "helper.py", "deep.py"])
def test_editing_a_kernels_source_makes_another_key(package, monkeypatch, file):
    real = registry.implementations

    def implementations(text):
        found = dict(real(text))
        found["rope"] = replace(found["rope"], entry="keyed_kernels.kernel:kernel")
        return found

    monkeypatch.setattr("fluxrewrite.provider.digests.implementations", implementations)
    selection = Selection.of(("rope", "attention"), execution="emulate")
    before, text = key(selection), kernel_text(selection.kernels["rope"])
    assert key(selection) == before
    (package / "other.py").write_text("# not part of it\n")
    assert key(selection) == before
    with (package / file).open("a") as source:
        source.write("# edited\n")
    assert key(selection) != before
    assert kernel_text(selection.kernels["rope"]) != text, "times that were measured with the old source do not count"


def test_a_module_that_cannot_be_imported_has_its_sources_still(package):
    (package / "__init__.py").write_text("import no_such_package_here\n")
    before = module_digest("keyed_kernels.kernel")
    assert before != NO_SOURCE
    (package / "helper.py").write_text("def inner(): return 2\n")
    assert module_digest("keyed_kernels.kernel") != before


def test_what_has_no_source(package):
    assert module_digest("no_such_package_here.kernel") == NO_SOURCE
    assert module_digest("keyed_kernels.missing") == NO_SOURCE
    assert function_digest(len) == "len"
    (package / "kernel.py").write_text("def broken(:\n")
    assert module_digest("keyed_kernels.kernel") != NO_SOURCE
    assert folder_digest(package) != folder_digest(package.parent / "nothing")


def test_the_kernels_of_this_repository_know_what_they_import():
    """The loop over keys is a module of its own; two kernels are built on it."""
    assert module_digest("fluxrewrite.kernels.nki.attention") != module_digest("fluxrewrite.kernels.nki.flash")
    from fluxrewrite.provider.digests import _file, _imports

    path = _file("fluxrewrite.kernels.nki.attention")
    assert "fluxrewrite.kernels.nki.flash" in set(_imports(path, "fluxrewrite.kernels.nki.attention"))


def test_the_inner_backend_compiles_under_the_key():
    seen = []

    def tagged(gm, inputs):
        seen.append(torch.compiler.config.cache_key_tag)
        return gm.forward

    def renamed(alpha):
        return F.scaled_dot_product_attention(alpha, alpha, alpha)

    backend = fluxrewrite.backend(inner=tagged, kernels="attention")
    x = torch.randn(1, 2, 8, 64)
    with torch.no_grad():
        for fn in (renamed, lambda beta: F.scaled_dot_product_attention(beta, beta, beta)):
            torch.compile(fn, backend=backend)(x)
        with torch.compiler.config.patch(cache_key_tag="mine"):
            torch.compile(lambda c: renamed(c) * 2, backend=backend)(x)
    assert seen == [f"fluxrewrite {backend.cache_key}"] * 2 + [f"mine fluxrewrite {backend.cache_key}"]
    assert torch.compiler.config.cache_key_tag == ""
