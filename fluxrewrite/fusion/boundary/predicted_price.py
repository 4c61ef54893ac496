"""The predicted time of a block with some of its sites replaced by kernels: from evidence if there is any, else modelled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch.fx import Node

from ...cost import Case
from ...cost.deltas import delta, ruined
from ...cost.evidence import same_form
from ...graph.view import GraphView
from ...kernel import Kernel
from ...rewrite.kernel_calls import kernel_calls
from ...rewrite.search import Basis, Block, Priced
from ...site import Site
from .. import fuse
from .executables import segments
from .step_time import calls_for, step_time
from .target import Target

__all__ = ["Predicted"]


class Predicted:
    """A `rewrite.search.Price` in microseconds.

    Evidence takes precedence over the model. Where calls of a kernel were measured on this device in this regime, each call
    adds the share of a step that it added there, or nothing if that was within the noise. What the call changes for its
    neighbours is modelled: a run measures the calls alone, not each combination. In a stack where kernel calls were ruinous,
    any set with a call has an infinite price.
    """

    basis: Basis = "modelled"
    expensive = False

    def __init__(self, view: GraphView, target: Target, case: Case, kernels: Mapping[str, Kernel]) -> None:
        self._kernels = kernels
        self._view, self._target, self._case = view, target, case
        self._corrections: dict[tuple[int, int], float] = {}
        self._known: dict[tuple[object, ...], float] = {}
        self._ruined = ruined(target.evidence, case) is not None

    def __call__(self, block: Block, candidates: Sequence[Sequence[Site]]) -> list[Priced]:
        """Microseconds of `block` with kernels for the sites of each candidate."""
        return [Priced(self._us(block, taken)) for taken in candidates]

    def _us(self, block: Block, taken: Sequence[Site]) -> float:
        calls = [site for site in taken if not site.inline]
        if calls and self._ruined:
            return math.inf
        return self._modelled(block, taken) + sum(self._correction(block, site) for site in calls)

    def _modelled(self, block: Block, taken: Sequence[Site]) -> float:
        key = (id(block), frozenset(map(id, taken)))
        if key not in self._known:
            self._known[key] = self._step_us(block, taken)
        return self._known[key]

    def _step_us(self, block: Block, taken: Sequence[Site]) -> float:
        prediction = fuse(self._view, self._target.rules, nodes=block.nodes, calls=taken)
        work = calls_for(self._view, {s.outputs[0].name: s for s in taken}, self._target, self._kernels)
        return step_time(self._view, prediction, self._target, work, self._executables(block, taken)).us

    def _executables(self, block: Block, taken: Sequence[Site]) -> int:
        if self._target.regime != "lazy":
            return 1
        replaced = {n for s in taken for n in (*s.interior, *s.outputs)}
        already = kernel_calls(self._view).intersection(block.nodes) - replaced
        cuts: list[Node | Site] = [*already, *(s for s in taken if not s.inline)]
        return segments(self._view, cuts, block.nodes) + len(cuts)

    def _correction(self, block: Block, site: Site) -> float:
        """What a call of this site alone adds as measured, less what it adds by the model; 0 if nothing was measured."""
        key = (id(block), id(site))
        if key not in self._corrections:
            share = self._share(block, site)
            bare_us = None if share is None else self._modelled(block, ())
            measured = (
                0.0 if bare_us is None or share is None else share * bare_us - (self._modelled(block, [site]) - bare_us)
            )
            self._corrections[key] = measured
        return self._corrections[key]

    def _share(self, block: Block, site: Site) -> float | None:
        """Share of the block's time that a call for `site` adds, by evidence on the same form; None without such evidence."""
        kernel = f"{site.kind}:{site.form}"
        found = delta(self._target.evidence, self._case, kernel) if self._case.model else None
        if found is None or not same_form(found.kernel, kernel):
            return None
        return (
            0.0 if found.neutral else (found.ratio - 1) / sum(s.kind == site.kind and not s.inline for s in block.sites)
        )
