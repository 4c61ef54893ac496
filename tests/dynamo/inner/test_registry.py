"""An inner backend is what its record says, wherever it is asked for: one of a third party is used as those that ship."""

import json
import logging
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from decisions import decided_by

import fluxrewrite
from fluxrewrite.cli import main
from fluxrewrite.cost.runs import Setup, load_runs
from fluxrewrite.dynamo.inner import InnerBackend, default_inner, inner_backend, inner_backends, prepare
from fluxrewrite.dynamo.machine import machine_text
from fluxrewrite.errors import InputError
from fluxrewrite.kernel import plugin_names
from fluxrewrite.measure.bench import run as bench

X = torch.randn(1, 2, 16, 64)


def block(x):
    return F.scaled_dot_product_attention(x.exp(), x, x).relu()


def test_those_that_ship():
    assert {"inductor", "neuron", "openxla"} <= set(plugin_names("fluxrewrite.inner_backends"))
    fields = ("profile", "accelerator", "takes_lnc", "custom_calls")
    found = {n: tuple(getattr(inner_backend(n), f) for f in fields) for n in ("inductor", "neuron", "openxla", "eager")}
    assert found == {
        "inductor": ("cpu", None, False, False),
        "neuron": ("trn2", "neuron", True, False),
        "openxla": ("cpu", None, False, True),
        "eager": ("cpu", None, False, False),
    }
    assert inner_backend("neuron").default_execution() == "device"
    assert inner_backend("inductor").settings() == repr(torch._inductor.config.save_config_portable())


def test_a_name_that_nobody_registered_takes_every_graph_as_it_is(trace):
    plain = inner_backend("eager")
    assert (plain.default_execution(), plain.settings(), dict(plain.caches)) == ("reference", "", {})
    adapter = prepare("eager", "reference", None)
    gm = trace(block, x=X)
    assert adapter.ready(gm) is gm
    assert (adapter.eager_fallback(), adapter.fallback_warning, adapter.cache_key()) == (None, "", ())


def test_torch_compile(acme, caplog):
    reports = []
    backend = fluxrewrite.backend("acme", "attention", execution="reference", report=reports.append, strict=True)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "fluxrewrite"):
        found = torch.compile(block, backend=backend)(X)
    torch.testing.assert_close(found, block(X))
    (gm,) = acme.graphs
    targets = [n.target for n in gm.graph.nodes]
    assert torch.clamp_min in targets
    assert torch.ops.fluxrewrite.attention.default in targets
    assert (reports[0].effect.device, reports[0].model.eager_fallback) == ("trn3", True)
    assert [r.message for r in caplog.records] == ["fluxrewrite: acme may run it eagerly"]


def test_what_it_refuses_and_what_it_runs_by_default(acme):
    made = fluxrewrite.backend("acme", "attention")
    assert {k.execution for k in made.settings.selection.kernels.values()} == {"emulate"}
    with pytest.raises(InputError, match="inner='acme' has no device here"):
        prepare("acme", "device", None)
    with pytest.raises(InputError, match=r"execution='custom_call' .* needs inner='openxla'"):
        prepare("acme", "custom_call", None)
    with pytest.raises(InputError, match="lnc=2 is for inner='acme' or inner='neuron'; behind others"):
        prepare("eager", "reference", 2)
    with pytest.raises(InputError, match=r"lnc=3: .* 1 or 2"):
        prepare("acme", "reference", 3)
    assert prepare("acme", "reference", 2).cache_key() == ("tile 128", "lnc 2")


def test_its_accelerator_makes_it_the_default(acme, monkeypatch):
    kind = {"type": "cuda"}
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: type("D", (), kind) if kind else None)
    assert default_inner() == "inductor"
    kind["type"] = "mtia"
    assert default_inner() == "acme"
    monkeypatch.setattr(torch._dynamo, "list_backends", lambda exclude_tags=None: ["inductor"])
    assert default_inner() == "inductor"


def key(**options):
    return fluxrewrite.backend("acme", "attention", execution="reference", **options).cache_key


