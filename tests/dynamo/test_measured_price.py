"""Policy "measure": real blocks on the inner backend, slow and fast kernels planted in it."""

import json
import logging
import time

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.kernels.attention import KERNEL as ATTENTION
from torch import nn

import fluxrewrite
from fluxrewrite.dynamo.measured_price import ROUNDS, SCREENING, interleaved, relative, sample
from fluxrewrite.errors import InputError, RewriteError
from fluxrewrite.graph import GraphView
from fluxrewrite.graph.subgraph import Operand, extract
from fluxrewrite.provider.digests import kernel_text
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.search import Priced, choose
from fluxrewrite.rewrite.selection import Selection

CPU = torch.device("cpu")
SDPA, KERNEL = F.scaled_dot_product_attention, ATTENTION.op


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = (layer(x).view(b, s, 2, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v)


class Stack(nn.Module):
    def __init__(self, blocks=3):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).transpose(1, 2).flatten(2)
        return x


class Inner:
    """A compiler whose programs sleep when they hold one of these calls, or fail; it counts what it compiles."""

    def __init__(self, slow=(), fails=(), fails_at_run=()):
        self.slow, self.fails, self.fails_at_run = slow, fails, fails_at_run
        self.compiled = []

    def __call__(self, gm, example_inputs):
        targets = [n.target for n in gm.graph.nodes]
        self.compiled.append(gm)
        if any(t in self.fails for t in targets):
            raise RuntimeError("out of cheese")
        pause = 0.02 * any(t in self.slow for t in targets)

        def run(*inputs):
            if any(t in self.fails_at_run for t in targets):
                raise MemoryError("out of memory")
            time.sleep(pause)
            return gm.forward(*inputs)

        return run


def measured(inner, tmp_path, model=None, kernels="attention", dynamic=None, size=5, **options):
    """The backend after one compile; the results are checked."""
    torch._dynamo.reset()
    options.setdefault("proof", "structural")  # proofs are files beside those of times
    backend = fluxrewrite.backend(inner=inner, kernels=kernels, policy="measure", cache_dir=tmp_path, **options)
    model, x = model or Stack(), torch.randn(2, size, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend, dynamic=dynamic)(x), model(x))
    return backend


def choices(backend):
    return {c.block: c for c in backend.reports[-1].effect.choices}


def test_a_slow_kernel_is_not_chosen(tmp_path):
    choice = choices(measured(Inner(slow=[KERNEL]), tmp_path))["layers.0"]
    assert (choice.chosen, choice.blocks, choice.basis) == ("none", 3, "measured")
    assert choice.times_us["attention:sdpa"] > choice.times_us["none"] > 0


