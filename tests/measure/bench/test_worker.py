"""What a worker does, in this process; and a real one where that needs a process."""

import contextlib

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from fluxrewrite.errors import InputError
from fluxrewrite.measure.bench.kernel_counts import Counted
from fluxrewrite.measure.bench.variants import Spec, backend_of, parse_variants
from fluxrewrite.measure.bench.worker import failure_text, work
from fluxrewrite.measure.bench.worker_process import WorkerFailed, conversation
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.workload import realise


@pytest.fixture
def events_of(setup, tmp_path):
    """`events_of(variant, ...)`: the events of a variant of the small model."""

    def run(variant, **fields):
        torch._dynamo.reset()
        (chosen,) = parse_variants(variant)
        events = []
        spec = Spec(setup=setup(**fields), chosen=chosen, latents=str(tmp_path / "latents.pt"))
        work(spec, lambda event, **more: events.append({"event": event, **more}))
        return events

    return run


def test_every_step_and_run_is_an_event(events_of, tmp_path):
    ready, *others = events_of("qkv")
    assert ready == {
        "event": "ready",
        "threads": torch.get_num_threads(),
        "device": ready["device"],
        "dtype": "float32",
    }
    assert [(e["event"], e.get("run"), e.get("step")) for e in others] == [
        step for run in range(3) for step in (("step", run, 0), ("step", run, 1), ("run", None, None))
    ]
    steps = [e["s"] for e in others if e["event"] == "step"]
    runs = [e for e in others if e["event"] == "run"]
    assert steps == [s for e in runs for s in e["steps_s"]]
    assert all(s > 0 for s in steps)
    assert len({e["output"]["digest"] for e in runs}) == 1
    assert [e["calls"] for e in runs] == [{"qkv:triple": 1}] * 3
    assert torch.load(tmp_path / "latents.pt", weights_only=True).shape == (1, 2, 16, 32)


def test_the_first_step_holds_the_compile(events_of):
    run = next(e for e in events_of("vanilla", inner="aot_eager", runs=1) if e["event"] == "run")
    assert run["steps_s"][0] > 3 * run["steps_s"][1]


@pytest.mark.parametrize(("variant", "calls"), [("none", {}), ("all", {"attention:sdpa": 1, "qkv:triple": 1})])
def test_policies(events_of, variant, calls):
    assert [e["calls"] for e in events_of(variant, runs=1) if e["event"] == "run"] == [calls]


def test_a_denoising_loop_goes_on_from_its_own_latents(events_of, flux2_folder, tmp_path):
    """The last latents are those of `Workload.steps`, and every variant has the same."""
    shapes = Shapes(image_tokens=16, text_tokens=8)
    *_, expected = realise(find_model(flux2_folder), shapes, torch.float32).steps(2)
    for variant in ("eager", "qkv+attention"):
        events = events_of(variant, model=flux2_folder, image_tokens=16, text_tokens=8, runs=1)
        found = torch.load(tmp_path / "latents.pt", weights_only=True)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    calls = next(e for e in events if e["event"] == "run")["calls"]
    assert calls == {"attention:sdpa": 2, "qkv:packed": 1, "qkv:triple": 2}


def test_a_graph_that_is_compiled_again_counts_once(setup, tmp_path):
    """A second size compiles a second graph; a step still calls each kernel once."""
    torch._dynamo.reset()
    made = backend_of(parse_variants("attention")[0], setup())
    assert made is not None
    counted = Counted(made)
    compiled = torch.compile(
        lambda q: torch.nn.functional.scaled_dot_product_attention(q, q, q), backend=counted, dynamic=False
    )
    call = counted.per_step(compiled)
    for size in (8, 16, 8):
        call(q=torch.randn(1, 2, size, 32))
        assert counted.stats()["calls"] == {"attention:sdpa": 1}
    assert len(made.reports) == 2


def test_threads_are_set(events_of):
    before = torch.get_num_threads()
    try:
        assert events_of("eager", threads=1, runs=1)[0]["threads"] == 1
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no\nmore of it"), "ValueError: no"),
        (RuntimeError("C++ fails\n\nOutput:\na.cpp:1:2: error: no x"), "RuntimeError: C++ fails (a.cpp:1:2: error: no x)"),
        (MemoryError(), "out of memory (MemoryError)"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory (OutOfMemoryError: CUDA out of memory.)"),
        (RuntimeError("can't allocate memory"), "out of memory (RuntimeError: can't allocate memory)"),
        (InputError("flux3: not here"), "flux3: not here"),
        (BackendCompilerFailed(lambda: None, KeyError("x"), None), "KeyError: 'x'"),
        (SystemExit(), "SystemExit"),
    ],
)  # fmt: skip
def test_an_error_is_one_line(error, text):
    assert failure_text(error) == text


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("bad", "ValueError: these shapes do not fit"),
        ("starved", "out of memory"),
        ("huge", r"^out of memory \(bench_models:huge raised .*can't allocate memory"),
    ],
)
def test_models_that_fail_in_a_real_worker(setup, tmp_path, model, error):
    spec = Spec(
        setup=setup(model=f"bench_models:{model}", runs=1),
        chosen=parse_variants("eager")[0],
        latents=str(tmp_path / "latents.pt"),
    )
    with (
        contextlib.closing(conversation(spec.model_dump_json(), tmp_path)) as events,
        pytest.raises(WorkerFailed, match=error),
    ):
        list(events)


def test_output_of_a_model_is_not_an_event(setup, tmp_path):
    spec = Spec(
        setup=setup(model="bench_models:loud", steps=1, runs=1),
        chosen=parse_variants("eager")[0],
        latents=str(tmp_path / "latents.pt"),
    )
    with contextlib.closing(conversation(spec.model_dump_json(), tmp_path)) as events:
        assert [e["event"] for e in events] == ["ready", "step", "run"]
    assert (tmp_path / "stderr").read_text() == "a word on stdout\nanother one\n"
