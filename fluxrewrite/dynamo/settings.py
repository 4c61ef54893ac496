"""What a backend rewrites, by which rule, and for which device."""

from __future__ import annotations

from dataclasses import dataclass

from ..fusion.boundary.target import Target
from ..rewrite.plan import Policy
from ..rewrite.proof import Store
from ..rewrite.selection import Selection

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The part of a backend's arguments that decides how a graph is rewritten.

    Attributes:
        selection: passes and kernels.
        policy: which eligible sites a kernel takes.
        target: what times are predicted for; None predicts nothing.
        proofs: where proofs are kept; None proves nothing.
    """

    selection: Selection
    policy: Policy
    target: Target | None = None
    proofs: Store | None = None
