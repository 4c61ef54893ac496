import math
from dataclasses import replace

import fluxrewrite.kernels.attention  # noqa: F401  # registers the op
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


def own_call(x):
    """With a call that the model makes itself, in front of a site."""
    y = torch.ops.fluxrewrite.attention(x.relu(), x, x, scale=0.25) + 1
    return F.scaled_dot_product_attention(y, y, y) * 2


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
    change = effect_of(view, rewritten.graph, plan.replacements(), target(regime=regime))
    assert priced(target(regime=regime)) == pytest.approx((change.before.us, change.after.us))


def test_a_call_of_the_models_own_is_in_both_times(trace):
    gm, on = trace(own_call, x=torch.randn(1, 2, 8, 16)), target(regime="lazy")
    view = GraphView(gm.graph)
    rewritten, plan = apply(gm, make_plan(view, Selection.of("attention", "reference")))
    (site,) = [r.site for r in plan.replacements()]
    (block,) = blocks(view, [site])
    change = effect_of(view, rewritten.graph, plan.replacements(), on)
    price = Predicted(view, on, Case(device="trn2", regime="lazy"), {})
    without, taken = (p.us for p in price(block, [[], [site]]))
    assert (without, taken) == pytest.approx((change.before.us, change.after.us))


def test_a_call_of_the_models_own_that_a_site_replaces_starts_no_executable(trace):
    gm, on = trace(own_call, x=torch.randn(1, 2, 8, 16)), target(regime="lazy")
    view = GraphView(gm.graph)
    (site,) = [d.finding for d in make_plan(view, Selection.of("attention", "reference")).decisions if d.kernel]
    before = tuple(n for n in view.nodes if n.op == "call_function" and view.order(n) < view.order(site.outputs[0]))
    whole = replace(site, interior=before)
    (block,) = blocks(view, [whole])
    price = Predicted(view, on, Case(device="trn2", regime="lazy"), {})
    apart, together = (p.us for p in price(block, [[site], [whole]]))
    # relu | call | add | call | mul, against relu | call | mul: two kernels less, one of them a call
    fixed = 2 * on.device.launch.value + 2 * on.device.kernel.value + on.device.call.value
    assert apart - together == pytest.approx(fixed, abs=0.1)


def test_where_the_body_runs_it_costs_a_call_and_its_operations(priced):
    """On a CPU a call is the op's body: of attention one library call, which ran before too."""
    without, taken = priced(target(device="cpu"))
    assert taken == pytest.approx(without + target(device="cpu").device.call.value)
