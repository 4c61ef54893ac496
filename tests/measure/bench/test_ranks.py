"""A bench on several ranks: how they agree, with a fake worker for each way to fail, and how their figures are combined."""

import time

import pytest
import torch.distributed as dist
from rank_groups import at_once, rank_groups

from fluxrewrite.errors import InputError, RankError
from fluxrewrite.measure.bench import ranks as bench_ranks
from fluxrewrite.measure.bench.machine_load import Load
from fluxrewrite.measure.bench.ranks import pooled
from fluxrewrite.measure.bench.run import bench, check_setup
from fluxrewrite.measure.bench.variants import parse_variants
from fluxrewrite.measure.rendezvous import END
from fluxrewrite.parallel import Ranks

RANK = "rank = spec['meeting']['rank']\n"
GOOD = RANK + "ready()\nrun(2.0, 1.0)\nrun(1.0, 1.0)\nrun(1.0, 1.0)\n"


@pytest.fixture
def run(fake, setup):
    """`run(body, variants, ...)`: what `bench` returns or raises on each of two ranks, and the records that each kept."""

    def call(body, variants="vanilla,qkv", wait_s=20, timeout_s=None, ranks=None):
        kept = [[], []]
        worker = fake(body)
        found = at_once(
            *(
                lambda c=c: bench(
                    setup(),
                    parse_variants(variants),
                    kept[c.here.rank].append,
                    timeout_s=timeout_s,
                    worker=worker,
                    rank_group=c,
                )
                for c in ranks or rank_groups(2, wait_s)
            )
        )
        return found, kept

    return call


def errors(runs):
    return {v.name: v.error for v in runs.variants}


def test_all_variants_finish(run):
    (first, second), kept = run(GOOD)
    assert errors(first) == errors(second) == {"vanilla": None, "qkv": None}
    assert first.case.tp == second.case.tp == 2
    assert [len(v.runs) for v in first.variants] == [3, 3]
    assert kept[0][-1] == first


def test_each_variant_has_a_group_of_its_own(run, tmp_path):
    note = "open(f'{name}.{rank}', 'w').write(json.dumps(spec['meeting']))\n"
    run(RANK + note + "ready()\nrun(1.0, 1.0)\n")
    names = {(tmp_path / f"{v}.{r}").read_text() for v in ("vanilla", "qkv") for r in (0, 1)}
    assert len(names) == 4
    assert {n.split('"name": ')[1].split(",")[0] for n in names} == {
        '"fluxrewrite/variant 1/group"',
        '"fluxrewrite/variant 2/group"',
    }


LOST = "tell('error', error='RankError: another rank ended', lost=True)"
FAILING = [
    ("if rank == 1: tell('error', error='ValueError: no')", "rank 1: ValueError: no"),
    ("if rank == 0: tell('error', error='ValueError: no')", "rank 0: ValueError: no"),
    ("tell('error', error='ValueError: no')", "ValueError: no"),
    (f"tell('error', error='ValueError: no') if rank else {LOST}", "rank 1: ValueError: no"),
    (
        "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)",
        "rank 1: the worker was killed by SIGKILL; the system may be out",
    ),
    ("if rank == 1: os._exit(3)", "rank 1: the worker exited with code 3 and without an error event"),
    ("if rank == 1: tell('error', error='out of memory (MemoryError)')", "rank 1: out of memory (MemoryError)"),
]


@pytest.mark.parametrize(("body", "why"), FAILING, ids=[b for b, _ in FAILING])
def test_a_variant_that_fails_on_one_rank_fails_on_all_and_the_next_one_runs(run, body, why):
    """The worker of the other rank would wait for it for a minute."""
    start = time.monotonic()
    wait = "if name == 'vanilla': time.sleep(60)\n"
    found, kept = run(f"{RANK}if name == 'vanilla':\n  ready()\n  run(2.0, 1.0)\n{indented(body)}{wait}{GOOD}")
    assert time.monotonic() - start < 20
    for runs in found:
        assert list(errors(runs)) == ["vanilla", "qkv"]
        assert errors(runs)["vanilla"].startswith(why)
        assert errors(runs)["qkv"] is None
        assert [len(v.runs) for v in runs.variants] == [1, 3]
    assert kept[0][1].variants[0].error.startswith(why), "kept as soon as it was known"


def indented(body):
    return f"  {body}\n"


