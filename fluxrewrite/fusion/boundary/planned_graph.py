"""One graph with its plan, and what the plan is predicted to change."""

from __future__ import annotations

from dataclasses import dataclass

from ...graph.view import GraphView
from ...rewrite.plan import Plan
from .compare import RewriteEffect

__all__ = ["PlannedGraph"]


@dataclass(frozen=True)
class PlannedGraph:
    """One graph with its plan, and what the plan does to it where that was predicted."""

    view: GraphView
    plan: Plan
    change: RewriteEffect | None = None
