"""Check each rewritten site by itself: the original graph runs, and each replacement runs on the operands that it has there.

So every site is judged on exact operands, and the error of one does not show up in those after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from ...graph.op_table import read
from ...graph.subgraph import Subgraph, extract
from ...rewrite.apply import rewrite
from ...rewrite.base import Replacement
from ...rewrite.plan import Plan
from ...site import Site
from .records import SiteResult
from .tensor_error import NORM, TensorError, difference, least_cosine, tolerance_of, worst

__all__ = ["Check", "Checking", "checks_of"]


@dataclass
class Check:
    """A site of a plan, and its replacement as a module of its own.

    Attributes:
        site: the site in the original graph.
        part: the replacement, which takes values of the original graph; None if the site could not be replaced.
        note: why there is no result.
        joined: for an operand of joined weights, the names of the parameters.
        results: results of `part` that are not compared yet, by the name of the node that each replaces.
        expected: results of the original that are not compared yet, by the same names. They may be computed before `part` runs.
        found: errors of the results compared so far.
        waiting: names of the site's outputs that are not compared yet.
        ends: for an output that nodes of the site write to in place, the last of these nodes. Only after it is the output final.
    """

    site: Site
    part: Subgraph | None
    note: str = ""
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)
    results: dict[str, Tensor] = field(default_factory=dict)
    expected: dict[str, Tensor] = field(default_factory=dict)
    found: list[TensorError] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    ends: dict[str, str] = field(default_factory=dict)

    def sources(self) -> Iterator[str]:
        """Names of the nodes whose values the part takes, one for each operand."""
        for operand in self.part.operands if self.part else ():
            name = operand.name.rpartition(".")[0]
            yield from self.joined.get(name, (name,))


def checks_of(gm: GraphModule, plan: Plan) -> list[Check]:
    """One check for each site that the plan rewrites, in graph order within a kind. `gm` is left unchanged."""
    return [_check(gm, replacement) for replacement in plan.replacements()]


def _check(gm: GraphModule, replacement: Replacement) -> Check:
    rewritten, left = rewrite(gm, [replacement])
    if left:
        return Check(replacement.site, None, left[0][1].message)
    known = {n.name for n in gm.graph.nodes}
    new = [n for n in rewritten.graph.nodes if n.name not in known]
    joined = {n.name: n.meta["joined"] for n in new if n.op == "placeholder"}
    part = extract(rewritten, [n for n in new if n.op != "placeholder"])
    waiting = {name for node in _results(part) for name in node.meta["replaces"]}
    inside = {n.name for n in replacement.site.interior}
    ends = {w.name: n.name for n in gm.graph.nodes if n.name in inside for w in read(n).writes if w.name in waiting}
    return Check(replacement.site, part, joined=joined, waiting=waiting, ends=ends)


def _results(part: Subgraph) -> list[Node]:
    (results,) = part.module.graph.output_node().args
    assert isinstance(results, (tuple, list))
    return [node for node in results if isinstance(node, Node)]


class Checking(Interpreter):
    """Runs the original graph, and each check at the place where the rewritten graph has its call.

    Values are kept until the last check that takes them has run, and results until the original has computed what they replace, so
    that memory stays near that of the model. Results are compared as soon as both exist, before a later node can write to either.

    Args:
        gm: the original graph.
        checks: the checks that `checks_of` returns for this graph.
        graph: number of the graph, for the records.
        tolerance: limit for all sites; None for the limits by dtype.
        done: called with the result of each site.
    """

    def __init__(
        self,
        gm: GraphModule,
        checks: Sequence[Check],
        graph: int,
        tolerance: float | None,
        done: Callable[[SiteResult], None],
    ) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self._graph, self._tolerance, self._done = graph, tolerance, done
        self._starts: dict[str, list[Check]] = {}
        self._ends: dict[str, list[tuple[Check, str]]] = {}
        self._late: dict[str, Any] = {name: None for check in checks for name in check.ends}
        for check in checks:
            self._starts.setdefault(check.site.before.name, []).append(check)
            for name in check.waiting:
                self._ends.setdefault(check.ends.get(name, name), []).append((check, name))
        self._uses = Counter(name for check in checks for name in check.sources())
        self._kept: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        """Run a node, and the checks that begin or end at it."""
        for check in self._starts.get(n.name, ()):
            self._replace(check)
        value = super().run_node(n)
        if n.name in self._uses:
            self._kept[n.name] = value
        if n.name in self._late:
            self._late[n.name] = value
        for check, name in self._ends.get(n.name, ()):
            if name in check.waiting:
                check.expected[name] = self._late.get(name, value)
                self._compare(check)
        return value

    def _replace(self, check: Check) -> None:
        """Run the replacement of a site. An error of it is a result of the check and does not stop the run."""
        if check.part is not None and not check.note:
            try:
                results = check.part.module(*self._operands(check, check.part))
                for node, result in zip(_results(check.part), results, strict=True):
                    check.results.update(dict.fromkeys(node.meta["replaces"], result))
            except Exception as error:
                check.note = f"{type(error).__name__}: {error}"
        for name in check.sources():
            self._uses[name] -= 1
            if not self._uses[name]:
                self._kept.pop(name, None)
        if check.note:
            check.waiting.clear()
            check.expected.clear()
            self._finish(check)
        self._compare(check)

    def _operands(self, check: Check, part: Subgraph) -> Iterator[Tensor]:
        for operand in part.operands:
            name, _, index = operand.name.rpartition(".")
            if name in check.joined:
                yield torch.cat([self._kept[weight].detach() for weight in check.joined[name]])
            else:
                yield [t for t in tree_leaves(self._kept[name]) if isinstance(t, Tensor)][int(index)]

    def _compare(self, check: Check) -> None:
        """Compare the results that both sides have computed, and free them."""
        for name in check.results.keys() & check.expected.keys():
            check.found.append(difference(check.results.pop(name), check.expected.pop(name)))
            check.waiting.discard(name)
            if not check.waiting:
                self._finish(check)

    def _finish(self, check: Check) -> None:
        site = check.site
        found = TensorError.none(" ".join(check.note.split())) if check.note else worst(check.found)
        tolerance = tolerance_of(site.dtype, self._tolerance)
        figures = (None,) * 4 if found.note else (found.max_abs, found.relative, found.norm, found.cosine)
        self._done(
            SiteResult(
                graph=self._graph,
                kind=site.kind,
                form=site.form,
                path=site.path,
                node=site.outputs[0].name,
                choice="inline" if site.inline else "kernel",
                shapes=dict(site.shapes),
                dtype=str(site.dtype).removeprefix("torch."),
                max_abs=figures[0],
                relative=figures[1],
                norm=figures[2],
                cosine=figures[3],
                tolerance=tolerance,
                norm_tolerance=NORM * tolerance,
                least_cosine=least_cosine(tolerance),
                note=found.note,
            )
        )
