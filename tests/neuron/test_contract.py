"""What fluxrewrite relies on of TorchNeuron and NKI, and what it does with them. See `conftest` for which packages run."""

import contextlib
import importlib
import logging

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fluxrewrite
from fluxrewrite.dynamo.failures import Failures
from fluxrewrite.dynamo.inner.neuron import neuron_op
from fluxrewrite.errors import InputError
from fluxrewrite.provider.neuron_device import NeuronDevice

pytestmark = pytest.mark.filterwarnings("ignore:.*mode .* is not supported")


@pytest.fixture
def caller(neuron):
    return neuron.module.wrap_nki(neuron.kernels.scaled)


@pytest.fixture
def x(neuron):
    return torch.randn(8, 6).to(neuron.device)


@pytest.mark.parametrize("form", [int, lambda n: (n,), lambda n: [n]], ids=["int", "tuple", "list"])
def test_grids(neuron, caller, x, form):
    torch.testing.assert_close(caller[form(neuron.lnc)](x), x * 2)


def test_another_grid_than_the_runtimes_lnc_is_refused(neuron, caller, x):
    with pytest.raises(Exception, match=r"LNC|lnc|NC_CONFIG"):
        caller[3 - neuron.lnc](x)


def test_constants_by_name(neuron, caller, x):
    torch.testing.assert_close(caller[neuron.lnc](x, factor=3.0), x * 3)
    nl = importlib.import_module("nki.language")
    found = caller[neuron.lnc](x, factor=3.0, out_dtype=nl.bfloat16)
    torch.testing.assert_close(found, (x * 3).bfloat16())


@pytest.mark.parametrize("wrong", [[3.0], None, torch.float32], ids=["list", "None", "dtype of torch"])
def test_other_constants_are_refused(neuron, caller, x, wrong):
    with pytest.raises(Exception, match=r"constant|dtype|support"):
        caller[neuron.lnc](x, factor=wrong)


def test_strided_tensors_are_refused(neuron, caller, x):
    with pytest.raises(Exception, match="non-contiguous"):
        caller[neuron.lnc](x.t())


def test_float64_is_refused(neuron, caller, x):
    with pytest.raises(Exception, match=r"float64|double"):
        caller[neuron.lnc](x.double())


def test_what_nki_jit_did_not_make_is_refused(neuron):
    with pytest.raises(Exception, match=r"nki\.jit|kernel"):
        neuron.module.wrap_nki(lambda x: x)[neuron.lnc](torch.randn(2, 2).to(neuron.device))


def op_of(neuron, name):
    """An op of `nki_op` in which the kernel call stands between torch ops. Torch keeps ops: each test has its own name."""

    def twice(x: torch.Tensor, factor: float) -> torch.Tensor:
        return neuron.module.wrap_nki(neuron.kernels.scaled)[neuron.lnc]((x + 1).t().contiguous(), factor=factor).t()

    neuron.module.nki_op(f"fluxrewrite_contract::{name}", twice)
    return getattr(torch.ops.fluxrewrite_contract, name)


def test_an_op_runs_eagerly(neuron, x):
    op = op_of(neuron, "eager")
    torch.testing.assert_close(op(x, 3.0), (x + 1) * 3)
    assert str(op.default._schema) == "fluxrewrite_contract::eager(Tensor x, float factor) -> Tensor"


