import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.fusion import fuse
from fluxrewrite.fusion.boundary.step_time import Calls, calls_for, step_time
from fluxrewrite.fusion.boundary.target import Target
from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection

HEADS, TOKENS, SIZE = 2, 64, 32


def heads(dtype=torch.float32):
    return torch.randn(1, HEADS, TOKENS, SIZE).to(dtype)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def timed(gm, target, executables=1):
    view = GraphView(gm.graph)
    return step_time(view, fuse(view, target.rules), target, Calls(), executables)


def test_a_loop_takes_its_traffic_and_one_kernel(trace):
    target = Target.of("trn2", "compile", "inductor")
    device = target.device
    bytes = 2 * HEADS * TOKENS * SIZE * 4
    found = timed(trace(lambda x: x.relu() * 2, x=heads()), target)
    assert found.us == pytest.approx(bytes / device.memory.value / 1e3 + device.kernel.value)


def test_a_product_takes_the_longer_of_traffic_and_arithmetic(trace):
    target = Target.of("trn2", "compile", "inductor")
    device = target.device
    n = 4096
    found = timed(trace(lambda x, y: x @ y, x=torch.empty(n, n, dtype=torch.bfloat16, device="meta"),
                        y=torch.empty(n, n, dtype=torch.bfloat16, device="meta")), target)  # fmt: skip
    arithmetic = 2 * n**3 / device.matmul["bfloat16"].value / 1e6
    assert arithmetic > 3 * n * n * 2 / device.memory.value / 1e3
    assert found.us == pytest.approx(arithmetic + device.kernel.value)


def test_a_dtype_without_a_rate_takes_the_slowest(trace):
    n = 512
    target = Target.of("trn2", "compile", "inductor")
    assert "float64" not in target.device.matmul
    slowest = min(f.value for f in target.device.matmul.values())
    meta = [torch.empty(n, n, dtype=torch.float64, device="meta") for _ in "xy"]
    found = timed(trace(lambda x, y: x @ y, x=meta[0], y=meta[1]), target)
    traffic = 3 * n * n * 8 / target.device.memory.value / 1e3
    assert found.us == pytest.approx(max(2 * n**3 / slowest / 1e6, traffic) + target.device.kernel.value)


@pytest.mark.parametrize("device", ["trn1", "trn2", "trn3", "cpu"])
def test_each_further_executable_costs_a_launch(trace, device):
    target = Target.of(device)
    gm = trace(lambda x: x.relu(), x=heads())
    one, three = timed(gm, target), timed(gm, target, executables=3)
    assert three.us - one.us == pytest.approx(2 * target.device.launch.value)
    assert one.low_us <= one.us <= one.high_us
    assert three.high_us - one.high_us == pytest.approx(2 * target.device.launch.range[1])
    if target.device.launch.basis == "assumed":
        assert three.basis == "assumed"


def test_an_empty_graph_takes_no_time(trace):
    view = GraphView(torch.fx.symbolic_trace(lambda x: x).graph)
    target = Target.of("trn2")
    found = step_time(view, fuse(view, target.rules), target, Calls())
    assert (found.us, found.low_us, found.high_us) == (0, 0, 0)


def test_calls_have_the_products_that_stood_in_their_place(trace):
    def fn(x, y):
        return F.scaled_dot_product_attention(x, y, y)

    view = GraphView(trace(fn, x=heads(), y=torch.randn(1, HEADS, 96, SIZE)).graph)
    (decision,) = make_plan(view, Selection.of("attention", "reference")).decisions
    made = calls_for(view, {"call": decision.finding}, Target.of("trn2"), {})
    assert made.flops == {"call": 2 * 2 * HEADS * TOKENS * 96 * SIZE}
    assert made.known == {}


def test_where_the_body_runs_each_of_its_operations_is_a_kernel(trace):
    """rotate has mul, neg, cat, mul and add: five kernels, all from and to memory."""
    inputs = {"x": heads(), "cos": torch.randn(TOKENS, SIZE), "sin": torch.randn(TOKENS, SIZE)}
    view = GraphView(trace(rotate, **inputs).graph)
    (decision,) = make_plan(view, Selection.of("rope", "reference")).decisions
    target = Target.of("cpu")
    made = calls_for(view, {"call": decision.finding}, target, {})
    assert made.flops == {"call": 0}
    one, table = HEADS * TOKENS * SIZE * 4, TOKENS * SIZE * 4
    bytes = 2 * (one + table + one) + (one // 2) * 2 + 2 * one + 3 * one
    device = target.device
    expected = bytes / device.memory.value / 1e3 + 5 * device.kernel.value + device.call.value
    assert made.known["call"].us == pytest.approx(expected)
