"""Small models, a tracer and a checker that the tests share."""

from __future__ import annotations

import copy
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from fluxrewrite.kernels.harness.hooks import profile, suite
from fluxrewrite.kernels.nkilib import checkout
from torch.fx import GraphModule, Node

import fluxrewrite
from fluxrewrite import kernel
from fluxrewrite.fusion.boundary.compare import RewriteEffect, effect_of
from fluxrewrite.fusion.boundary.target import Target
from fluxrewrite.graph import GraphView
from fluxrewrite.models.capture import Capture, capture, capture_spec
from fluxrewrite.models.registry import PRESETS
from fluxrewrite.provider import Implementation, Provider
from fluxrewrite.provider.registry import implementations
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.search import Priced
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Miss, Site

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as of a job in the background: then what is started would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden graphs instead of comparing with them"
    )
    parser.addoption(
        "--nkilib",
        metavar="PATH",
        help="test the kernels of AWS's NKI library too, from a checkout of github.com/aws-neuron/nki-library; written "
        "--nkilib=PATH, for pytest would look for tests in a PATH that stands alone",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Raises UsageError for a name that differs from process to process: workers would not agree on the tests."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid}: an address in the name of a test; give the parameter an id")


@pytest.fixture(scope="session")
def table() -> Path:
    """The published table that the shipped evidence was made from."""
    return Path(__file__).parent / "data" / "seed_results.json"


@pytest.fixture(scope="session")
def capture_preset() -> Callable[..., Capture]:
    """`capture_spec`, which traces a preset once for each set of arguments: graphs are not changed by what reads them."""
    made: dict[Any, Capture] = {}

    def run(spec: Any, shapes: Any, *args: Any, **options: Any) -> Capture:
        if spec.name not in PRESETS:
            return capture_spec(spec, shapes, *args, **options)
        asked = inspect.signature(capture_spec).bind(spec, shapes, *args, **options)
        asked.apply_defaults()
        key = (spec.name, *list(asked.arguments.values())[1:])
        if key not in made:
            torch._dynamo.reset()
            made[key] = capture_spec(spec, shapes, *args, **options)
        return made[key]

    return run


@pytest.fixture(scope="session", autouse=True)
def _presets_are_traced_once(capture_preset: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fluxrewrite.analysis.capture_spec", capture_preset)
        yield


@pytest.fixture(scope="session", autouse=True)
def _caches_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Inductor's artifacts, measured times and proofs of earlier runs are not seen; the processes of one run share theirs."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared / "caches"))
        yield


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    left = not torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu")
    torch.set_grad_enabled(True)
    assert not left, "the test, or what it ran, left a mode of torch switched: no_grad, inference mode or autocast"


@pytest.fixture
def nkilib(request: pytest.FixtureRequest) -> Iterator[Path]:
    """AWS's NKI library from `--nkilib=PATH`, importable for the test; without it the test is skipped."""
    path = request.config.getoption("--nkilib")
    if path is None:
        pytest.skip("needs --nkilib=PATH, a checkout of github.com/aws-neuron/nki-library")
    with checkout(path) as folder:
        yield folder


@pytest.fixture
def trace() -> Callable[..., GraphModule]:
    """`trace(fn, **inputs)`: the one Dynamo graph of the call."""

    def run(fn: Any, dynamic: bool = False, **inputs: Any) -> GraphModule:
        captured = capture(fn, inputs, dynamic=dynamic)
        assert len(captured.graphs) == 1
        return captured.graphs[0]

    return run


@pytest.fixture
def find(trace: Any) -> Callable[..., list[Site | Miss]]:
    """`find(kind, fn, **inputs)`: what the pass of that kind answers; the ops' limits included."""

    def run(kind: str, fn: Any, **inputs: Any) -> list[Site | Miss]:
        view = GraphView(trace(fn, **inputs).graph)
        return [d.finding for d in make_plan(view, Selection.of(kind, "reference")).decisions]

    return run


@pytest.fixture
def foresee() -> Callable[..., RewriteEffect]:
    """`foresee(gm, kernels, ...)`: what rewriting a graph does to it; every site is eligible."""

    def run(
        gm: GraphModule,
        kernels: Any = "rope",
        policy: Any = "all",
        regime: str = "compile",
        compiler: str = "inductor",
        device: str = "trn2",
    ) -> RewriteEffect:
        view = GraphView(gm.graph)
        rewritten, plan = apply(gm, make_plan(view, Selection.of(kernels, "reference"), policy))
        return effect_of(view, rewritten.graph, plan.replacements(), Target.of(device, regime, compiler))

    return run


@pytest.fixture
def check() -> Callable[..., fluxrewrite.Report]:
    """`check(fn, kernels, **inputs)`: compile with rewriting, compare with eager, return the report.

    With `proof="structural"` no proof stands in for a guard that is missing.
    """

    def run(
        fn: Any,
        kernels: Any = None,
        tolerance: float = 1e-5,
        inner: str = "eager",
        provider: str = "reference",
        execution: str = "reference",
        proof: str = "numeric",
        equal_nan: bool = False,
        **inputs: Any,
    ) -> fluxrewrite.Report:
        reports: list[fluxrewrite.Report] = []
        backend = fluxrewrite.backend(
            inner,
            kernels,
            report=reports.append,
            strict=True,
            provider=provider,
            execution=execution,
            proof=proof,
        )
        with torch.no_grad():
            expected = fn(**copy.deepcopy(inputs))
            found = torch.compile(fn, backend=backend, fullgraph=True)(**copy.deepcopy(inputs))
        pairs = zip(torch.utils._pytree.tree_leaves(expected), torch.utils._pytree.tree_leaves(found), strict=True)
        for a, b in pairs:
            assert a.dtype == b.dtype
            torch.testing.assert_close(b, a, atol=tolerance, rtol=tolerance, equal_nan=equal_nan)
        assert len(reports) == 1
        return reports[0]

    return run


FLUX2 = {
    "num_layers": 2,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "joint_attention_dim": 96,
    "in_channels": 16,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 16, 16, 16),
}
FLUX1 = {
    "num_layers": 2,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "joint_attention_dim": 96,
    "pooled_projection_dim": 32,
    "in_channels": 16,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 24, 24),
}