def test_compiling_traces_into_an_op(neuron, x):
    op = op_of(neuron, "compiled")
    found = torch.compile(lambda x: op(x.exp(), 3.0) - 1, backend="neuron", fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(found(x), (x.exp() + 1) * 3 - 1)
    if not neuron.real:
        (gm,) = neuron.module.graphs
        assert [n.name for n in gm.graph.nodes if "nki_kernel_wrapper" in str(n.target)] == ["scaled_proxy"]
        assert neuron.module.calls["scaled"] == 1


def test_an_op_without_annotations_is_refused(neuron):
    with pytest.raises(Exception, match=r"annotation|annotated"):
        neuron.module.nki_op("fluxrewrite_contract::bare", lambda x: x)


def test_dynamic_shapes_are_refused(neuron, x):
    with pytest.raises(Exception, match="dynamic"), torch.no_grad():
        torch.compile(lambda x: x + 1, backend="neuron", dynamic=True)(x)


def test_the_backend_takes_options(neuron, x):
    with torch.no_grad():
        found = torch.compile(lambda x: x + 1, backend="neuron", dynamic=False, options={"model_name": "small"})(x)
    torch.testing.assert_close(found, x + 1)


ARGUMENTS = {
    "rope": lambda: (torch.randn(1, 6, 2, 64), torch.randn(6, 64), torch.randn(6, 64), True, 1, None),
    "rope of other strides, to bf16": lambda: (
        torch.randn(1, 2, 6, 64).transpose(1, 2), torch.randn(6, 64), torch.randn(6, 64), True, 1, torch.bfloat16
    ),
    "qkv": lambda: (torch.randn(1, 6, 64), [torch.randn(96, 64)], [torch.randn(96)], [0, 0, 32, 0, 32, 32, 0, 64, 32]),
    "qkv of four pieces": lambda: (
        torch.randn(1, 6, 64), [torch.randn(128, 64)], [None], [0, 0, 32, 0, 32, 32, 0, 64, 32, 0, 96, 32]
    ),
    "attention": lambda: tuple(torch.randn(1, 2, 6, 64) for _ in range(3)),
    "attention with a mask": lambda: (*(torch.randn(1, 2, 6, 64) for _ in range(3)), torch.randn(6, 6)),
    "norm_rope_attention": lambda: (
        *([torch.randn(1, 6, 2, 64)] for _ in range(3)), [torch.rand(64)], [torch.rand(64)], [1e-6],
        torch.randn(6, 64), torch.randn(6, 64), True,
    ),
    "norm_rope_attention of two streams": lambda: (
        *([torch.randn(1, n, 2, 64) for n in (2, 4)] for _ in range(3)), *([torch.rand(64)] * 2 for _ in range(2)),
        [1e-6, 1e-5], torch.randn(6, 64), torch.randn(6, 64), True,
    ),
}  # fmt: skip


def moved(arguments, device):
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), arguments)


@pytest.mark.parametrize("case", ARGUMENTS)
def test_the_ops_of_the_kernels(neuron, case):
    name, arguments = case.split()[0], moved(ARGUMENTS[case](), neuron.device)
    expected = getattr(torch.ops.fluxrewrite, name)(*arguments)
    op = neuron_op(name, "builtin", neuron.lnc)
    for found in (op(*arguments), getattr(torch.ops.fluxrewrite, name)(*arguments, execution="device")):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-2)
    with torch.no_grad():
        found = torch.compile(lambda *a: op(*a), backend="neuron", fullgraph=True, dynamic=False)(*arguments)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-2)


@pytest.mark.parametrize("case", ARGUMENTS)
def test_shapes_need_no_front_end(neuron, case):
    """Fake values come from the canonical op: a graph can be rewritten and analysed where kernels cannot be traced."""
    name, arguments = case.split()[0], ARGUMENTS[case]()
    op = neuron_op(name, "builtin", neuron.lnc)
    expected = getattr(torch.ops.fluxrewrite, name)(*arguments)
    closed = neuron.module.front_end(False) if not neuron.real else contextlib.nullcontext()
    with closed, FakeTensorMode() as mode:
        found = op(*torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments))
    pairs = zip(*map(torch.utils._pytree.tree_leaves, (found, expected)), strict=True)
    assert all((a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()) for a, b in pairs)


def test_the_grid_of_a_call(neuron, monkeypatch):
    arguments = moved(ARGUMENTS["rope"](), neuron.device)
    with pytest.raises(Exception, match=r"LNC|lnc|NC_CONFIG"):
        NeuronDevice(3 - neuron.lnc).run("fluxrewrite.kernels.nki.rope:rope", *arguments)
    torch.testing.assert_close(
        NeuronDevice().run("fluxrewrite.kernels.nki.rope:rope", *arguments),
        torch.ops.fluxrewrite.rope(*arguments),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ("qkv", {"qkv": 6}),
        ("rope", {"rope": 8}),
        ("attention", {"attention": 4}),
        ("norm_rope_attention", {"norm_rope_attention": 4}),
        (None, {"norm_rope_attention": 4, "qkv": 6}),
    ],
    ids=str,
)
def test_flux2_from_end_to_end(neuron, compiled, flux2, kernels, expected):
    """The model's own numbers, in one graph, with one kernel call a site."""
    model, inputs = flux2()
    model, inputs = model.to(neuron.device), moved(inputs, neuron.device)
    with torch.no_grad():
        (wanted,) = model(**inputs)
        ready, backend = compiled(model, kernels=kernels)
        (found,) = ready(**inputs)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    (report,) = backend.reports
    rewritten = {kind: s.rewritten for kind, s in report.summary.kinds.items() if s.rewritten}
    assert report.model.eager_fallback is False
    if not neuron.real:
        (gm,) = neuron.module.graphs
        calls = [n for n in gm.graph.nodes if n.target is neuron.module.nki_kernel_wrapper]
        assert len(calls) == sum(expected.values()) == sum(rewritten.values())
        assert {n.kwargs["grid"] for n in calls} == {(neuron.lnc,)}
        assert dict(neuron.module.calls) == expected


