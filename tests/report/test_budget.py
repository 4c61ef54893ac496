import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxrewrite import CheckFailed, InputError
from fluxrewrite.report.budget import BY_KIND, METRICS, check, metrics, parse_limit, read_budget
from fluxrewrite.report.model import (
    Boundary,
    BreakInfo,
    CompileInfo,
    Effect,
    KindSummary,
    LostFusion,
    ModelInfo,
    Report,
    SiteInfo,
    StepInfo,
    Summary,
    Timing,
    Verdict,
)

KNOWN = {
    "boundaries": 4, "barriers": 1, "splits": 2, "layouts": 1, "graph_breaks": 1, "boundary_bytes": 1_500_000,
    "boundary_us": 111.5, "lost_fusions": 3, "lost_elsewhere": 7,
    "collectives": 6, "extra_bytes": -200, "extra_compiled": 5, "step_us": 120.0,
    "predicted_slowdown": 1.2, "executables": 3, "specialisations": 2, "compile_s": 60.0, "slower": 1, "graphs": 2,
    "graph_nodes": 40, "found": 9, "eligible": 6, "ineligible": 3, "kernels": 4, "inline": 0, "covered": 1, "missed": 2,
    "found.qkv": 5, "eligible.qkv": 4, "ineligible.qkv": 1, "kernels.qkv": 3, "inline.qkv": 0, "covered.qkv": 1,
    "missed.qkv": 2, "found.rope": 4, "eligible.rope": 2, "ineligible.rope": 2, "kernels.rope": 1, "inline.rope": 0,
    "covered.rope": 0, "missed.rope": 0,
}  # fmt: skip


def boundary(kind, bytes, lost, us, site="a.qkv.0"):
    fusions = tuple(LostFusion(producer=f"p{i}", consumer=f"c{i}") for i in range(lost))
    return Boundary(
        site=site, graph=0, kind=kind, path="a", bytes=bytes, tensors=(), lost_fusions=fusions, cost_us=us, basis="modelled"
    )  # fmt: skip


def step(us):
    return StepInfo(us=us, low_us=us, high_us=us, basis="modelled")


def kind(found, eligible, rewritten, covered, missed):
    return KindSummary(
        found=found, eligible=eligible, rewritten=rewritten, covered=covered, missed=missed, forms={}, looks_for="it"
    )


def site(number, kind, choice):
    return SiteInfo(
        id=f"a.{kind}.{number}", kind=kind, form="f", path="a", graph=0, status="eligible", reasons=(), shapes={},
        choice=choice, kernel=None,
    )  # fmt: skip


@pytest.fixture
def report():
    verdict = {"regime": "compile", "why": "so", "basis": "modelled"}
    return Report(
        model=ModelInfo(
            name="m", parameters=1, dtype="float32", graphs=2, graph_nodes=40,
            graph_breaks=(BreakInfo(reason="print", location="m.py:3"),),
        ),
        timing=Timing(capture_s=0, match_s=0, analyse_s=0, total_s=0, peak_rss_mb=0),
        inventory={"attention": 0},
        sites=(site(0, "qkv", "kernel"), site(0, "rope", "keep")),
        boundaries=(
            boundary("barrier", 1_000_000, 2, 10.0), boundary("split", 500_000, 1, 1.0), boundary("layout", 0, 0, 0.5),
            boundary("split", 0, 0, 100.0, site=""),
        ),
        effect=Effect(
            device="trn2", regime="compile", compiler="x", bytes_before=1000, bytes_after=800, kernels_before=10,
            kernels_after=15, lost_elsewhere=7,
            collectives_before=6, collectives_after=6, step_before=step(100.0), step_after=step(120.0), choices=(),
            compile=CompileInfo(specialisations=2, executables=3, seconds=60.0, low_s=60, high_s=60, basis="measured", why="run"),
        ),
        summary=Summary(
            kernels=("qkv", "rope"), policy="all", kinds={"qkv": kind(5, 4, 3, 1, 2), "rope": kind(4, 2, 1, 0, 0)}
        ),
        verdicts=(Verdict(kernel="qkv", verdict="slower", **verdict), Verdict(kernel="rope", verdict="slower", **verdict)),
    )  # fmt: skip


def test_metrics_are_those_of_the_report(report):
    assert metrics(report) == KNOWN
    assert set(KNOWN) == {*METRICS, *BY_KIND, *(f"{n}.{k}" for n in BY_KIND for k in ("qkv", "rope"))}


@pytest.mark.parametrize("name", KNOWN)
def test_a_limit_breaks_just_beyond_the_value_found(report, name):
    value = KNOWN[name]
    check(report, [parse_limit(f"{name} > {value}"), parse_limit(f"{name} < {value}"), parse_limit(f"{name}!={value}")])
    for broken in (
        f"{name} > {value - 0.1}",
        f"{name}<{value + 0.1}",
        f"{name}>={value}",
        f"{name}<={value}",
        f"{name}=={value}",
    ):
        with pytest.raises(CheckFailed, match=name):
            check(report, [parse_limit(broken)])


def test_every_broken_limit_has_its_line(report):
    with pytest.raises(CheckFailed) as failed:
        check(
            report,
            [parse_limit(t) for t in ("barriers>0", "splits>9", "predicted_slowdown>1.02", "boundary_bytes>1MB")],
        )
    assert failed.value.args == (
        "limit broken: barriers > 0 (--fail-on): found 1",
        "limit broken: predicted_slowdown > 1.02 (--fail-on): found 1.2",
        "limit broken: boundary_bytes > 1000000 (--fail-on): found 1500000",
    )
    assert str(failed.value).count("\n") == 2


