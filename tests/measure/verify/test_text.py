"""Records made by hand, and what a terminal shows of them."""

import io

import pytest
from rich.console import Console

from fluxrewrite.errors import CheckFailed
from fluxrewrite.measure.verify import judge
from fluxrewrite.measure.verify.records import LoopResult, Moments, Setting, SiteResult, StepResult, Verification
from fluxrewrite.measure.verify.text import rendered

SETTING = Setting(
    model="mine:model",
    dtype="float32",
    kernels=("qkv", "rope"),
    policy="auto",
    provider="builtin",
    execution="reference",
    inner="eager",
    steps=2,
    seed=7,
    versions={},
)
SITE = SiteResult(
    graph=0,
    kind="qkv",
    form="triple",
    path="blocks.0.attn",
    node="query",
    choice="kernel",
    shapes={"sequence": 24},
    dtype="float32",
    max_abs=1e-6,
    relative=2e-6,
    norm=3e-6,
    cosine=0.99999995,
    tolerance=1e-5,
    norm_tolerance=5e-6,
    least_cosine=0.9999,
)
FLAT = Moments(min=-1, max=1, mean=0, std=0.5)
STEP = StepResult(step=1, original=FLAT, rewritten=FLAT, max_abs=0.1, relative=0.1, cosine=0.99995, least_cosine=0.9999)
STEPS = (STEP, STEP.model_copy(update={"step": 2}))


def site(**changes):
    return SITE.model_copy(update=changes)


def found(sites=(SITE,), steps=STEPS, note=""):
    return Verification(setting=SETTING, sites=sites, loop=LoopResult(steps=steps, note=note), seconds=1.25)


def text(verification):
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(rendered(verification))
    return captured.get()


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"relative": 1e-5, "norm": 5e-6, "cosine": 0.9999}, True),
        ({"relative": 1.01e-5}, False),
        ({"norm": 5.01e-6}, False),
        ({"cosine": 0.99989}, False),
        ({"cosine": None, "relative": None, "norm": None, "max_abs": None, "note": "why"}, False),
        ({"tolerance": 0.0, "norm_tolerance": 0.0}, False),
        ({"tolerance": 0.0, "norm_tolerance": 0.0, "relative": 0.0, "norm": 0.0, "cosine": 1.0}, True),
    ],
)
def test_limits_of_a_site(changes, passed):
    assert site(**changes).passed == passed


def test_equal_blocks_are_one_row_with_the_worst_of_each_column():
    worse = site(path="blocks.1.attn", max_abs=5e-6, cosine=0.9999)
    inline = site(path="blocks.0.attn", choice="inline")
    rows = text(found((SITE, worse, inline, site(shapes={"sequence": 12}))))
    lines = [line.split() for line in rows.splitlines() if "qkv:triple" in line]
    assert lines == [
        ["2", "qkv:triple", "of", "24", "5.0e-06", "2.0e-06", "3.0e-06", "0.9999000"],
        ["1", "inline", "qkv:triple", "of", "24", "1.0e-06", "2.0e-06", "3.0e-06", "0.9999999"],
        ["1", "qkv:triple", "of", "12", "1.0e-06", "2.0e-06", "3.0e-06", "0.9999999"],
    ]
    assert rows.count("blocks.*.attn") == 3
    assert "4 of 4 sites and 2 of 2 steps within their limits" in rows
    assert "FAILED" not in rows


def test_failures_are_named_and_missing_figures_are_dashes():
    none = dict.fromkeys(("max_abs", "relative", "norm", "cosine"))
    bad = StepResult(
        step=2,
        original=FLAT,
        rewritten=Moments(min=None, max=None, mean=None, std=None),
        max_abs=None,
        relative=None,
        cosine=None,
        least_cosine=0.9999,
        note="NaN",
    )
    broken = found((SITE, site(path="blocks.1.attn", note="kernel: boom", **none), site(norm=1.0)), (STEP, bad))
    rows = text(broken)
    assert "FAILED qkv:triple at blocks.1.attn (query): kernel: boom" in rows
    assert "FAILED qkv:triple at blocks.0.attn (query)" in [line.strip() for line in rows.splitlines()]
    assert "FAILED step 2: NaN" in rows
    assert any(line.split() == ["rewritten", *"------"] for line in rows.splitlines())
    assert "1 of 3 sites and 1 of 2 steps within their limits" in rows
    with pytest.raises(CheckFailed) as failed:
        judge(broken)
    assert failed.value.args == (
        "2 of 3 sites fail; worst: qkv:triple at blocks.1.attn (query): kernel: boom",
        "1 of 2 steps of the loop fail; worst: step 2: NaN",
    )


def test_a_loop_that_ended_early():
    ended = found(steps=(), note="step 1 of the rewritten model fails: RuntimeError: boom")
    assert "FAILED step 1 of the rewritten model fails: RuntimeError: boom" in text(ended)
    assert "1 of 1 sites and 0 of 2 steps" in text(ended)
    with pytest.raises(CheckFailed, match=r"^the loop: step 1 of the rewritten model fails: RuntimeError: boom$"):
        judge(ended)


def test_a_step_past_its_limit():
    far = STEP.model_copy(update={"cosine": 0.5})
    with pytest.raises(CheckFailed, match=r"worst: step 1: cosine 0.500000 \(limit 0.9999\)"):
        judge(found(steps=(far, STEPS[1])))