def test_lnc_of_the_caller(neuron, compiled, monkeypatch):
    """`lnc=` overrides the setting; the runtime has the last word."""
    x, cos, sin = moved(ARGUMENTS["rope"]()[:3], neuron.device)
    ready, _ = compiled(
        lambda x: torch.ops.fluxrewrite.rope(x, cos, sin, True, 1, execution="device"), lnc=3 - neuron.lnc
    )
    with pytest.raises(Exception, match=r"LNC|lnc|NC_CONFIG"), torch.no_grad():
        ready(x)


@pytest.mark.slow
def test_symbolic_sizes_are_refused_as_sites(neuron, flux2):
    """The kernels would be compiled for sizes that nobody knows; what TorchNeuron says of the graph is its own affair."""
    model, inputs = flux2()
    model, inputs = model.to(neuron.device), moved(inputs, neuron.device)
    backend = fluxrewrite.backend(inner="neuron")
    with torch.no_grad(), pytest.raises(Exception, match="dynamic"):
        torch.compile(model, backend=backend, dynamic=True)(**inputs)
    sites = [s for s in backend.reports[0].sites if s.status != "missed"]
    assert {s.choice for s in sites} == {"keep"}
    assert all(any("static shapes" in r.message and r.code == "limit" for r in s.reasons) for s in sites)


@pytest.fixture
def block():
    return lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("setting", ["1", None, "0"])
def test_the_silent_rerun_is_told_once(neuron, block, monkeypatch, caplog, setting):
    if setting is None:
        monkeypatch.delenv("TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION")
    else:
        monkeypatch.setenv("TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION", setting)
    backend = fluxrewrite.backend(inner="neuron", kernels="attention")
    with torch.no_grad(), caplog.at_level(logging.WARNING, "fluxrewrite"):
        for positions in (5, 6):
            x = torch.randn(1, 2, positions, 8).to(neuron.device)
            torch.testing.assert_close(
                torch.compile(block, backend=backend, dynamic=False)(x), block(x), atol=1e-4, rtol=0
            )
    told = [r.message for r in caplog.records if "TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION=1" in r.message]
    assert len(told) == (0 if setting == "1" else 1)
    assert [r.model.eager_fallback for r in backend.reports] == [setting != "1"] * 2


@pytest.mark.parametrize("moment", ["compile", "first run"])
def test_a_kernel_that_fails_there(neuron, block, monkeypatch, caplog, moment):
    """The error says which call it came from, through TorchNeuron's layers; without a kernel the graph runs."""
    if neuron.real:
        pytest.skip("a failure of the stand-in's kernels")
    x = torch.randn(1, 2, 5, 8)
    broken = moment == "compile"
    name = "wrap_nki" if broken else "refuse_strided"
    monkeypatch.setattr(neuron.module if broken else neuron.module.hop, name, lambda args: 1 / 0)
    backend, strict = (fluxrewrite.backend(inner="neuron", kernels="attention", strict=s) for s in (False, True))
    backend.failures, strict.failures = Failures(), Failures()
    with torch.no_grad(), caplog.at_level(logging.WARNING, "fluxrewrite"):
        torch.testing.assert_close(torch.compile(block, backend=backend, dynamic=False)(x), block(x))
        assert f"kernel attention failed at {moment}: ZeroDivisionError" in caplog.text
        assert [s.choice for r in backend.reports for s in r.sites] == ["keep"]
        with pytest.raises(Exception, match=r"by zero|failed at"):
            torch.compile(lambda x: block(x) + 1, backend=strict, dynamic=False)(x)


def test_executions_that_cannot_be_compiled(neuron):
    for execution in ("reference", "emulate"):
        with pytest.raises(InputError, match=f"inner='neuron' with execution='{execution}'.*policy='none'"):
            fluxrewrite.backend(inner="neuron", execution=execution)


def test_the_xla_stacks_package_is_told_apart(neuron, monkeypatch):
    monkeypatch.delattr(neuron.module, "wrap_nki")
    with pytest.raises(InputError, match=r"no wrap_nki.*inner='openxla'"):
        fluxrewrite.backend(inner="neuron")