def _randomize(model: torch.nn.Module) -> None:
    """Weights, biases and norm gains that are all different from zero and one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.05 if parameter.dim() > 1 else 0.1
            parameter.copy_(
                torch.randn_like(parameter) * spread + (1.0 if "norm" in name and parameter.dim() == 1 else 0.0)
            )


@pytest.fixture
def flux2() -> Callable[..., tuple[torch.nn.Module, dict[str, Any]]]:
    """`flux2(dtype)`: a FLUX.2 transformer of 2 + 2 blocks with random weights, and its inputs."""
    diffusers = pytest.importorskip("diffusers")

    def build(
        dtype: torch.dtype = torch.float32, batch: int = 1, **config: Any
    ) -> tuple[torch.nn.Module, dict[str, Any]]:
        model = diffusers.Flux2Transformer2DModel(**{**FLUX2, **config}).eval()
        _randomize(model)
        inputs = {
            "hidden_states": torch.randn(batch, 24, 16, dtype=dtype),
            "encoder_hidden_states": torch.randn(batch, 12, 96, dtype=dtype),
            "timestep": torch.full((batch,), 0.5, dtype=dtype),
            "img_ids": torch.randint(0, 9, (batch, 24, 4)).float(),
            "txt_ids": torch.randint(0, 9, (batch, 12, 4)).float(),
            "return_dict": False,
        }
        return model.to(dtype), inputs

    return build


@pytest.fixture
def flux1() -> Callable[..., tuple[torch.nn.Module, dict[str, Any]]]:
    """`flux1(dtype)`: a FLUX.1 transformer of 2 + 2 blocks with biases and random weights, and its inputs."""
    diffusers = pytest.importorskip("diffusers")

    def build(dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, dict[str, Any]]:
        model = diffusers.FluxTransformer2DModel(**FLUX1).eval()
        _randomize(model)
        inputs = {
            "hidden_states": torch.randn(1, 24, 16, dtype=dtype),
            "encoder_hidden_states": torch.randn(1, 12, 96, dtype=dtype),
            "pooled_projections": torch.randn(1, 32, dtype=dtype),
            "timestep": torch.full((1,), 0.5, dtype=dtype),
            "guidance": torch.full((1,), 3.5, dtype=dtype),
            "img_ids": torch.randint(0, 9, (24, 3)).float(),
            "txt_ids": torch.randint(0, 9, (12, 3)).float(),
            "return_dict": False,
        }
        return model.to(dtype), inputs

    return build


class Each:
    """A `choose.Price` that asks a function `(block, sites) -> us` for one candidate at a time."""

    basis = "modelled"

    def __init__(self, price: Callable[[Any, Any], float], expensive: bool = False) -> None:
        self.price, self.expensive = price, expensive

    def __call__(self, block: Any, candidates: Any) -> list[Priced]:
        return [Priced(self.price(block, taken)) for taken in candidates]


@pytest.fixture
def each() -> type[Each]:
    return Each


def graph_text(gm: GraphModule) -> str:
    """A graph as text: one line a node, with the shape and dtype of its value."""
    lines = []
    for node in gm.graph.nodes:
        value = node.meta.get("example_value")
        kind = (
            f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}" if isinstance(value, torch.Tensor) else ""
        )
        if node.op == "placeholder":
            lines.append(f"{node.name}: {kind}")
            continue
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        if isinstance(node.target, torch._ops.OpOverload):
            target = node.target.name()
        given = [_show(a) for a in node.args] + [f"{k}={_show(v)}" for k, v in node.kwargs.items()]
        lines.append(f"{node.name} = {target}({', '.join(given)})  {kind}".rstrip())
    return "\n".join(lines) + "\n"


def _show(value: Any) -> str:
    if isinstance(value, Node):
        return value.name
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_show, value))}]"
    return repr(value)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, GraphModule], None]:
    """`golden(name, gm)`: compare the text of a graph with `tests/golden/<name>.txt`."""

    def run(name: str, gm: GraphModule) -> None:
        path = Path(__file__).parent / "golden" / f"{name}.txt"
        text = graph_text(gm)
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        known = path.read_text() if path.exists() else ""
        assert text == known, f"the graph differs from {path.name}; pytest --update-golden writes it again"

    return run


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`provide(kernels, versions)`: install the provider "mine"; kernels by name, a launch function or all of it."""

    def install(kernels: Mapping[str, Any], versions: tuple[str, ...] = (), group: str = "providers") -> None:
        module = ModuleType("provider_of_a_test")
        entry = EntryPoint("mine", f"{module.__name__}:PROVIDER", f"fluxrewrite.{group}")
        built = {k: v if isinstance(v, Implementation) else Implementation(v, (), "m:f") for k, v in kernels.items()}
        found = (lambda version: kernels[version]) if versions else (lambda _: built)
        module.PROVIDER = Provider("mine", versions, found, lambda _: None, profile, suite)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(
            kernel,
            "entry_points",
            lambda group: [*entry_points(group=group), *([entry] if group == entry.group else [])],
        )
        implementations.cache_clear()

    yield install
    implementations.cache_clear()
