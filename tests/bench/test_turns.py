"""Cold runs one after the other, then warm ones in turn, where that is possible."""

import json

import pytest

from fluxrewrite.bench import bench, parse_variants
from fluxrewrite.bench.turns import SHARE, available_mb

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

    def run(variants, body=OBEDIENT, tell=lambda chosen, event: None, **options):
        heard = []

        def listen(chosen, event):
            if event["event"] == "run":
                heard.append(chosen.name)
            tell(chosen, event)

        runs = bench(setup(), parse_variants(variants), tell=listen, worker=fake(body), **options)
        return heard, runs

    return run


def test_warm_runs_are_taken_in_turn(order, place):
    heard, runs = order("vanilla,qkv,auto")
    assert heard == ["vanilla", "qkv", "auto"] * 3
    assert runs.in_turn
    assert [(v.name, len(v.runs), v.error) for v in runs.variants] == [(n, 3, None) for n in ("vanilla", "qkv", "auto")]
    assert json.loads(runs.to_json())["in_turn"] is True
    # a worker waits until it is told to go on
    assert (place / "log").read_text().split() == [w for n in ("vanilla", "qkv", "auto") * 2 for w in (n, "go")]


def test_one_after_the_other_where_memory_does_not_do(order, monkeypatch):
    monkeypatch.setattr("fluxrewrite.bench.turns.available_mb", lambda: 3 * 300.0 / SHARE - 1)
    heard, runs = order("vanilla,qkv,auto")
    assert heard == ["vanilla"] * 3 + ["qkv"] * 3 + ["auto"] * 3
    assert not runs.in_turn
    monkeypatch.setattr("fluxrewrite.bench.turns.available_mb", lambda: 3 * 300.0 / SHARE + 1)
    assert order("vanilla,qkv,auto")[1].in_turn


def test_a_variant_that_fails_in_its_turn_leaves_the_others_theirs(order):
    body = OBEDIENT.replace("    run(1.0, 1.0)", "    if name == 'qkv': os._exit(9)\n    run(1.0, 1.0)")
    heard, runs = order("vanilla,qkv,auto", body)
    assert heard == ["vanilla", "qkv", "auto", "vanilla", "auto", "vanilla", "auto"]
    assert [len(v.runs) for v in runs.variants] == [3, 1, 3]
    assert "exit code 9" in runs.variants[1].error


def test_a_single_variant_waits_for_nobody(order):
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
        bench(setup(), parse_variants("vanilla,qkv"), kept.append, interrupt, worker=fake(OBEDIENT))
    assert [(len(v.runs), v.error) for v in kept[-1].variants] == [(3, None), (2, "interrupted")]


def test_waiting_does_not_count_for_the_timeout(setup, fake):
    body = OBEDIENT.replace("run(2.0, 1.0)", "time.sleep(0.7)\nrun(2.0, 1.0)")
    runs = bench(setup(), parse_variants("vanilla,qkv,auto"), timeout_s=1.6, worker=fake(body))
    assert [v.error for v in runs.variants] == [None] * 3


def test_memory_that_can_be_had(tmp_path):
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
