"""All variants of a bench: with a fake worker for each way to fail, and with real ones."""

import pytest
import torch

from fluxrewrite.errors import InputError
from fluxrewrite.measure.bench.events import cosine
from fluxrewrite.measure.bench.run import bench, check_setup
from fluxrewrite.measure.bench.variants import parse_variants

FAILING = """
ready()
run(3.0, 1.0)
if name == "qkv": tell("error", error="ValueError: no")
if name == "attention": os.kill(os.getpid(), signal.SIGKILL)
if name == "rope": os._exit(9)
if name == "auto": time.sleep(60)
if name == "all": run(1.0)
if name == "none": run(1.0, 1.0, runs="many")
if name == "measure": tell("run", steps_s=[-1.0, 1.0])
run(1.0, 1.0)
"""


def test_a_variant_that_fails_is_a_row_and_not_the_end(fake, setup):
    kept, heard = [], []
    runs = bench(
        setup(),
        parse_variants("vanilla,qkv,attention,rope,auto,measure,eager"),
        kept.append,
        report_event=lambda chosen, event: heard.append((chosen.name, event["event"])),
        timeout_s=2,
        worker=fake(FAILING),
    )
    assert [(v.name, len(v.runs)) for v in runs.variants] == [
        ("vanilla", 2), ("qkv", 1), ("attention", 1), ("rope", 1), ("auto", 1), ("measure", 1), ("eager", 2),
    ]  # fmt: skip
    errors = {v.name: v.error for v in runs.variants if v.error}
    assert list(errors) == ["qkv", "attention", "rope", "auto", "measure"]
    assert errors["qkv"] == "ValueError: no"
    assert "SIGKILL" in errors["attention"]
    assert "exited with code 9" in errors["rope"]
    assert "not finished after 2 s" in errors["auto"]
    assert "makes no sense" in errors["measure"]
    assert "steps_s" in errors["measure"]
    assert len(kept) == 9 + 5  # every finished run, and every failure
    assert kept[-1] == runs
    assert heard[:4] == [("vanilla", e) for e in ("start", "ready", "run")] + [("qkv", "start")]


@pytest.mark.parametrize("body", ["tell('ready')", "tell('ready', threads=0, device='', dtype='')", "tell('run')"])
def test_malformed_events(fake, setup, body):
    runs = bench(setup(), parse_variants("vanilla"), worker=fake(body + "\n"))
    assert "makes no sense" in (runs.variants[0].error or "")


def test_machine_and_case_are_those_of_the_worker(fake, setup):
    runs = bench(setup(dtype="bfloat16", batch=2), parse_variants("vanilla"), worker=fake("ready()\nrun(1.0, 1.0)\n"))
    assert (runs.machine.threads, runs.machine.device) == (2, "a processor")
    assert runs.case.known
    assert (runs.case.device, runs.case.regime, runs.case.dtype, runs.case.batch) == ("cpu", "compile", "float32", 2)
    assert runs.versions.torch == torch.__version__
    assert bench(setup(profile="trn2"), (), worker=()).case.device == "trn2"


def test_ctrl_c_keeps_finished_runs(fake, setup):
    kept = []

    def interrupt(chosen, event):
        if chosen.name == "qkv" and event["event"] == "run":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(
            setup(),
            parse_variants("vanilla,qkv,rope"),
            kept.append,
            report_event=interrupt,
            worker=fake("ready()\nrun(1, 2)\n"),
        )
    assert [(v.name, len(v.runs), v.error) for v in kept[-1].variants] == [
        ("vanilla", 1, "interrupted"),
        ("qkv", 0, "interrupted"),
    ]


@pytest.mark.slow
def test_cosine_to_vanilla_in_any_order(setup, monkeypatch):
    """Real workers, no compiler: vanilla comes last, and all variants get their cosine."""
    runs = bench(setup(runs=2), parse_variants("eager,qkv+attention,vanilla"))
    eager, both, vanilla = runs.variants
    assert [v.error for v in runs.variants] == [None] * 3
    assert vanilla.output is not None
    assert vanilla.output.cosine is None
    for variant in (eager, both):
        assert variant.output is not None
        assert variant.output.cosine == pytest.approx(1, abs=1e-6)
        assert variant.output.finite
    assert eager.output.digest == vanilla.output.digest
    assert both.calls == {"attention:sdpa": 1, "qkv:triple": 1}
    assert both.specialisations == both.calls
    assert eager.calls == vanilla.calls == {}
    for variant in runs.variants:
        assert len(variant.warm) == 2  # steps of the one warm run
        assert 50 < (variant.peak_rss_mb or 0) < 20_000
        assert variant.peak_device_mb is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 0.0], [2.0, 0.0], 1.0),
        ([1.0, 0.0], [0.0, 1.0], 0.0),
        ([1.0, 0.0], [-1.0, 0.0], -1.0),
        ([0.0, 0.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [1.0, 0.0], 0.0),
        ([float("nan"), 0.0], [1.0, 0.0], None),
        ([1.0, 0.0], [float("inf"), 0.0], None),
        ([1.0], [1.0, 0.0], None),
    ],
)
def test_cosine(a, b, expected):
    assert cosine(torch.tensor(a), torch.tensor(b)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "flux3"}, "unknown model 'flux3'"),
        ({"inner": "inducktor"}, "unknown inner backend 'inducktor'"),
        ({"device": "here"}, "--device 'here': not a torch device"),
        ({"device": "xpu"}, "--device 'xpu': "),
        ({"provider": "nki"}, "unknown provider 'nki'"),
        ({"provider": "reference", "execution": "emulate"}, "provider 'reference' has nothing to emulate"),
        ({"profile": "trn9"}, "unknown device 'trn9'"),
        ({"evidence": ("none.json",)}, "none.json: cannot be read"),
    ],
)
def test_setups_that_no_worker_could_run(setup, fields, message):
    chosen = parse_variants("vanilla,qkv,auto")
    check_setup(setup(), chosen)
    with pytest.raises(InputError, match=message):
        check_setup(setup(**fields), chosen)


def test_an_accelerator_that_is_not_there(setup, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    check_setup(setup(device="cuda"), ())
    with pytest.raises(InputError, match="'cuda:1': there are 1 of them, counted from 0"):
        check_setup(setup(device="cuda:1"), ())
    with pytest.raises(InputError, match="'xpu': the accelerator here is cuda; give cuda"):
        check_setup(setup(device="xpu"), ())
