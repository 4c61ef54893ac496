"""What a pass is, the checks and proofs that every site passes, which sites a kernel takes, and the rewritten copy of a graph."""

from .base import Builder, Pass
from .checks import blocked

__all__ = ["Builder", "Pass", "blocked"]