def test_a_fast_kernel_is_chosen(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fluxrewrite")
    inner = Inner(slow=[SDPA])
    backend = measured(inner, tmp_path)
    assert choices(backend)["layers.0"].chosen == "attention:sdpa"
    assert backend.reports[0].summary.kinds["attention"].rewritten == 3
    assert [n.target for n in inner.compiled[-1].graph.nodes].count(KERNEL) == 3
    table = next(m for m in caplog.messages if "layers.0: measured" in m).splitlines()
    assert [line.split()[-1] for line in table[1:]] == ["none", "attention:sdpa"]


def test_each_distinct_block_is_compiled_once_for_each_set(tmp_path):
    inner = Inner()
    measured(inner, tmp_path)
    parts = inner.compiled[:-1]
    assert len(parts) == 2  # one kind of block: without and with the kernel
    assert [len([n for n in p.graph.nodes if n.target in (SDPA, KERNEL)]) for p in parts] == [1, 1]


def test_known_times_are_not_measured_again(tmp_path):
    first, second = Inner(slow=[SDPA]), Inner(slow=[SDPA])
    known = choices(measured(first, tmp_path))
    assert len(first.compiled) == 3
    assert choices(measured(second, tmp_path)) == known
    assert len(second.compiled) == 1  # the model alone


@pytest.mark.parametrize("change", ["size", "threads", "inner", "dtype"])
def test_other_circumstances_are_measured_again(tmp_path, change, monkeypatch):
    measured(Inner(), tmp_path)
    again, model, size = Inner(), Stack(), 5
    if change == "size":
        size = 6
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "inner":
        again.__name__ = "another"
    else:
        x = torch.randn(2, 5, 16, dtype=torch.bfloat16)
        backend = fluxrewrite.backend(inner=again, kernels="attention", policy="measure", cache_dir=tmp_path)
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(model.bfloat16(), backend=backend)(x)
        assert len(again.compiled) == 3
        return
    measured(again, tmp_path, size=size)
    assert len(again.compiled) == 3


def test_a_kernel_with_another_source_is_measured_again(tmp_path, monkeypatch):
    measured(Inner(), tmp_path)
    monkeypatch.setattr("fluxrewrite.dynamo.measured_price.kernel_text", lambda kernel: kernel_text(kernel) + " edited")
    again = Inner()
    measured(again, tmp_path)
    assert len(again.compiled) == 3  # the kernel, and the block without it beside it
    (file,) = tmp_path.iterdir()
    assert len(json.loads(file.read_text())["times"]) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_": "other/1", "times": {}}', '{"times": {"a": {"us": "x"}}}'])
def test_files_that_hold_no_times_are_replaced(tmp_path, caplog, text):
    measured(Inner(), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    again = Inner()
    measured(again, tmp_path)
    assert len(again.compiled) == 3
    assert "is not a file of times" in caplog.text
    assert len(json.loads(file.read_text())["times"]) == 2


def test_a_folder_that_cannot_be_written_is_said(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert choices(measured(Inner(slow=[SDPA]), tmp_path / "file"))["layers.0"].chosen == "attention:sdpa"
    assert "give a writable cache_dir" in caplog.text


@pytest.mark.parametrize("how", ["fails", "fails_at_run"])
def test_a_kernel_that_fails_is_out(tmp_path, caplog, how):
    backend = measured(Inner(slow=[SDPA], **{how: [KERNEL]}), tmp_path, strict=True)
    assert choices(backend)["layers.0"].chosen == "none"
    assert list(choices(backend)["layers.0"].times_us) == ["none"]
    assert caplog.text.count("cannot be measured") == 1


def test_a_kernel_that_cannot_be_put_in_is_out(tmp_path, caplog, monkeypatch):
    def emit(*_):
        raise RewriteError("no room")

    monkeypatch.setattr("fluxrewrite.passes.attention.attention.Attention.emit", emit)
    assert choices(measured(Inner(slow=[SDPA]), tmp_path))["layers.0"].chosen == "none"
    assert "no room" in caplog.text


def test_where_the_block_itself_fails_all_is_kept(tmp_path, caplog):
    class Parts(Inner):
        def __call__(self, gm, example_inputs):
            if len(gm.graph.find_nodes(op="call_function", target=SDPA)) == 1:
                raise RuntimeError("cannot")
            return super().__call__(gm, example_inputs)

    backend = measured(Parts(), tmp_path)
    assert backend.reports[0].summary.kinds["attention"].rewritten == 0
    assert "failed in choosing kernels (RuntimeError: cannot)" in caplog.text
    with pytest.raises(Exception, match="cannot"):
        measured(Parts(), tmp_path, strict=True)


def test_symbolic_sizes(tmp_path):
    inner = Inner(slow=[SDPA])
    assert choices(measured(inner, tmp_path, dynamic=True, provider="reference"))["layers.0"].chosen == "attention:sdpa"
    for part in inner.compiled[:-1]:
        assert not any(
            n.op == "placeholder" and isinstance(n.meta.get("example_value"), torch.SymInt) for n in part.graph.nodes
        )
    assert any(isinstance(n.meta.get("example_value"), torch.SymInt) for n in inner.compiled[-1].graph.nodes)


@pytest.mark.parametrize("fixture", ["flux2", pytest.param("flux1", marks=pytest.mark.slow)])
def test_flux(fixture, tmp_path, request, monkeypatch):
    monkeypatch.setattr("fluxrewrite.dynamo.measured_price.SECONDS", 0.2)
    model, inputs = request.getfixturevalue(fixture)()
    backend = fluxrewrite.backend(
        inner="eager", policy="measure", provider="reference", strict=True, cache_dir=tmp_path
    )
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(**inputs)[0], model(**inputs)[0])
    found = choices(backend)
    assert {"transformer_blocks.0", "single_transformer_blocks.0"} <= set(found)
    assert sum(choice.blocks for choice in found.values()) == 4
    for choice in found.values():
        assert choice.basis == "measured"
        assert len(choice.times_us) >= 5
        assert all(us > 0 for us in choice.times_us.values())


@pytest.mark.slow
def test_flux2_on_inductor(flux2, tmp_path):
    model, inputs = flux2()
    backend = fluxrewrite.backend(policy="measure", provider="reference", strict=True, cache_dir=tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(**inputs)[0], model(**inputs)[0])
    assert {c.basis for c in choices(backend).values()} == {"measured"}


def test_inductor_inside_a_compile(tmp_path):
    backend = measured("inductor", tmp_path, strict=True)
    assert set(choices(backend)["layers.0"].times_us) == {"none", "attention:sdpa"}


def test_inspect_refuses_to_measure():
    with pytest.raises(InputError, match=r"use it in fluxrewrite\.backend, or 'auto'"):
        fluxrewrite.inspect(Stack(), {"x": torch.randn(2, 5, 16)}, options=fluxrewrite.Options(policy="measure"))


def test_a_part_computes_what_the_graph_computes(trace):
    model, x = Stack(1), torch.randn(2, 5, 16)
    with torch.no_grad():
        gm = trace(model, x=x)
    computed = [n for n in gm.graph.nodes if n.op == "call_function" or n.op == "call_method"]
    part = extract(gm, computed)
    values = {**{o.name: None for o in part.operands}}
    known = {tuple(p.shape): p for p in model.parameters()}
    assert len(values) == 7
    inputs = [x if o.shape == (2, 5, 16) else known[o.shape].detach() for o in part.operands]
    expected = gm.forward(
        *[
            x if n.meta["example_value"].dim() == 3 else known[n.meta["example_value"].shape].detach()
            for n in gm.graph.find_nodes(op="placeholder")
        ]
    )
    torch.testing.assert_close(part.module(*inputs)[0], expected[0])


def test_tuples_and_sizes_cross_the_border_of_a_part(trace):
    def model(x):
        a, b = x.chunk(2, -1)
        return (a + b.shape[1]).split(1)

    gm = trace(model, x=torch.randn(2, 4))
    nodes = [n for n in gm.graph.nodes if n.op in ("call_function", "call_method")]
    x = torch.randn(2, 4)
    (chunk,) = (n for n in nodes if n.target == "chunk" or getattr(n.target, "__name__", "") == "chunk")
    after = extract(gm, nodes[nodes.index(chunk) + 1 :])
    assert [o.shape for o in after.operands] == [(2, 2), (2, 2)]
    torch.testing.assert_close(after.module(*x.chunk(2, -1)), model(x))
    torch.testing.assert_close(extract(gm, [chunk]).module(x), x.chunk(2, -1))


def test_digests_know_structure_and_sizes_but_no_names(trace):
    def part(fn, *shape):
        torch._dynamo.reset()
        gm = trace(fn, x=torch.randn(*shape))
        return extract(gm, [n for n in gm.graph.nodes if n.op in ("call_function", "call_method")]).digest

    same = part(lambda x: x.sin() * 2, 3, 4)
    assert part(lambda x: (lambda renamed: renamed * 2)(x.sin()), 3, 4) == same
    others = [part(lambda x: x.sin() * 3, 3, 4), part(lambda x: x.sin() * 2, 3, 5), part(lambda x: x.cos() * 2, 3, 4)]
    assert len({same, *others}) == 4


def test_digests_know_what_a_subgraph_computes(trace):
    def part(fn):
        torch._dynamo.reset()
        gm = trace(lambda x: torch.cond(x.sum() > 0, fn, lambda y: y * 3, (x,)), x=torch.randn(3))
        return extract(gm, [n for n in gm.graph.nodes if n.op in ("call_function", "call_method")])

    assert part(torch.sin).digest != part(torch.cos).digest
    x = torch.ones(3)
    torch.testing.assert_close(part(torch.sin).module(x)[0], x.sin())


def test_values_that_no_part_can_take_are_refused(trace):
    gm = trace(lambda x: x.sin().cos(), x=torch.randn(3))
    sin, cos = (n for n in gm.graph.nodes if n.op in ("call_function", "call_method"))
    sin.meta["example_value"] = object()
    with pytest.raises(RewriteError, match="which a part of a graph cannot take"):
        extract(gm, [cos])
    del sin.meta["example_value"]
    with pytest.raises(RewriteError, match="not traced with shapes"):
        extract(gm, [cos])


@pytest.mark.parametrize(
    "value",
    [
        torch.empty(3, 4),
        torch.empty(4, 3).t(),
        torch.empty(1, 4).expand(3, 4),
        torch.empty(0, 4),
        torch.empty(()),
        torch.empty(3, dtype=torch.bfloat16),
        torch.empty(3, dtype=torch.complex64),
        torch.empty(3, dtype=torch.int64),
        torch.empty(3, dtype=torch.bool),
        torch.empty(3, dtype=torch.float8_e4m3fn),
        torch.empty(1 << 20, 3),
    ],
    ids=lambda t: f"{t.dtype} {tuple(t.shape)} {t.stride()}",
)
def test_samples_are_like_their_operand(value):
    made = sample(Operand.like("x", value))
    assert (made.shape, made.stride(), made.dtype) == (value.shape, value.stride(), value.dtype)
    if value.dtype == torch.bool:
        assert made.all()
    elif value.dtype == torch.int64:
        assert not made.any()
    elif value.numel() > 1:
        assert made.float().std() > 0 if not value.is_complex() else made.abs().std() > 0


def test_runs_take_turns():
    order = []
    seconds = interleaved({n: lambda n=n: (order.append(n), time.sleep(0.002)) for n in "ab"})
    rounds = "".join(order[2:])
    assert rounds.startswith("abba")
    assert len(seconds["a"]) == len(seconds["b"]) >= 7


def test_what_is_slower_in_each_of_the_first_rounds_drops_out():
    pauses = {"base": 0.01, "slow": 0.05, "same": 0.01}
    seconds = interleaved({n: lambda s=s: time.sleep(s) for n, s in pauses.items()})
    assert len(seconds["slow"]) == SCREENING < len(seconds["base"])
    assert relative(seconds["slow"], seconds["base"])[0] > 1.02
    alone = interleaved({"base": lambda: time.sleep(0.001)})
    assert len(alone["base"]) >= ROUNDS[0]


def test_noise():
    assert relative([2.0] * 9, [1.0] * 9) == (2.0, 0.0)
    assert relative([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0], [1.0] * 7) == (1.0, 2.0)  # few rounds: the worst counts
    ratio, noise = relative([1.0] * 16, [*[5.0] * 15, 1.0])  # disturbed: the least times are the same
    assert (ratio, noise) == (0.2, pytest.approx(0.8))


def test_noise_keeps_the_block_as_it_is(trace):
    gm = trace(Stack(1).requires_grad_(False), x=torch.randn(2, 5, 16))
    view = GraphView(gm.graph)
    sites = [d.finding for d in make_plan(view, Selection.of("attention", "reference")).decisions]

    class Fixed:
        basis = "measured"
        expensive = True

        def __init__(self, noise):
            self.noise = noise

        def __call__(self, block, candidates):
            return [Priced(90.0, self.noise) if c else Priced(100.0) for c in candidates]

    assert len(choose(view, sites, Fixed(7.9))[0]) == 1
    assert choose(view, sites, Fixed(8.1))[0] == []  # 90 + 8.1 is less than 2 % below 100
