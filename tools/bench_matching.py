"""Time matching on real graphs: fluxrewrite's passes, PyTorch's two matchers and its partitioner.

    python tools/bench_matching.py [--runs 7] [--json FILE] [--partitioner-large]

Needs the `diffusers` extra and no weights. The graphs are FLUX.2-klein-4B (5+20 blocks) and FLUX.2-dev (8+48 blocks) as Dynamo
traces them, and klein-4B's nodes repeated up to 100,000, with fresh weights and each copy fed by the previous one.

Fluxrewrite and its peers are measured in the same way: `time.perf_counter` around the call, `gc.collect()` before it and the
collector off during it. After one warm-up come `--runs` rounds, in each of which every job of every graph runs once. The
figures are medians and min - max over the rounds. Objects that exist before the first round are frozen (`gc.freeze`), so that
collections take no time. Patterns are built outside the timed region. CapabilityBasedPartitioner is so slow that it runs once,
without warm-up.

- Captures: once each, `gc` as above, after one that is thrown away because the first takes longer.
- Fluxrewrite: `GraphView`, then `make_plan` pass by pass, which is all that a compile does up to the decisions. A pass that reuses
  the result of an earlier one (qkv: the attention calls) pays only for the rest, so the order of the rows matters.
- SubgraphMatcher: equivalent patterns, with literals ignored in the RoPE pattern.
- Inductor's PatternMatcherPass: on a copy of the graph with `val` metadata and, after the warm-up, mutation regions. The extra
  check of the pattern counts matches, and nothing is rewritten.

Exit code: 0 when every requirement is met, 1 when one is not, 2 for a bad argument.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from operator import add, getitem, mul, neg
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Column, Table
from torch._inductor import pattern_matcher as inductor
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher

from fluxrewrite.graph import GraphView
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.capture import capture_spec
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection

KLEIN, DEV, LARGE = "klein-4B", "8+48 blocks", "100k nodes"
PRESETS = {KLEIN: "flux2-klein-4b", DEV: "flux2-dev"}
LARGE_NODES, SHARE, GROWTH = 100_000, 0.03, 1.3  # limits: share of capture time; time per node, relative to klein-4B's
SDPA = F.scaled_dot_product_attention
SDPA_DEFAULTS: dict[str, Any] = dict(attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False)
FLUXREWRITE, PARTITIONER, LEVELS = "fluxrewrite", "CapabilityBasedPartitioner", "one-pass level count"
TOTAL, TRIPLES = f"{FLUXREWRITE}: all", "SubgraphMatcher: triples"

Search = Callable[[], Sized]
Times = dict[str, tuple[int | None, float]]  # job -> number found (None: not applicable), seconds


@dataclass(frozen=True)
class Series:
    """What one job found, and how many seconds it took in each round."""

    found: int | None
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        spread = f" ({_ms(min(self.seconds))} - {_ms(max(self.seconds))})" if len(self.seconds) > 1 else ""
        return _ms(self.median) + spread


@dataclass
class Subject:
    """A graph and what was measured on it."""

    name: str
    graph: Graph
    capture_s: float | None = None
    series: dict[str, Series] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        return len(self.graph.nodes)

    @property
    def per_node(self) -> float:
        return self.series[TOTAL].median / self.nodes

    def record(self, times: Times) -> None:
        """Add one round. Raises RuntimeError when a job finds something other than before."""
        for what, (found, seconds) in times.items():
            series = self.series.setdefault(what, Series(found))
            if series.found != found:
                raise RuntimeError(f"{self.name}, {what}: found {found}, {series.found} in an earlier round")
            series.seconds.append(seconds)


class Requirement(NamedTuple):
    """A requirement, whether it is met, and the figures that show it."""

    text: str
    met: bool
    figures: str


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Collect garbage once, then not inside the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of `call` and the seconds it took."""
    with undisturbed():
        start = time.perf_counter()
        result = call()
        return result, time.perf_counter() - start


