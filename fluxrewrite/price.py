"""The predicted time of a block with some of its sites taken by kernels: from evidence where there is some, else modelled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .choose import Block
from .cost import Case
from .cost.deltas import delta, ruined
from .fusion import fuse
from .graph import GraphView
from .segments import segments
from .site import Site
from .step import calls_for, step_time
from .target import Target

__all__ = ["Predicted"]


class Predicted:
    """A `choose.Price` in microseconds.

    Evidence counts before the model: where calls of a kernel were measured on this device in this regime, each adds what it
    added there, nothing if that was within the noise; in another model or at other sizes the share of the step that they
    added. In a stack where kernel calls were ruinous none is worth a try.
    """

    def __init__(self, view: GraphView, target: Target, case: Case) -> None:
        self._view, self._target, self._case = view, target, case
        self._ruined = ruined(target.evidence, case) is not None

    def __call__(self, block: Block, taken: Sequence[Site]) -> float:
        """Microseconds of `block` with kernels in the place of `taken`."""
        if taken and self._ruined:
            return math.inf
        measured = {id(s): us for s in taken if (us := self._measured(block, s)) is not None}
        calls = [s for s in taken if id(s) not in measured]
        return self._modelled(block, calls) + sum(measured.values())

    def _modelled(self, block: Block, calls: Sequence[Site]) -> float:
        prediction = fuse(self._view, self._target.rules, nodes=block.nodes, calls=calls)
        lazy = self._target.regime == "lazy"
        executables = segments(self._view, calls, block.nodes) + len(calls) if lazy else 1
        work = calls_for(self._view, {s.outputs[0].name: s for s in calls}, self._target)
        return step_time(self._view, prediction, self._target, work, executables).us

    def _measured(self, block: Block, site: Site) -> float | None:
        """Microseconds that a call in the place of `site` adds by evidence; None where there is none."""
        kernel = f"{site.kind}:{site.form}"
        found = delta(self._target.evidence, self._case, kernel) if self._case.model else None
        if found is None:
            return None
        if found.neutral:
            return 0.0
        if found.table.case == self._case:
            return found.us_per_call
        alike = sum(s.kind == site.kind for s in block.sites)
        return (found.ratio - 1) * self._modelled(block, ()) / alike