@pytest.mark.parametrize("limit", ["step_us > 1e9", "compile_s < 0", "predicted_slowdown>9", "executables>9"])
def test_what_is_not_known_breaks_its_limit(report, limit):
    unknown = report.model_copy(update={"effect": None})
    with pytest.raises(CheckFailed, match="not known"):
        check(unknown, [parse_limit(limit)])


def test_boundaries_without_a_cost_and_steps_of_no_time_are_not_known(report):
    some = report.boundaries[0].model_copy(update={"cost_us": None})
    assert metrics(report.model_copy(update={"boundaries": (some,)}))["boundary_us"] is None
    effect = report.effect.model_copy(update={"step_before": step(0.0)})
    assert metrics(report.model_copy(update={"effect": effect}))["predicted_slowdown"] is None


def test_runs_of_the_very_case_count_before_the_model(report):
    verdict = Verdict(
        kernel="qkv", regime="compile", verdict="neutral", why="run", basis="measured", ratio=1.015, predicted_s=2.0
    )
    known = report.model_copy(update={"effect": report.effect.model_copy(update={"measured": verdict})})
    assert metrics(known)["predicted_slowdown"] == 1.015
    check(known, [parse_limit("predicted_slowdown > 1.02")])


def test_a_kind_that_the_report_lacks(report):
    with pytest.raises(InputError, match="no kind 'flash' is looked for; there are qkv, rope"):
        check(report, [parse_limit("missed.flash>0")])
    with pytest.raises(InputError, match="no kind 'flash'"):
        parse_limit("missed.flash>0", kinds=["qkv"])


NUMBERS = {
    "10": 10, "1.02": 1.02, "5k": 5e3, "5 K": 5e3, "100MB": 1e8, "1.5GB": 1.5e9, "2GiB": 2 * 2**30, "1e3": 1e3, "-3": -3,
    "7B": 7, ".5M": 5e5, "1TB": 1e12,
}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers(text):
    assert parse_limit(f"extra_bytes>{text}").value == NUMBERS[text]


BAD = [
    ("", "give a metric"), ("barriers", "give a metric"), ("barriers>", "give a metric"), (">10", "give a metric"),
    ("barriers = 10", "give a metric"), ("barriers > ten", "is not a number"), ("barriers>10 apples", "is not a number"),
    ("barriers>1e999", "is not a number"), ("barriers>nan", "is not a number"),
    ("bariers>10", "unknown metric 'bariers'; known: bound"),
    ("barriers.qkv>1", "unknown metric"), ("barriers=>10", "give a metric"), ("barriers>>10", "is not a number"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), BAD)
def test_bad_expressions(text, problem):
    with pytest.raises(InputError, match=problem):
        parse_limit(text)


@given(
    st.sampled_from([*METRICS, *BY_KIND, "missed.qkv"]),
    st.sampled_from([">", ">=", "<", "<=", "==", "!="]),
    st.floats(-1e12, 1e12, allow_subnormal=False),
    st.sampled_from([("", 1), ("k", 1e3), ("MB", 1e6), ("Ki", 1024)]),
    st.text(" \t", max_size=3),
)
def test_expressions_read_back(metric, compare, number, unit, blank):
    limit = parse_limit(f"{blank}{metric}{blank}{compare}{blank}{number!r}{unit[0]}{blank}")
    assert (limit.metric, limit.compare, limit.value) == (metric, compare, number * unit[1])


@given(st.text())
def test_any_text_is_a_limit_or_an_input_error(text):
    for candidate in (text, f"barriers>{text}", f"{text}>1"):
        try:
            limit = parse_limit(candidate)
        except InputError:
            continue
        assert abs(limit.value) < float("inf")


def write(tmp_path, text):
    path = tmp_path / "budget.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_budget_file(tmp_path, report):
    path = write(
        tmp_path, "fail_on = ['kernels.qkv < 4']\n[limits]\nbarriers = 1\nboundary_bytes = '1MB'\nmissed.qkv = 1\nstep_us = 120.0\n"
    )  # fmt: skip
    limits = read_budget(path, ["qkv", "rope"])
    assert [str(x) for x in limits] == [
        "barriers > 1", "boundary_bytes > 1000000", "missed.qkv > 1", "step_us > 120", "kernels.qkv < 4",
    ]  # fmt: skip
    with pytest.raises(CheckFailed) as failed:
        check(report, limits)
    assert [line.split(" (")[0] for line in failed.value.args] == [
        "limit broken: boundary_bytes > 1000000", "limit broken: missed.qkv > 1", "limit broken: kernels.qkv < 4",
    ]  # fmt: skip
    assert str(path) in failed.value.args[0]


FILES = [
    ("limits = 3", "is a table"), ("fail_on = 'barriers>1'", "a list"), ("fail_on = [3]", "fail_on holds 3"),
    ("[limit]\nbarriers = 3", "unknown 'limit'"), ("", "has no limit"), ("[limits]\nbarriers = true", "barriers = True"),
    ("[limits]\nbariers = 3", "unknown metric"), ("[limits]\nbarriers = [1]", "barriers = "), ("[limits\n", "not TOML"),
    ("[limits]\nbarriers = inf", "is not a number"), (b"\xff\xfe", "not TOML"), ("fail_on = ['x']", "give a metric"),
    ("[limits]\nmissed.flash = 1", "no kind 'flash'"), ("[limits]\nbarriers = " + "9" * 5000, "not TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), FILES)
def test_bad_budget_files(tmp_path, text, problem):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=problem) as error:
        read_budget(path, ["qkv"])
    assert str(path) in str(error.value)


def test_budget_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"absent.toml: cannot be read"):
        read_budget(tmp_path / "absent.toml")