def captured(name: str) -> Subject:
    """Capture the single Dynamo graph of a preset at the default sizes."""
    found, seconds = timed(partial(capture_spec, find_model(PRESETS[name]), Shapes(), torch.bfloat16))
    (module,) = found.graphs
    return Subject(name, module.graph, seconds)


def repeated(source: Graph, nodes: int) -> Graph:
    """Repeat `source` until the graph has `nodes` nodes; the result of every copy becomes the latents of the next."""
    graph = Graph()
    result: Node | None = None
    while len(graph.nodes) < nodes:
        result = append(graph, source, result)
    graph.output((result,))
    return graph


def append(graph: Graph, source: Graph, latents: Node | None) -> Node:
    """Append a copy of `source` to `graph`, with `latents` as its first input of the result's type; return the new result."""
    twins: dict[Node, Node] = {}
    (result,) = source.output_node().all_input_nodes
    feed = next(p for p in source.find_nodes(op="placeholder") if _type(p) == _type(result))
    for node in source.nodes:
        if latents is not None and node is feed:
            twins[node] = latents
        elif node.op != "output":
            twin = twins[node] = graph.node_copy(node, twins.__getitem__)
            twin.meta = dict(node.meta)
            twin.target = twin.name if node.op == "placeholder" else node.target
    return twins[result]


def _type(node: Node) -> Any:
    value = node.meta.get("example_value")
    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else None


def ours(graph: Graph, selection: Selection) -> Times:
    """Time the view, then each pass with its decisions: the parts of what `make_plan` does."""
    with undisturbed():
        ticks, found = [time.perf_counter()], []
        view = GraphView(graph)
        ticks.append(time.perf_counter())
        for kind, rewriter in selection.passes.items():
            plan = make_plan(view, Selection({kind: rewriter}, selection.kernels, selection.forms))
            ticks.append(time.perf_counter())
            found.append(sum(d.status != "missed" for d in plan.decisions))
    labels = [f"{FLUXREWRITE}: {part}" for part in ("view", *selection.passes)]
    parts = zip(labels, [None, *found], pairwise(ticks), strict=True)
    return {what: (n, b - a) for what, n, (a, b) in parts} | {TOTAL: (sum(found), ticks[-1] - ticks[0])}


def is_sdpa(node: Node) -> bool:
    return node.target is SDPA


def level_count(graph: Graph, opaque: Callable[[Node], bool]) -> Sized:
    """The segments between `opaque` nodes: one per level. A level is the highest of the inputs, plus 1 after an opaque node."""
    levels: dict[Node, int] = {}
    for node in graph.nodes:
        levels[node] = max((levels[i] + opaque(i) for i in node.all_input_nodes), default=0)
    return {level for node, level in levels.items() if node.op.startswith("call_") and not opaque(node)}


def fx_triples() -> Graph:
    """q, k, v = linear(x, wq), linear(x, wk), linear(x, wv)."""
    graph = Graph()
    x, *weights = (graph.placeholder(name) for name in ("x", "wq", "wk", "wv"))
    graph.output(tuple(graph.call_function(F.linear, (x, weight, None)) for weight in weights))
    return graph


def fx_rope() -> Graph:
    """The interleaved form, as diffusers spells it. The numbers are arbitrary, because literals are ignored."""
    graph = Graph()
    x, cos, sin = (graph.placeholder(name) for name in ("x", "cos", "sin"))
    pairs = graph.call_method("unbind", (graph.call_method("reshape", (x, 1, 1, 1, -1, 2)), -1))
    real, imaginary = (graph.call_function(getitem, (pairs, index)) for index in (0, 1))
    turned = graph.call_function(torch.stack, ([graph.call_function(neg, (imaginary,)), real],), {"dim": -1})
    flat = graph.call_method("flatten", (turned, 3))
    products = [graph.call_function(mul, (graph.call_method("float", (a,)), b)) for a, b in ((x, cos), (flat, sin))]
    graph.output(graph.call_method("to", (graph.call_function(add, tuple(products)), torch.bfloat16)))
    return graph


