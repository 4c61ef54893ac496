import pytest

from fluxrewrite.cost import Work, estimate, load_device
from fluxrewrite.cost.devices import Device, Figure
from fluxrewrite.errors import InputError


def figure(value, unit, basis="documented", **more):
    return Figure(value=value, unit=unit, basis=basis, source="test", **more)


@pytest.fixture
def device():
    return Device(
        schema="fluxrewrite.device/1",
        name="toy",
        title="toy",
        core="core",
        regimes=("compile",),
        compiler="inductor",
        runs_kernels=True,
        memory=figure(100, "GB/s", low=50, high=200),
        vector=figure(10, "Gelem/s"),
        matmul={"bfloat16": figure(2, "TFLOP/s"), "float32": figure(0.5, "TFLOP/s")},
        kernel=figure(3, "us"),
        call=figure(5, "us"),
        launch=figure(100, "us", "assumed", low=20, high=400),
    )


def test_each_term(device):
    assert estimate(device, Work(bytes=1_000_000)).us == pytest.approx(10)  # 10^6 / 100 * 10^9 s
    assert estimate(device, Work(flops=4e6)).us == pytest.approx(2)
    assert estimate(device, Work(flops=4e6, dtype="fp32")).us == pytest.approx(8)
    assert estimate(device, Work(elements=40_000)).us == pytest.approx(4)
    assert estimate(device, Work(kernels=2)).us == pytest.approx(6)
    assert estimate(device, Work(calls=3)).us == pytest.approx(15)
    assert estimate(device, Work(launches=1)).us == pytest.approx(100)


@pytest.mark.parametrize(
    ("work", "us", "bound"),
    [
        (Work(bytes=1_000_000, flops=4e6, elements=40_000), 10, "memory"),
        (Work(bytes=1_000_000, flops=40e6, elements=40_000), 20, "matmul"),
        (Work(bytes=1_000_000, flops=4e6, elements=400_000), 40, "vector"),
        (Work(bytes=1_000_000, flops=4e6, kernels=1, calls=3), 28, "call"),
        (Work(bytes=1_000_000, kernels=4, calls=1, launches=1), 127, "launch"),
        (Work(), 0, "nothing"),
    ],
)
def test_the_slowest_unit_decides_and_fixed_costs_come_on_top(device, work, us, bound):
    found = estimate(device, work)
    assert found.us == pytest.approx(us)
    assert found.bound == bound


def test_ranges_go_through(device):
    found = estimate(device, Work(bytes=1_000_000, calls=1, launches=2))
    assert (found.low_us, found.us, found.high_us) == (pytest.approx(50), pytest.approx(215), pytest.approx(825))


def test_a_range_can_make_another_unit_the_slowest(device):
    found = estimate(device, Work(bytes=1_000_000, flops=16e6))
    assert (found.low_us, found.us, found.high_us) == (pytest.approx(8), pytest.approx(10), pytest.approx(20))


def test_basis_is_that_of_the_figure_that_decides(device):
    assert estimate(device, Work(bytes=1e9, launches=1)).basis == "modelled"
    assert estimate(device, Work(bytes=1e6, launches=1)).basis == "assumed"
    assert estimate(load_device("cpu"), Work(bytes=1e6)).basis == "assumed"
    assert estimate(load_device("cpu"), Work()).basis == "modelled"


def test_why_shows_the_arithmetic(device):
    why = estimate(device, Work(bytes=1_000_000, launches=1)).why
    assert why == "toy: memory 10 us (100 GB/s, documented) + launch 100 us (100 us, assumed)"
    assert estimate(device, Work()).why == "toy: no work"


def test_flops_of_an_unknown_dtype(device):
    with pytest.raises(InputError, match="no matmul rate for float64"):
        estimate(device, Work(flops=1, dtype="float64"))


def test_roofline_of_a_klein_step_is_far_below_what_was_measured():
    """5.8 TFLOP and 7.7 GB of weights on four ranks: about 10 ms, where the experiments took 824 ms and more."""
    found = estimate(load_device("trn2"), Work(bytes=7.7e9 / 4, flops=5.8e12 / 4))
    assert found.us == pytest.approx(5.8e6 / 4 / 158, rel=1e-6)
    assert found.bound == "matmul"
