"""A small Flux2 through `inner="openxla"`: run for real on the CPU with the ops' references, compiled with custom calls."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from types import ModuleType

import pytest
import torch

import fluxrewrite
from fluxrewrite.analysis import analyse
from fluxrewrite.graph.modules import as_module
from fluxrewrite.measure.oracle.hlo import parse
from fluxrewrite.measure.oracle.xla_graph import _on_device, _OnXla, dump_folder
from fluxrewrite.measure.oracle.xla_worker import traced
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.workload import realise
from fluxrewrite.provider.custom_call import TARGET, custom_call
from fluxrewrite.rewrite.selection import Selection

torch_xla = pytest.importorskip("torch_xla", reason="torch-xla is not installed here: make test-xla")

SHAPES = Shapes(24, 12)
KERNELS = ["qkv", "rope", "attention", "norm_rope_attention", "attention,norm_rope_attention,qkv,rope"]
SITES = {"qkv": 4, "rope": 6, "attention": 3, "norm_rope_attention": 3, KERNELS[-1]: 7}

RUN = """
import json, sys, torch, torch_xla, fluxrewrite
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.workload import realise

folder, *kernels = sys.argv[1:]
workload = realise(find_model(folder), Shapes(24, 12), torch.float32)
found = {}
with torch.no_grad():
    wanted = torch.utils._pytree.tree_leaves(workload.model(**workload.inputs))[0]
    device = torch_xla.device()
    model = workload.model.to(device)
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in workload.inputs.items()}
    for names in kernels:
        torch._dynamo.reset()
        backend = fluxrewrite.backend(inner="openxla", kernels=names)
        result = torch.utils._pytree.tree_leaves(torch.compile(model, backend=backend, fullgraph=True)(**inputs))[0]
        (report,) = backend.reports
        sites = sum(s.choice == "kernel" for s in report.sites)
        found[names] = [float((result.cpu() - wanted).abs().max()), float(wanted.abs().max()), sites, str(result.device)]
sys.stdout.write(json.dumps(found))
"""


@pytest.fixture(scope="module")
def results(small):
    """Largest difference, largest number, rewritten sites and device, by kernels; from a process with XLA's cache."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("XLA_")}
    command = [sys.executable, "-c", RUN, small, *KERNELS]
    done = subprocess.run(command, env={**plain, "PJRT_DEVICE": "CPU"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_models_own_numbers(results, kernels):
    difference, largest, sites, device = results[kernels]
    assert difference <= 1e-4 * max(largest, 1)
    assert sites == SITES[kernels]
    assert device.startswith("xla")


def opaque(text):
    """Custom calls that stand for kernels in HLO, by our parser; their number must be that of the text."""
    found = [i for c in parse(text).computations.values() for i in c.instructions if i.target == TARGET]
    assert len(found) == text.count(f'custom_call_target="{TARGET}"')
    return found


@pytest.fixture(scope="module")
def workload(small):
    return realise(find_model(small), SHAPES, torch.float32, device=torch_xla.device())


@pytest.mark.parametrize("kernels", KERNELS)
def test_one_custom_call_a_rewritten_site(workload, kernels):
    """XLA compiles the program, writes its HLO, and then refuses to run calls that nothing stands behind."""
    before = set(dump_folder().glob("*after_optimizations.txt"))
    backend = fluxrewrite.backend(inner="openxla", kernels=kernels, execution="custom_call", strict=True)
    with torch.no_grad(), pytest.raises(Exception, match=f"No registered implementation .*{TARGET}"):
        torch.compile(workload.model, backend=backend, fullgraph=True)(**workload.inputs)
    (report,) = backend.reports
    (text,) = {p.read_text() for p in set(dump_folder().glob("*after_optimizations.txt")) - before}
    sites = Counter(s.kind for s in report.sites if s.choice == "kernel")
    assert len(opaque(text)) == sites.total() == SITES[kernels]
    assert Counter(re.findall(r'backend_config="fluxrewrite\.(\w+)\.default"', text)) == sites


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_parser_counts_as_torch_xlas_text_does(small, kernels):
    """The HLO that torch_xla says it would hand over, before any optimisation."""
    gm = traced(small, SHAPES, None, torch.float32)
    rewritten = as_module(gm, analyse(gm, Selection.of(kernels, execution="custom_call"), "all")[1])
    device = torch_xla.device()
    inputs = [_on_device(n, device) for n in rewritten.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        results = torch.utils._pytree.tree_leaves(_OnXla(rewritten, device, ()).run(*inputs))
    text = torch_xla._XLAC._get_xla_tensors_hlo([t for t in results if isinstance(t, torch.Tensor)])
    assert len(opaque(text)) == SITES[kernels]


def test_neurons_kernel_is_called_on_xlas_tensors(small, workload, monkeypatch):
    """With packages as those of the XLA stack, whose kernels make a custom call of the lazy graph. Recorders play them."""
    calls = []

    def rope(x, cos, sin, interleaved, sequence_dim, out_dtype=None):
        """Stands for the NKI kernel; the real one makes such a call, too."""

    class Jitted:
        func = staticmethod(rope)

        def __init__(self, cores=1):
            self.cores = cores

        def __getitem__(self, cores):
            return Jitted(cores)

        def __call__(self, x, cos, sin, **constants):
            calls.append((self.cores, constants, {t.device.type for t in (x, cos, sin)}, x.is_contiguous()))
            return custom_call((x, cos, sin), x, "rope")

    kernels = ModuleType("fluxrewrite.kernels.nki.rope")
    kernels.rope = Jitted()
    for module in (ModuleType("torch_neuronx"), ModuleType("nki"), ModuleType("nki.language"), kernels):
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", "2")
    before = set(dump_folder().glob("*after_optimizations.txt"))
    backend = fluxrewrite.backend(inner="openxla", kernels="rope", strict=True)
    assert {k.execution for k in backend.settings.selection.kernels.values()} == {"device"}
    with torch.no_grad(), pytest.raises(Exception, match="No registered implementation"):
        torch.compile(workload.model, backend=backend, fullgraph=True)(**workload.inputs)
    (text,) = {p.read_text() for p in set(dump_folder().glob("*after_optimizations.txt")) - before}
    assert len(opaque(text)) == SITES["rope"]
    wanted = (2, {"interleaved": True, "sequence_dim": 1}, {"xla"}, True)
    assert len(calls) >= SITES["rope"]
    assert all(c == wanted for c in calls)