def fx_sdpa() -> Graph:
    """Attention with every argument passed by keyword, as Dynamo binds them."""
    graph = Graph()
    operands = {name: graph.placeholder(name) for name in ("query", "key", "value")}
    graph.output(graph.call_function(SDPA, (), {**operands, **SDPA_DEFAULTS}))
    return graph


def subgraph_matchers(graph: Graph) -> dict[str, Search]:
    matchers = {
        TRIPLES: SubgraphMatcher(fx_triples()),
        "SubgraphMatcher: rope": SubgraphMatcher(fx_rope(), ignore_literals=True),
        "SubgraphMatcher: attention": SubgraphMatcher(fx_sdpa()),
    }
    return {name: partial(matcher.match, graph) for name, matcher in matchers.items()}


class AllButSdpa(OperatorSupportBase):
    def is_node_supported(self, submodules: Any, node: Node) -> bool:
        return node.op.startswith("call_") and not is_sdpa(node)


def partitions(graph: Graph) -> Sized:
    """Partitions that torch.fx proposes around attention."""
    return CapabilityBasedPartitioner(GraphModule({}, graph), AllButSdpa(), True).propose_partitions()


def inductor_rope() -> inductor.PatternExpr:
    """`fx_rope` as an Inductor pattern."""
    call, method, x = inductor.CallFunction, inductor.CallMethod, inductor.KeywordArg("x")
    *sizes, dtype = (inductor.Ignored() for _ in range(6))
    pairs = method("unbind", method("reshape", x, *sizes), -1, _users=2)
    turned = call(torch.stack, [call(neg, call(getitem, pairs, 1)), call(getitem, pairs, 0)], dim=-1)
    left = call(mul, method("float", x), inductor.KeywordArg("cos"))
    right = call(mul, method("float", method("flatten", turned, 3)), inductor.KeywordArg("sin"))
    return method("to", call(add, left, right), dtype)


def inductor_matchers(graph: Graph) -> dict[str, Search]:
    """A search for each pattern, on a copy of the graph with the metadata that Inductor expects."""
    twin = GraphModule({}, copy.deepcopy(graph))
    for node in twin.graph.nodes:
        if "example_value" in node.meta:
            node.meta["val"] = node.meta["example_value"]
    operands: dict[str, Any] = {name: inductor.KeywordArg(name) for name in ("query", "key", "value")}
    attention = inductor.CallFunction(SDPA, **operands, **SDPA_DEFAULTS)
    patterns = {"Inductor's matcher: rope": inductor_rope(), "Inductor's matcher: attention": attention}
    return {name: counting(pattern, twin) for name, pattern in patterns.items()}


def counting(pattern: inductor.PatternExpr, module: GraphModule) -> Search:
    """A search that counts matches; the extra check refuses each, so that nothing is rewritten."""
    matches: list[inductor.Match] = []
    entries = inductor.PatternMatcherPass()

    def keep(match: inductor.Match) -> bool:
        matches.append(match)
        return False

    inductor.GraphPatternEntry(pattern=pattern, extra_check=keep, handler=lambda *_, **__: None).register(entries)

    def search() -> list[inductor.Match]:
        matches.clear()
        entries.apply(module)
        return matches

    return search


def search_times(name: str, search: Search) -> Times:
    """One run of a peer."""
    found, seconds = timed(search)
    return {name: (len(found), seconds)}


def measure(subjects: Iterable[Subject], selection: Selection, runs: int) -> None:
    """Run a warm-up, then rounds in which every job runs once: ours on every graph, the peers on the captured graphs."""
    jobs: list[tuple[Subject, Callable[[], Times]]] = []
    for subject in subjects:
        jobs.append((subject, partial(ours, subject.graph, selection)))
        if subject.capture_s is not None:
            searches = {**subgraph_matchers(subject.graph), **inductor_matchers(subject.graph)}
            searches[LEVELS] = partial(level_count, subject.graph, is_sdpa)
            jobs += [(subject, partial(search_times, name, search)) for name, search in searches.items()]
    gc.collect()
    gc.freeze()
    for round_ in range(-1, runs):
        for subject, job in jobs:
            times = job()
            if round_ >= 0:
                subject.record(times)