def test_the_key_of_a_compiled_artifact(acme, acme_folder, monkeypatch):
    before = key()
    assert key() == before
    with monkeypatch.context() as changed:
        changed.setitem(acme.TILE, "rows", 64)
        other = key()
    keys = [before, other, key(lnc=1), key(lnc=2), key(device="trn3")]
    with (acme_folder / "acme_inner" / "rules.py").open("a") as source:
        source.write("# edited: what `ready` imports\n")
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_measured_times_depend_on_its_settings(acme, monkeypatch):
    inner = acme.compile_graph
    before = machine_text(torch.device("cpu"), inner, "acme", None)
    assert machine_text(torch.device("cpu"), inner, "acme", None) == before
    monkeypatch.setitem(acme.SETTINGS, "level", 2)
    assert machine_text(torch.device("cpu"), inner, "acme", None) != before


BROKEN = """[fluxrewrite.inner_backends]
acme_gone = no_such_module_of_acme:BACKEND
acme_text = acme_inner:__name__
"""


def test_a_record_that_cannot_be_loaded(acme, acme_folder, caplog):
    (acme_folder / "broken-1.0.dist-info").mkdir()
    (acme_folder / "broken-1.0.dist-info" / "entry_points.txt").write_text(BROKEN)
    with pytest.raises(InputError, match=r"inner_backends 'acme_gone' cannot be loaded .*no_such_module_of_acme"):
        inner_backend("acme_gone")
    with pytest.raises(InputError, match=r"'acme_text' cannot be loaded \(TypeError: it is str, not an InnerBackend\)"):
        fluxrewrite.backend("acme_text")
    with caplog.at_level(logging.WARNING):
        found = inner_backends()
    assert "acme" in found
    assert not {"acme_gone", "acme_text"} & set(found)
    assert "no_such_module_of_acme" in caplog.text
    assert all(isinstance(b, InnerBackend) for b in found.values())


def test_evidence_is_filed_under_its_profile(acme):
    devices = {d: bench._profile_name(Setup(model="m", device=d)) for d in ("cpu", "cuda", "mtia:1", "xla")}
    assert devices == {"cpu": "cpu", "cuda": "cuda", "mtia:1": "trn3", "xla": "xla"}
    assert bench._profile_name(Setup(model="m", device="mtia", profile="trn1")) == "trn1"


BENCH = """
import torch
import torch.nn.functional as F


class Attend(torch.nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x.exp(), x, x).relu()


def attend():
    return Attend(), {"x": torch.randn(1, 2, 16, 64)}
"""


def test_bench(acme, acme_folder, tmp_path, monkeypatch, capsys):
    """Workers are processes of their own, which find the backend by its entry points."""
    (acme_folder / "acme_models.py").write_text(BENCH)
    monkeypatch.setenv("ACME_LOG", str(tmp_path / "log"))
    saved = tmp_path / "runs.json"
    args = ("--variants", "vanilla,attention", "--inner", "acme", "--dtype", "fp32", "--steps", "1", "--runs", "2")
    code = main(["bench", "acme_models:attend", *args, "--save", str(saved)])
    assert (code, capsys.readouterr().err) == (0, "")
    runs = load_runs(saved)
    assert (runs.setup.inner, runs.setup.execution, runs.setup.provider) == ("acme", "emulate", "builtin")
    assert [(v.name, v.calls, v.error) for v in runs.variants] == [
        ("vanilla", {}, None),
        ("attention", {"attention:sdpa": 1}, None),
    ]
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len({line["cache"] for line in log}) == 2  # each worker has a folder of its own
    assert all(line["was empty"] for line in log)
    assert [line["ready"] for line in log] == [False, True]  # vanilla is torch.compile alone


def test_no_file_decides_by_the_name_of_an_inner_backend():
    """A comparison with "neuron" outside `dynamo/inner` would be a decision that no third party can take part in."""
    found = decided_by(plugin_names("fluxrewrite.inner_backends"))
    assert [p for p in found if not p.startswith("fluxrewrite/dynamo/inner/")] == []


def test_importing_fluxrewrite_loads_none():
    """A record may need packages that are slow to import."""
    code = "import fluxrewrite.dynamo.inner, sys; print([n for n in sys.modules if 'dynamo.inner.' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['fluxrewrite.dynamo.inner.record', 'fluxrewrite.dynamo.inner.registry']"
