"""What the passes make of a graph, and whether the rewritten graph computes what it did."""

from __future__ import annotations

import functools
import math
import tempfile
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.plan import Plan, apply_graph
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.proof import Prover, Store
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Code, Site

__all__ = ["Found", "Judge", "apart", "outcome"]

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 6e-2}
"""Greatest difference over the largest value expected: both sides round."""
LIFTED = 1e-5
"""The same where both run in float64; ops may round to float32 inside."""
_WIDE = {torch.bfloat16: torch.float64, torch.float32: torch.float64, torch.complex64: torch.complex128}


@dataclass(frozen=True)
class Found:
    """What became of one graph.

    Attributes:
        sites: how many sites a kernel may take, by kind.
        rewritten: how many calls stand in the rewritten graph.
        misses: what was refused, in words.
        difference: of the rewritten graph's results, over the largest value; NaN where the graph has no such figure.
        crash: of the product, a traceback; empty where there was none.
    """

    sites: Counter[str] = field(default_factory=Counter)
    rewritten: int = 0
    misses: tuple[str, ...] = ()
    difference: float = 0.0
    crash: str = ""


class Judge:
    """Plans, rewrites and runs graphs.

    Args:
        proof: "numeric" proves each site first, "structural" goes by the passes' guards alone.
    """

    def __init__(self, proof: str = "structural") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz") if proof == "numeric" else None
        self._prove = Prover(Store(self._folder.name)) if self._folder is not None else None

    def __call__(
        self, graph: Graph, given: Mapping[str, Any], expected: Sequence[Any], dtype: torch.dtype, whole: bool
    ) -> Found:
        """What is found in a graph, and how far the rewritten one is from it.

        Args:
            graph: with a fake value for each node.
            given: its inputs, by name.
            expected: its `outcome` on these.
            dtype: in which it computes.
            whole: whole regions are looked for too.
        """
        try:
            plan, rewritten = self._rewritten(graph, whole)
        except Exception:
            return Found(crash=traceback.format_exc())
        sites, misses = _counted(plan)
        if rewritten is graph:
            return Found(sites, 0, misses)
        try:
            found = outcome(rewritten, given)
        except Exception:
            return Found(sites, len(plan.replacements()), misses, crash=traceback.format_exc())
        difference = apart(found, expected) / TOLERANCE[dtype]
        if difference > 1 and dtype == torch.bfloat16:  # what rounds differently may grow: float64 tells
            difference = apart(outcome(rewritten, given, True), outcome(graph, given, True)) / LIFTED
        return Found(sites, len(plan.replacements()), misses, difference)

    def _rewritten(self, graph: Graph, whole: bool) -> tuple[Plan, Graph]:
        module = GraphModule.__new__(GraphModule)  # the code of a real one takes longer to write than all else here
        torch.nn.Module.__init__(module)
        module._graph = graph
        plan = make_plan(GraphView(graph), selection(whole), "all", prove=self._prove)
        new, carried_out = apply_graph(module, plan)
        unused = [n.name for n in new.nodes if str(n.target).startswith("fluxrewrite.") and not n.users]
        assert not unused, f"calls whose results nothing reads: {unused}"
        return carried_out, new


@functools.cache
def selection(whole: bool) -> Selection:
    return Selection.of(None if whole else ("qkv", "rope", "attention"), "reference")


def _counted(plan: Plan) -> tuple[Counter[str], tuple[str, ...]]:
    """The sites that a kernel takes, or that are part of one that it takes; and why the others are left."""
    sites: Counter[str] = Counter()
    misses = []
    for d in plan.decisions:
        if isinstance(d.finding, Site) and (d.choice == "kernel" or [r.code for r in d.reasons] == [Code.COVERED]):
            sites[d.finding.kind] += 1
        else:
            misses += [f"{d.finding.kind}: {r.code}: {r.message}" for r in d.reasons]
    return sites, tuple(misses)


def outcome(graph: Graph, given: Mapping[str, Any], lifted: bool = False) -> list[Any]:
    """The results of a graph, then its inputs as it leaves them; `lifted` computes in float64 what it does in less."""
    values: dict[Node, Any] = {}
    inputs = {
        name: value.to(_WIDE.get(value.dtype, value.dtype) if lifted else value.dtype, copy=True)
        for name, value in given.items()
    }
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a dropout that is left alone drops the same in both
        for node in graph.nodes:
            if node.op == "placeholder":
                values[node] = inputs[str(node.target)]
                continue
            arguments = torch.fx.node.map_aggregate((node.args, node.kwargs), lambda a: _argument(a, values, lifted))
            if node.op == "output":
                results = (*tree_leaves(arguments), *inputs.values())
                return [t.clone() if isinstance(t, torch.Tensor) else t for t in results]
            values[node] = _called(node.target, lifted, *arguments)  # type: ignore[misc]
    raise AssertionError("a graph without output")


def _argument(value: Any, values: Mapping[Node, Any], lifted: bool) -> Any:
    if isinstance(value, Node):
        return values[value]
    return _WIDE.get(value, value) if lifted and isinstance(value, torch.dtype) else value


def _called(target: Any, lifted: bool, args: Any, kwargs: Any) -> Any:
    if not isinstance(target, str):
        return target(*args, **kwargs)
    name = "double" if lifted and target in ("float", "bfloat16", "half") else target
    return getattr(args[0], name)(*args[1:], **kwargs)


def apart(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The greatest difference over the largest value expected, where that is finite; inf where shape or dtype differ.

    Of a row that a mask leaves nothing of, softmax makes NaN and an op makes zeros: no rewrite is wrong for that.
    """
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if not isinstance(b, torch.Tensor):
            worst = worst if a == b else math.inf
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return math.inf
        a, b = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (a, b))
        a, b = a.double(), b.double()
        a, b = a[b.isfinite()], b[b.isfinite()]
        if not bool(a.isfinite().all()):
            return math.inf
        if b.numel():
            worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), 1e-6))
    return worst