def requirements(klein: Subject, dev: Subject, large: Subject) -> list[Requirement]:
    """The requirements on matching, with the figures of this run."""
    result = []
    for s in (klein, dev):
        total, peer, capture_s = s.series[TOTAL].median, s.series[TRIPLES].median, s.capture_s or 0.0
        figures = f"{_ms(total)} ms against {_ms(peer)} ms: {peer / total:.1f} times as fast"
        result.append(Requirement(f"{s.name}: view and passes faster than {TRIPLES}", total < peer, figures))
        share = total / capture_s
        figures = f"{_ms(total)} ms of {capture_s:.2f} s: {share:.2%}"
        result.append(Requirement(f"{s.name}: under {SHARE:.0%} of capture time", share < SHARE, figures))
    for s in (dev, large):
        ratio = s.per_node / klein.per_node
        figures = f"{s.per_node * 1e6:.1f} us against {klein.per_node * 1e6:.1f} us: {ratio:.2f}"
        text = f"{s.name}: time per node within {GROWTH} times klein-4B's"
        result.append(Requirement(text, ratio <= GROWTH, figures))
    return result


def matching_table(subjects: Iterable[Subject], runs: int) -> Table:
    """What every job found and how long it took, graph by graph."""
    right = partial(Column, justify="right")
    table = Table("", right("found"), right("ms"), title=f"Matching: medians (min - max) of {runs} runs")
    for subject in subjects:
        origin = f"captured in {subject.capture_s:.1f} s" if subject.capture_s else "repeated"
        table.add_row(f"[bold]{subject.name}: {subject.nodes:,} nodes, {origin}")
        for what, series in subject.series.items():
            table.add_row(f"  {what}", "" if series.found is None else str(series.found), str(series))
        table.add_section()
    return table


def as_json(subjects: Iterable[Subject], checks: Iterable[Requirement], runs: int) -> dict[str, Any]:
    """All numbers of the run, with times in seconds."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    graphs = []
    for s in subjects:
        jobs = {what: {**asdict(series), "median": series.median} for what, series in s.series.items()}
        graphs.append({"name": s.name, "nodes": s.nodes, "capture": s.capture_s, "per_node": s.per_node, "jobs": jobs})
    return {"runs": runs, "versions": versions, "graphs": graphs, "requirements": [c._asdict() for c in checks]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7, help="timed rounds after the warm-up (default 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    more = f"run {PARTITIONER} on 8+48 blocks too (minutes)"
    parser.add_argument("--partitioner-large", action="store_true", help=more)
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs {options.runs}: must be 1 or more")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: no such folder")
    return options


def main() -> int:
    """Measure, print the table, and check the requirements."""
    options, console = _arguments(), Console()
    selection = Selection.of()
    console.print("capturing", *PRESETS.values(), "...")
    captured(KLEIN)  # thrown away: imports and cold caches make a first capture slower, which would flatter us
    klein, dev = (captured(name) for name in PRESETS)
    large = Subject(LARGE, repeated(klein.graph, LARGE_NODES))
    subjects = [klein, dev, large]
    console.print(f"measuring, {options.runs} rounds, and {PARTITIONER} once ...")
    measure(subjects, selection, options.runs)
    for subject in [klein, dev] if options.partitioner_large else [klein]:
        subject.record(search_times(PARTITIONER, partial(partitions, subject.graph)))
    checks = requirements(klein, dev, large)
    console.print(matching_table(subjects, options.runs))
    for check in checks:
        verdict = "[green]met    [/]" if check.met else "[red]not met[/]"
        console.print(f"{verdict} {check.text}\n        {check.figures}", highlight=False)
    if options.json:
        options.json.write_text(json.dumps(as_json(subjects, checks, options.runs), indent=1) + "\n")
    return 0 if all(check.met for check in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
