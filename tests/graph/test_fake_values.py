"""Results of kernel ops on traced values, asked for once where blocks repeat."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph

from fluxrewrite.errors import RewriteError
from fluxrewrite.graph.fake_values import FakeCalls
from fluxrewrite.kernel import load_kernels

ASKED = []


@torch.library.custom_op("traced_test::halves", mutates_args=())
def halves(x: torch.Tensor, parts: int, scale: float = 1.0) -> list[torch.Tensor]:
    raise AssertionError("only asked for its shapes")


@halves.register_fake
def _(x, parts, scale=1.0):
    ASKED.append((tuple(x.shape), parts, scale))
    return [x.new_empty((x.shape[0] // parts, *x.shape[1:])) for _ in range(parts)]


halves.register_autocast("cpu", torch.bfloat16)


@torch.library.custom_op("traced_test::fill", mutates_args=("x",))
def fill(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError


@fill.register_fake
def _(x):
    ASKED.append("fill")
    return torch.empty_like(x)


HALVES, FILL = torch.ops.traced_test.halves.default, torch.ops.traced_test.fill.default


@pytest.fixture
def call():
    """`call(op, sizes, *args)`: the result for a fake tensor of these sizes, all by one `FakeCalls`."""
    mode, graph, calls = FakeTensorMode(), Graph(), FakeCalls()
    ASKED.clear()

    def run(op, sizes, *args, strides=None, dtype=torch.float32, device="cpu"):
        node = graph.placeholder("x")
        with mode:
            x = torch.empty(sizes, dtype=dtype, device=device)
            node.meta["val"] = x if strides is None else x.as_strided(sizes, strides)
        return calls.run(graph.call_function(op, (node, *args)))

    return run


def same(a, b):
    return (a.shape, a.stride(), a.dtype, a.device, a.fake_mode) == (
        b.shape,
        b.stride(),
        b.dtype,
        b.device,
        b.fake_mode,
    )


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
def test_equal_calls_run_once(call, device):
    first, second = (call(HALVES, (4, 6), 2, device=device) for _ in range(2))
    assert ASKED == [((4, 6), 2, 1.0)]
    assert type(second) is type(first)
    assert all(map(same, first, second))
    storages = {t.untyped_storage()._cdata for t in (*first, *second)}
    assert len(storages) == 4  # results are not views of one another


@pytest.mark.parametrize(
    "other",
    [
        {"sizes": (6, 6)},
        {"parts": 1},
        {"more": (2.0,)},
        {"dtype": torch.float64},
        {"strides": (1, 4)},
    ],
    ids=str,
)
def test_calls_that_differ_run_again(call, other):
    given = {"sizes": (4, 6), "parts": 2, "more": (), "dtype": torch.float32, "strides": None, **other}
    call(HALVES, (4, 6), 2)
    result = call(
        HALVES, given["sizes"], given["parts"], *given["more"], strides=given["strides"], dtype=given["dtype"]
    )
    assert len(ASKED) == 2
    assert len(result) == given["parts"]
    assert result[0].dtype == given["dtype"]


def test_autocast_is_another_case(call):
    (plain, _) = call(HALVES, (4, 6), 2)
    with torch.autocast("cpu", torch.bfloat16):
        (cast, _) = call(HALVES, (4, 6), 2)
    assert (plain.dtype, cast.dtype) == (torch.float32, torch.bfloat16)


def test_an_op_that_writes_and_plain_functions_run_every_time(call):
    for _ in range(2):
        call(FILL, (2, 2))
    assert ASKED == ["fill", "fill"]
    a, b = call(torch.t, (2, 3)), call(torch.t, (2, 3))
    assert a.untyped_storage()._cdata != b.untyped_storage()._cdata


def test_symbolic_sizes_run_every_time():
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    ASKED.clear()
    mode, graph, calls = FakeTensorMode(shape_env=ShapeEnv()), Graph(), FakeCalls()
    node = graph.placeholder("x")
    node.meta["val"] = mode.from_tensor(torch.ones(4, 6), static_shapes=False)
    for _ in range(2):
        calls.run(graph.call_function(HALVES, (node, 2)))
    assert len(ASKED) == 2


def test_without_fake_values_it_says_so():
    graph = Graph()
    node = graph.call_function(HALVES, (graph.placeholder("x"), 2))
    with pytest.raises(RewriteError, match="was not traced with shapes"):
        FakeCalls().run(node)


@pytest.mark.parametrize("name", sorted(load_kernels()))
def test_the_ops_that_ship_write_to_nothing_and_return_no_view(name):
    schema = load_kernels()[name].op._schema
    assert all(a.alias_info is None for a in (*schema.arguments, *schema.returns))