def test_a_worker_that_hangs(run):
    """If gloo reports it on the other rank, that ends it; otherwise --timeout ends it on all ranks."""
    stands = f"{RANK}ready()\nif rank == 1: time.sleep(60)\ntime.sleep(0.5)\n{LOST}\n"
    for runs in run(stands, "vanilla")[0]:
        assert errors(runs) == {
            "vanilla": "rank 0: RankError: another rank ended; rank 1: was running when rank 0 failed"
        }
    for runs in run(f"{RANK}ready()\ntime.sleep(60)\n", "vanilla", timeout_s=1)[0]:
        assert "not finished after 1 s; use a longer --timeout" in errors(runs)["vanilla"]


def test_a_parent_that_hangs_ends_the_bench_and_finished_runs_are_kept(run):
    lone = rank_groups(2, wait_s=1)[:1]
    start = time.monotonic()
    (error,), (kept, _) = run(GOOD, ranks=lone)
    assert time.monotonic() - start < 20
    assert isinstance(error, RankError)
    assert str(error) == "rank 1 did not answer within 1 s (variant 1)"
    assert [(v.name, len(v.runs), v.error) for v in kept[-1].variants] == [("vanilla", 3, str(error))]


def test_a_parent_that_has_ended(run):
    lone, gone = rank_groups(2, wait_s=60)
    gone.publish(END, "{}")
    (error,), (kept, _) = run(GOOD, ranks=[lone])
    assert str(error) == "rank 1 ended early"
    assert len(kept[-1].variants[0].runs) == 3


class Some(Load):
    """A load with a known figure."""

    def __init__(self, own):
        super().__init__()
        self.own, self.ours = own, []

    def own_s(self):
        return self.own

    def others(self, ours_s=0.0):
        self.ours.append(ours_s)
        return 0.25


def figures(*steps, rss=100.0, finite=True, device=None):
    return {
        "steps_s": list(steps),
        "peak_rss_mb": rss,
        "peak_device_mb": device,
        "output": {"digest": f"{rss}", "finite": finite},
    }


def test_figures_of_all_ranks(monkeypatch):
    """Slowest rank of each step, largest and summed memory, the first rank's output; other ranks are not other programs."""
    mine, others = (
        figures(1.0, 4.0, rss=300.0),
        [figures(2.0, 3.0, rss=500.5), figures(0.5, 0.5, rss=100.0, finite=False)],
    )
    load = Some(3.0)

    def gather(into, own):
        here = own["host"]
        into[:] = [own, {**others[0], "host": here, "own_s": 5.0}, {**others[1], "host": "elsewhere", "own_s": 7.0}]

    monkeypatch.setattr(bench_ranks.dist, "all_gather_object", gather)
    assert pooled(Ranks(0, 3), mine, load) == {
        "steps_s": [2.0, 4.0],
        "peak_rss_mb": 500.5,
        "peak_rss_sum_mb": 900.5,
        "peak_device_mb": None,
        "output": {"digest": "300.0", "finite": False},
        "others": 0.25,
    }
    assert load.ours == [5.0]


def test_figures_of_one_process():
    mine = figures(1.0, 4.0)
    assert pooled(None, mine, Some(1.0)) == {**mine, "others": 0.25}
    assert not dist.is_initialized()


REFUSED = [
    ({}, "measure", r"--variants measure: each of 4 ranks would choose by its own times; use 'auto'"),
    ({}, "vanilla", r"Attend has no _tp_plan, so it is not known how to divide it among 4 ranks"),
    ({"model": "flux2"}, "vanilla", r"2 heads cannot be divided among 4 ranks; 2 ranks divide them"),
]


@pytest.mark.parametrize(("fields", "variants", "why"), REFUSED, ids=["measure", "no plan", "heads"])
def test_setups_that_ranks_cannot_run(setup, flux2_folder, fields, variants, why):
    given, chosen = setup(**fields), parse_variants(variants)
    check_setup(given, chosen)
    with pytest.raises(InputError, match=why):
        check_setup(given, chosen, 4)


def test_a_callable_that_needs_its_numbers_is_left_to_the_workers(setup, tmp_path):
    (tmp_path / "needs_numbers.py").write_text(
        "import torch\ndef build(): return torch.nn.ReLU(), {'input': [torch.ones(2).sum().item()]}\n"
    )
    check_setup(setup(model="needs_numbers:build"), parse_variants("vanilla"), 4)


def test_ranks_run_on_cpus_only(setup, monkeypatch):
    monkeypatch.setattr("fluxrewrite.measure.bench.run._check_device", lambda name: None)
    with pytest.raises(InputError, match=r"--device 'cuda' on 4 ranks: ranks run on CPUs, over gloo"):
        check_setup(setup(device="cuda"), parse_variants("vanilla"), 4)
