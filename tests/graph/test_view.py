import operator

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.fx import Graph

from fluxrewrite.graph import GraphView
from fluxrewrite.graph import views as st
from fluxrewrite.graph.module_paths import module_path
from fluxrewrite.parallel import process_group


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("L['self'].__dict__['_modules']['transformer_blocks'].0.attn", "transformer_blocks.0.attn"),
        ("L['model']", ""),
        ("L['self'].model.layers.3.self_attn", "model.layers.3.self_attn"),
        ("L['self']._modules['blocks']._modules['0']", "blocks.0"),
        ("L['self']._orig_mod.a", "a"),
        ("L['self'].blocks[2].a", "blocks.2.a"),
        ("encoder.layers.0", "encoder.layers.0"),
    ],
)
def test_module_path(source, path):
    node = Graph().placeholder("x")
    node.meta["nn_module_stack"] = {"1": (source, torch.nn.Module)}
    assert module_path(node) == path


def test_module_path_without_a_stack():
    assert module_path(Graph().placeholder("x")) == ""


VIEWS = {
    "reshape": (lambda x: x.view(6, 4), (st.Reshape((6, 4)),)),
    "flatten": (lambda x: torch.flatten(x, 0, 1), (st.Reshape((6, 4)),)),
    "permute": (lambda x: x.permute(2, 0, -2), (st.Permute((2, 0, 1)),)),
    "transpose": (lambda x: x.transpose(-1, 0), (st.Permute((2, 1, 0)),)),
    "mT": (lambda x: x.mT, (st.Permute((0, 2, 1)),)),
    "aten.mT": (lambda x: torch.ops.aten.mT(x), (st.Permute((0, 2, 1)),)),
    "slice": (lambda x: x[:, 1:, ::2], (st.Slice(1, 1, 2), st.Slice(2, 0, 2, 2))),
    "negative slice": (lambda x: x[..., -2:], (st.Slice(2, 2, 2),)),
    "select": (lambda x: x[1, ..., -1], (st.Select(0, 1), st.Select(1, 3))),
    "new axis": (lambda x: x[:, None], (st.Reshape((2, 1, 3, 4)),)),
    "narrow": (lambda x: x.narrow(1, 1, 2), (st.Slice(1, 1, 2),)),
    "select method": (lambda x: x.select(-1, 2), (st.Select(2, 2),)),
    "chunk": (lambda x: x.chunk(2, -1)[1], (st.Slice(2, 2, 2),)),
    "split": (lambda x: torch.split(x, [1, 2], dim=1)[-1], (st.Slice(1, 1, 2),)),
    "unbind": (lambda x: x.unbind(1)[2], (st.Select(1, 2),)),
    "movedim": (lambda x: x.movedim(-1, 0), (st.Permute((2, 0, 1)),)),
    "movedim of two": (lambda x: torch.movedim(x, (0, 1), (1, 2)), (st.Permute((2, 0, 1)),)),
    "product with one": (lambda x: 1.0 * x, (st.Reshape((2, 3, 4)),)),
    "quotient": (lambda x: x / 1, (st.Reshape((2, 3, 4)),)),
    "dropout that is off": (lambda x: torch.nn.functional.dropout(x, 0.5, False), (st.Reshape((2, 3, 4)),)),
    "dropout of nothing": (lambda x: torch.nn.functional.dropout(x, 0.0), (st.Reshape((2, 3, 4)),)),
    "one tensor joined": (lambda x: torch.cat([x], 1), (st.Reshape((2, 3, 4)),)),
    "cast": (lambda x: x.double(), (st.Cast(True),)),
    "rounding cast": (lambda x: x.to(torch.bfloat16), (st.Cast(False),)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_what_a_view_does_is_read_from_the_values(trace, name):
    fn, expected = VIEWS[name]
    view = GraphView(trace(lambda x: fn(x).cos(), x=torch.randn(2, 3, 4)).graph)
    (user,) = view.with_op("cos")
    source, steps = view.source(user.args[0] if user.args else user.kwargs["input"])
    assert source.op == "placeholder"
    assert steps == expected


@pytest.mark.parametrize(
    "fn",
    [
        *(
            lambda x: x.int(),
            lambda x: x.view(torch.int32),
            lambda x: x.sin(),
            lambda x: x.detach(),
            lambda x: x[x.long()],
        ),
        *(lambda x: x * 2, lambda x: 1 / x, lambda x: x - 0, lambda x: torch.div(x, 1, rounding_mode="floor")),
        *(lambda x: torch.nn.functional.dropout(x, 0.5), lambda x: torch.cat([x, x])),
    ],
)
def test_what_is_no_view(trace, fn):
    gm = trace(lambda x: fn(x) + 1, x=torch.randn(2, 3))
    view = GraphView(gm.graph)
    (added,) = view.with_op("add")
    assert view.source(added.args[0]) is None


def test_looking_through_what_changes_nothing(trace):
    def fn(x):
        return x.double().float().reshape(2, 3).contiguous() + x.bfloat16().float()

    view = GraphView(trace(fn, x=torch.randn(2, 3)).graph)
    (added,) = view.with_op("add")
    (x,) = view.with_op("placeholder")
    rounded, exact = added.args[1], added.args[0]
    assert view.strip(exact, lossy=True) is x
    assert view.strip(rounded) is not x
    assert view.strip(rounded, lossy=True) is x


CHAINS = {
    "reshape undone": (lambda x: x.view(4, 6).view(-1).view(2, 3, 4), True),
    "transposes": (lambda x: x.transpose(0, 1).transpose(1, 0), True),
    "axis that comes and goes": (lambda x: x.unsqueeze(1).squeeze(1), True),
    "axis picked": (lambda x: x[None][0], True),
    "turned between": (lambda x: x.permute(2, 0, 1).flatten().view(4, 2, 3).permute(1, 2, 0), True),
    "wider and back": (lambda x: x.double().transpose(0, 1).float().transpose(0, 1), True),
    "turned": (lambda x: x.view(3, 2, 4).transpose(0, 1), False),
    "rows exchanged": (lambda x: x.view(3, 2, 4).transpose(0, 1).reshape(2, 3, 4), False),
    "rounded": (lambda x: x.half().float(), False),
}


@pytest.mark.parametrize("name", CHAINS)
def test_views_that_together_change_nothing(trace, name):
    fn, nothing = CHAINS[name]
    view = GraphView(trace(lambda x: fn(x).cos(), x=torch.randn(2, 3, 4)).graph)
    (x,), (user,) = view.with_op("placeholder"), view.with_op("cos")
    assert (view.strip(user.args[0]) is x) is nothing
    assert (view.bare(user.args[0]) is x) is nothing


def test_views_of_a_copy_that_is_written_are_not_looked_through(trace):
    def fn(x):
        copy = (x * 1).view(-1).view(2, 3)
        x.mul_(2)
        return copy.cos()

    view = GraphView(trace(fn, x=torch.randn(2, 3)).graph)
    (user,) = view.with_op("cos")
    assert view.op(view.strip(user.args[0])) == "mul"


def test_one_permutation_in_pieces(trace):
    def fn(x):
        return x.transpose(1, 2).contiguous().transpose(2, 3).cos()

    view = GraphView(trace(fn, x=torch.randn(2, 3, 4, 5)).graph)
    (x,), (user,) = view.with_op("placeholder"), view.with_op("cos")
    assert view.permuted(user.args[0], (0, 2, 3, 1)) is x
    assert view.op(view.permuted(user.args[0], (0, 1, 3, 2))) == "transpose"
    assert view.permuted(user.args[0], (0, 3, 2, 1)) is None


def test_a_permutation_of_what_was_cast_is_one_of_that_only(trace):
    view = GraphView(trace(lambda x: x.double().transpose(0, 1).cos(), x=torch.randn(2, 3)).graph)
    (user,) = view.with_op("cos")
    assert view.dtype(view.permuted(user.args[0], (1, 0))) == torch.float64
    view = GraphView(trace(lambda x: x.transpose(0, 1).double().cos(), x=torch.randn(2, 3)).graph)
    (user,) = view.with_op("cos")
    assert view.permuted(user.args[0], (1, 0)) is None


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        (lambda x: x.view(6, 4).double().transpose(0, 1), True),
        (lambda x: x.double().view(24).view(6, 4).t(), True),
        (lambda x: x.view(6, 4).transpose(0, 1), False),
        (lambda x: x.view(4, 6).double(), False),
        (lambda x: x.view(6, 4).half().double().transpose(0, 1), False),
        (lambda x: x[:1].expand(2, 3, 4).reshape(6, 4).double().transpose(0, 1), False),
        (lambda x: x[:, :, None].expand(2, 3, 5, 4)[:, :, 0].reshape(6, 4).double().t(), False),
    ],
)
def test_one_value_however_written(trace, other, alike):
    def fn(x):
        return x.view(6, 4).double().transpose(0, 1).cos(), other(x).sin()

    view = GraphView(trace(fn, x=torch.randn(2, 3, 4)).graph)
    (a,), (b,) = view.with_op("cos"), view.with_op("sin")
    assert view.alike(a.args[0], b.args[0]) is view.alike(b.args[0], a.args[0]) is alike


