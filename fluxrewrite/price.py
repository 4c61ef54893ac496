"""The predicted time of a block with some of its sites taken by kernels: from evidence where there is some, else modelled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .choose import Basis, Block, Priced
from .cost import Case
from .cost.deltas import Applied, applied, ruined
from .fusion import fuse
from .graph import GraphView
from .site import Site
from .step import calls_for, step_time
from .target import Target

__all__ = ["Predicted"]


class Predicted:
    """A `choose.Price` in microseconds.

    Evidence counts before the model: where calls of a kernel were measured on this device in this regime, each adds what it
    added there, nothing if that was within the noise. In a stack where kernel calls were ruinous none is worth a try.
    """

    basis: Basis = "modelled"

    def __init__(self, view: GraphView, target: Target, case: Case) -> None:
        self._view, self._target, self._case = view, target, case
        self._ruined = ruined(target.evidence, case) is not None

    def __call__(self, block: Block, candidates: Sequence[Sequence[Site]]) -> list[Priced]:
        """Microseconds of `block` with kernels in the place of each candidate's sites."""
        return [Priced(self._us(block, taken)) for taken in candidates]

    def _us(self, block: Block, taken: Sequence[Site]) -> float:
        if taken and self._ruined:
            return math.inf
        measured = {id(s): found for s in taken if (found := self._applied(s)) is not None}
        calls = [s for s in taken if id(s) not in measured]
        prediction = fuse(self._view, self._target.rules, nodes=block.nodes, calls=calls)
        work = calls_for(self._view, {s.outputs[0].name: s for s in calls}, self._target)
        added = sum(0.0 if m.neutral else m.us_per_call for m in measured.values())
        return step_time(self._view, prediction, self._target, work).us + added

    def _applied(self, site: Site) -> Applied | None:
        return applied(self._target.evidence, self._case, f"{site.kind}:{site.form}") if self._case.model else None
