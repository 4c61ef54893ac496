"""Time the analysis after the capture: sites, choice, rewrite, boundaries, prediction and report.

    python tools/bench_analysis.py [--runs 5] [--partitioner]

The graphs are klein-4B, FLUX.2-dev with 8+48 blocks, and klein-4B's node sequence repeated up to 100,000 nodes. They are
measured as in tools/bench_matching.py: collector off, one warm-up, medians and min - max over the rounds.

For comparison the tool times torch.fx's CapabilityBasedPartitioner, which only counts partitions around attention, and prints
the segments that both count. The partitioner runs once; --partitioner also runs it on 8+48 blocks, which takes minutes.

Exit code: 0 when every requirement is met, 1 when one is not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

from bench_matching import DEV, KLEIN, LARGE, LARGE_NODES, PRESETS, captured, is_sdpa, partitions, repeated, undisturbed
from torch.fx import Graph, GraphModule, Node

from fluxrewrite.analysis import Options, analyse
from fluxrewrite.cost import Case
from fluxrewrite.fusion.boundary.executables import segments
from fluxrewrite.graph import GraphView
from fluxrewrite.report.build import PredictionContext, build_report
from fluxrewrite.report.model import ModelInfo, Timing
from fluxrewrite.site import Site

LIMITS_S = {KLEIN: 0.5, DEV: 1.2}
GROWTH = 1.5  # time per node at 100,000 nodes, as a multiple of klein-4B's


def analysis(module: GraphModule, options: Options) -> int:
    """Do everything that `fluxrewrite inspect` does after the capture; return the number of boundaries."""
    selection, target = options.resolve()
    case = Case(device=target.device.name, regime=target.regime)
    analysed, _ = analyse(module, selection, options.policy, target, case)
    none = Timing(capture_s=0, match_s=0, analyse_s=0, total_s=0, peak_rss_mb=0)
    model = ModelInfo(name="", parameters=0, dtype="bfloat16", graphs=1, graph_nodes=len(module.graph.nodes))
    context = PredictionContext(target, case)
    report = build_report([analysed], selection, options.policy, model, timing=none, context=context)
    report.to_json()
    return len(report.boundaries)


def seconds(call: Callable[[], object]) -> tuple[object, float]:
    with undisturbed():
        start = time.perf_counter()
        found = call()
        return found, time.perf_counter() - start


def counted(graph: Graph) -> int:
    """The number of executables when every attention call is an executable of its own."""
    view = GraphView(graph)
    calls = [_site_of_one_node(view, n) for n in graph.nodes if is_sdpa(n)]
    return segments(view, calls)


def _site_of_one_node(view: GraphView, node: Node) -> Site:
    return Site(kind="", form="", path="", operands={}, outputs=(node,), interior=(), shapes={}, dtype=view.dtype(node))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--partitioner", action="store_true", help="run CapabilityBasedPartitioner on 8+48 blocks too (minutes)"
    )
    given = parser.parse_args()
    captured(KLEIN)  # thrown away: the first capture is slower
    graphs = {name: captured(name).graph for name in PRESETS}
    graphs[LARGE] = repeated(graphs[KLEIN], LARGE_NODES)
    print("| graph | policy | boundaries | analysis, s (min - max) | us a node |\n|---|---|---:|---:|---:|")
    medians: dict[tuple[str, str], float] = {}
    for name, graph in graphs.items():
        for policy in ("all", "auto"):
            run = partial(analysis, GraphModule({}, graph), Options(policy=policy))
            if name != LARGE:
                run()
            rounds = [seconds(run) for _ in range(given.runs if name != LARGE else 1)]
            times = [t for _, t in rounds]
            medians[name, policy] = middle = statistics.median(times)
            spread = f"{middle:.3f} ({min(times):.3f} - {max(times):.3f})"
            print(
                f"| {name} | {policy} | {rounds[0][0]} | {spread} | {middle / len(graph.nodes) * 1e6:.0f} |", flush=True
            )
    print("\n| graph | our segments | s | CapabilityBasedPartitioner | s |\n|---|---:|---:|---:|---:|")
    for name in [KLEIN, DEV] if given.partitioner else [KLEIN]:
        ours, took = seconds(partial(counted, graphs[name]))
        theirs, slow = seconds(partial(partitions, graphs[name]))
        print(f"| {name} | {ours} | {took:.3f} | {len(theirs)} | {slow:.1f} |", flush=True)
    return verdict(medians, {name: len(g.nodes) for name, g in graphs.items()})


def verdict(medians: dict[tuple[str, str], float], nodes: dict[str, int]) -> int:
    met = []
    for (name, policy), middle in medians.items():
        if name in LIMITS_S:
            met.append(middle <= LIMITS_S[name])
            print(f"{'met' if met[-1] else 'NOT met'}: {name}, policy {policy}: {middle:.3f} s <= {LIMITS_S[name]} s")
    each = {name: medians[name, "all"] / nodes[name] for name in (KLEIN, LARGE)}
    met.append(each[LARGE] <= GROWTH * each[KLEIN])
    word, ratio = "met" if met[-1] else "NOT met", each[LARGE] / each[KLEIN]
    print(f"{word}: time a node at {nodes[LARGE]} nodes {ratio:.2f}x klein-4B's <= {GROWTH}x")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