def test_what_a_value_only_views(trace):
    def fn(x):
        first, second = x.chunk(2)
        return (1 * first).cos() + second.sin()

    view = GraphView(trace(fn, x=torch.randn(2, 3)).graph)
    (user,) = view.with_op("cos")
    above = [user.args[0]]
    while above[-1] is not None:
        above.append(view.above(above[-1]))
    assert [view.op(n) for n in above[:-1]] == ["mul", "getitem", "chunk", "placeholder"]


def test_long_chains_are_looked_through_once(trace):
    def fn(x):
        for _ in range(300):
            x = x.contiguous()
        return x + 1

    view = GraphView(trace(fn, x=torch.randn(2)).graph)
    (added,) = view.with_op("add")
    assert view.strip(added.args[0]).op == "placeholder"
    assert len(view._stripped[False]) >= 300


def test_common_path_of_nodes(trace):
    model = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), torch.nn.Linear(2, 2)
    )
    view = GraphView(trace(model, input=torch.randn(1, 2)).graph)
    first, second, third = view.with_op("linear")
    assert view.path(first) == "0.0"
    assert view.path(first, second) == "0"
    assert view.path(first, third) == ""


def test_what_is_no_node_has_no_value_and_no_source():
    graph = Graph()
    x = graph.placeholder("x")
    graph.call_method("add_", (x, 1))
    view = GraphView(graph)
    assert view.value(3) is view.tensor(3) is view.source(3) is None
    assert view.between(3, x) == []
    assert view.written([3, [x]], 0, 9) is None
    assert view.strip([x]) == [x]
    assert view.shape([x]) is None
    assert view.tensor([x]) is view.dtype([x]) is None
    item = graph.call_function(operator.getitem, ([x, x], 0))
    item.meta["val"] = torch.empty(2)
    assert GraphView(graph).source(item) is None
    pieces = graph.call_function(torch.chunk, (3, 2))
    assert GraphView(graph).above(pieces) is None


