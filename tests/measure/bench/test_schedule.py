"""Cold runs one after the other, then warm ones in turn, where that is possible."""

import json

import pytest

from fluxrewrite.cost.runs import Runs
from fluxrewrite.measure.bench.run import bench
from fluxrewrite.measure.bench.schedule import SHARE, available_mb
from fluxrewrite.measure.bench.variants import parse_variants

OBEDIENT = """
ready()
run(2.0, 1.0)
for _ in range(spec["setup"]["runs"] - 1):
    open("log", "a").write(name + " " + sys.stdin.readline())
    run(1.0, 1.0)
"""


@pytest.fixture
def order(setup, fake):
    """`order(variants, ...)`: the events "run" in order, by variant, and the runs."""

    def run(variants, body=OBEDIENT, report_event=lambda chosen, event: None, **options):
        heard = []

        def listen(chosen, event):
            if event["event"] == "run":
                heard.append(chosen.name)
            report_event(chosen, event)

        runs = bench(setup(), parse_variants(variants), report_event=listen, worker=fake(body), **options)
        return heard, runs

    return run


def test_warm_runs_are_taken_in_turn(order, place):
    heard, runs = order("vanilla,qkv,auto")
    assert heard == ["vanilla", "qkv", "auto"] * 3
    assert runs.in_turn
    assert [(v.name, len(v.runs), v.error) for v in runs.variants] == [(n, 3, None) for n in ("vanilla", "qkv", "auto")]
    assert json.loads(runs.to_json())["in_turn"] is True
    # a worker waits for the line that lets it go on
    assert (place / "log").read_text().split() == [w for n in ("vanilla", "qkv", "auto") * 2 for w in (n, "go")]


@pytest.fixture
def room(monkeypatch):
    """`room(n)`: memory for n workers."""

    def give(count):
        monkeypatch.setattr("fluxrewrite.measure.bench.schedule.available_mb", lambda: (count + 0.5) * 300.0 / SHARE)

    return give


@pytest.mark.parametrize(
    ("workers", "variants"), [(1, "vanilla,qkv,auto"), (2, "qkv,vanilla,auto"), (1, "vanilla,qkv")]
)
def test_one_variant_after_the_other_if_memory_is_short(order, room, workers, variants):
    room(workers)
    heard, runs = order(variants)
    assert heard == [name for name in variants.split(",") for _ in range(3)]
    assert not runs.in_turn
    assert [len(v.runs) for v in runs.variants] == [3] * len(runs.variants)
    room(3)
    assert order(variants)[1].in_turn


def test_groups_in_turn_with_vanilla(order, room):
    room(3)
    heard, runs = order("vanilla,qkv,rope,attention,auto")
    assert heard == [
        "vanilla", "qkv", "rope", *["vanilla", "qkv", "rope"] * 2,
        "attention", "auto", *["vanilla", "attention", "auto"] * 2,
    ]  # fmt: skip
    assert runs.in_turn
    assert [(v.name, len(v.runs), len(v.beside), v.error) for v in runs.variants] == [
        ("vanilla", 3, 0, None), ("qkv", 3, 0, None), ("rope", 3, 0, None), ("attention", 3, 2, None), ("auto", 3, 2, None),
    ]  # fmt: skip
    assert Runs.model_validate_json(runs.to_json()) == runs


SLOWER = """
ready()
run(2.0, 1.0)
for n in range(spec["setup"]["runs"] - 1):
    sys.stdin.readline()
    s = 2.0 if name == "auto" or n > 1 else 1.0  # the machine is half as fast while auto runs
    run(s, s)
"""


def test_a_variant_is_compared_with_vanilla_at_its_time(order, room):
    room(2)
    runs = order("vanilla,qkv,auto", SLOWER)[1]
    vanilla, qkv, auto = runs.variants
    assert (vanilla.warm_s_per_step, auto.warm_s_per_step) == (1.0, 2.0)
    assert [runs.ratio(v) for v in (vanilla, qkv, auto)] == [1.0, 1.0, 1.0]
    assert runs.drift == 0
    assert runs.noise(auto) == 0.01


def test_other_variants_keep_their_runs_if_vanilla_dies_in_a_later_group(order, room):
    room(2)
    body = SLOWER.replace("    run(s, s)", "    if name == 'vanilla' and n == 3: os._exit(9)\n    run(s, s)")
    heard, runs = order("vanilla,qkv,auto,rope", body)
    vanilla, _, auto, rope = runs.variants
    assert (len(vanilla.runs), len(auto.runs), len(auto.beside), len(rope.runs)) == (3, 3, 1, 3)
    assert "exited with code 9" in vanilla.error
    assert heard[-3:] == ["rope"] * 3
    assert runs.ratio(auto) == 1.0
    assert (rope.beside, runs.ratio(rope)) == ((), 1.0)  # compared with vanilla's own runs, for want of others


