import math

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.cost import Case
from fluxrewrite.cost.evidence import EVIDENCE_SCHEMA, Evidence, MeasuredRun, Table
from fluxrewrite.fusion.boundary.compare import effect_of
from fluxrewrite.fusion.boundary.predicted_price import Predicted
from fluxrewrite.fusion.boundary.target import Target
from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.search import blocks
from fluxrewrite.rewrite.selection import Selection

ME = {"model": "mine", "dtype": "float32", "tp": 1, "batch": 1, "image_tokens": 8, "text_tokens": 8}


def attend(x):
    y = x.relu()
    return F.scaled_dot_product_attention(y, y, y) * 2


def target(device="trn2", regime="compile", base=1.0, kernel=None, case=None):
    """A target whose evidence is one run with 10 calls of attention."""
    tables = ()
    if kernel is not None:
        runs = (
            MeasuredRun(kernels=(), warm_s_per_step=base),
            MeasuredRun(kernels=("attention",), calls={"attention": 10}, warm_s_per_step=kernel),
        )
        tables = (Table(case=Case(device=device, regime=regime, **(case or ME)), stack="s", source="t", runs=runs),)
    made = Target.of(device, regime)
    return Target(
        made.device, regime, made.rules, Evidence(schema=EVIDENCE_SCHEMA, tables=tables), made.calls_reference
    )


@pytest.fixture
def priced(trace):
    """`priced(target, case)`: microseconds without and with the call."""
    gm = trace(attend, x=torch.randn(1, 2, 8, 16))
    view = GraphView(gm.graph)
    (decision,) = make_plan(view, Selection.of("attention", "reference")).decisions
    (block,) = blocks(view, [decision.finding])

    def run(on, **case):
        price = Predicted(view, on, Case(device=on.device.name, regime=on.regime, **{**ME, **case}), {})
        return [priced.us for priced in price(block, [[], [decision.finding]])]

    return run


def test_without_evidence_the_model_counts(priced):
    without, taken = priced(target())
    assert 0 < without < taken < without + 100


def test_a_measured_call_adds_the_share_of_the_step_that_it_added(priced):
    without, taken = priced(target(kernel=1.5))
    assert taken == pytest.approx(1.5 * without)
    without, taken = priced(target(kernel=0.5))
    assert taken == pytest.approx(0.5 * without)


def test_within_the_noise_it_adds_nothing(priced):
    without, taken = priced(target(kernel=1.009))
    assert taken == without


def test_at_other_sizes_the_share_of_the_step_counts(priced):
    without, taken = priced(target(kernel=1.5, case={**ME, "image_tokens": 4096}))
    assert taken == pytest.approx(1.5 * without)


def test_runs_say_nothing_of_a_model_that_has_no_name(priced):
    assert priced(target(kernel=1.5), model=None) == priced(target())


def test_ruinous_stacks_take_no_kernel_at_all(priced):
    without, taken = priced(target(regime="lazy", kernel=2.5))
    assert math.isfinite(without)
    assert taken == math.inf
    assert math.isfinite(priced(target(regime="compile", kernel=2.5))[1])


def test_lazy_calls_pay_for_the_executables_they_make(priced):
    compiled, lazy = priced(target()), priced(target(regime="lazy"))
    launch = target().device.launch.value
    assert lazy[0] == compiled[0]
    assert lazy[1] - compiled[1] == pytest.approx(2 * launch)  # relu | call | mul


@pytest.mark.parametrize("regime", ["compile", "lazy"])
def test_of_a_whole_graph_it_is_the_time_of_the_step(priced, trace, regime):
    gm = trace(attend, x=torch.randn(1, 2, 8, 16))
    view = GraphView(gm.graph)
    rewritten, plan = apply(gm, make_plan(view, Selection.of("attention", "reference")))
    change = effect_of(view, rewritten.graph, plan, target(regime=regime))
    assert priced(target(regime=regime)) == pytest.approx((change.before.us, change.after.us))


def test_where_the_body_runs_it_is_called_beside_its_operation(priced):
    """On a CPU a call is the op's body: of attention one library call, which ran before too."""
    without, taken = priced(target(device="cpu"))
    assert taken == pytest.approx(without + target(device="cpu").device.call.value)