def test_a_batched_value_is_no_tensor_of_the_graph():
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch._C._functorch._add_batch_dim(torch.randn(2, 3), 0, 1)
    view = GraphView(graph)
    assert view.value(x) is not None
    assert view.tensor(x) is None


def test_a_symbolic_size_is_no_number(trace):
    gm = trace(lambda x: x.view(x.shape[0], -1), dynamic=True, x=torch.randn(4, 6))
    view = GraphView(gm.graph)
    sizes = [n for n in view.nodes if isinstance(view.value(n), torch.SymInt)]
    assert sizes
    assert all(view.number(n) is None for n in sizes)
    assert view.number(view.value(sizes[0])) is None


def test_a_copy_on_another_device_is_no_view():
    graph = Graph()
    x = graph.placeholder("x")
    moved = graph.call_method("to", (x, "meta"))
    x.meta["val"], moved.meta["val"] = torch.empty(2), torch.empty(2, device="meta")
    assert GraphView(graph).source(moved) is None


def test_of_a_dtensor_a_rank_has_a_part_only(tmp_path):
    with process_group(0, 1, tmp_path / "store"):
        graph = Graph()
        node = graph.placeholder("x")
        node.meta["val"] = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (1,)))
        view = GraphView(graph)
        assert view.value(node) is node.meta["val"]
        assert view.tensor(node) is None