def test_a_malformed_baseline_run_is_a_failure_of_vanilla(order, room):
    room(2)
    body = SLOWER.replace("    run(s, s)", "    run(*([-1.0] if name == 'vanilla' and n == 2 else [s, s]))")
    runs = order("vanilla,qkv,auto", body)[1]
    assert "a run that makes no sense" in runs.variants[0].error
    assert [len(v.runs) for v in runs.variants] == [3, 3, 3]


@pytest.mark.parametrize("stop", ["vanilla", "auto"])
def test_ctrl_c_in_a_later_group_leaves_vanilla_finished(setup, fake, room, stop):
    kept, turns = [], []

    def interrupt(chosen, event):
        turns.extend([chosen.name] * (event["event"] == "run"))
        if turns.count("vanilla") == 4 and chosen.name == stop:
            raise KeyboardInterrupt

    room(2)
    with pytest.raises(KeyboardInterrupt):
        bench(setup(), parse_variants("vanilla,qkv,auto"), kept.append, report_event=interrupt, worker=fake(OBEDIENT))
    assert [v.error for v in kept[-1].variants] == [None, None, "interrupted"]


def test_baseline_runs_extend_the_timeout_of_vanilla(order, room):
    room(2)
    body = OBEDIENT.replace("run(2.0, 1.0)", "time.sleep(0.5)\nrun(2.0, 1.0)")
    body = body.replace("    run(1.0, 1.0)", "    time.sleep(0.3)\n    run(1.0, 1.0)")
    runs = order("vanilla,qkv,auto", body, timeout_s=1.4)[1]
    assert [(v.error, len(v.runs)) for v in runs.variants] == [(None, 3)] * 3
    slow = order("vanilla,qkv,auto", body.replace("0.3", "2.0"), timeout_s=1.4)[1]
    assert all("not finished after" in v.error for v in slow.variants)


def test_other_variants_go_on_if_one_fails_in_its_turn(order):
    body = OBEDIENT.replace("    run(1.0, 1.0)", "    if name == 'qkv': os._exit(9)\n    run(1.0, 1.0)")
    heard, runs = order("vanilla,qkv,auto", body)
    assert heard == ["vanilla", "qkv", "auto", "vanilla", "auto", "vanilla", "auto"]
    assert [len(v.runs) for v in runs.variants] == [3, 1, 3]
    assert "exited with code 9" in runs.variants[1].error


def test_a_single_variant_does_not_wait(order):
    heard, runs = order("vanilla")
    assert heard == ["vanilla"] * 3
    assert not runs.in_turn


def test_ctrl_c_between_turns_ends_all_workers_and_marks_those_that_had_more_to_do(setup, fake):
    kept, turns = [], []

    def interrupt(chosen, event):
        if event["event"] == "run":
            turns.append(chosen.name)
        if turns == ["vanilla", "qkv", "vanilla", "qkv", "vanilla", "qkv"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(setup(), parse_variants("vanilla,qkv"), kept.append, report_event=interrupt, worker=fake(OBEDIENT))
    assert [(len(v.runs), v.error) for v in kept[-1].variants] == [(3, None), (2, "interrupted")]


def test_waiting_does_not_count_for_the_timeout(setup, fake):
    body = OBEDIENT.replace("run(2.0, 1.0)", "time.sleep(0.7)\nrun(2.0, 1.0)")
    runs = bench(setup(), parse_variants("vanilla,qkv,auto"), timeout_s=1.6, worker=fake(body))
    assert [v.error for v in runs.variants] == [None] * 3


def test_available_memory(tmp_path):
    proc, group = tmp_path / "meminfo", tmp_path / "group"
    assert available_mb(proc, group) == 0
    proc.write_text("MemTotal:       24000000 kB\n")
    assert available_mb(proc, group) == 0
    proc.write_text("MemTotal:       24000000 kB\nMemAvailable:   10000000 kB\n")
    assert available_mb(proc, group) == 10240
    group.mkdir()
    (group / "memory.current").write_text("1000000000\n")
    (group / "memory.max").write_text("max\n")
    assert available_mb(proc, group) == 10240
    (group / "memory.max").write_text("3000000000\n")
    assert available_mb(proc, group) == 2000
    (group / "memory.max").write_text("500000000\n")
    assert available_mb(proc, group) == 0
    assert available_mb() > 0
