"""Guards of a tree of sources, found and disabled one at a time: which tests notice. `tools/mutate_guards.py` is the way in."""

from .find import Guard, guards_of, instrumented
from .run import Outcome, Runner, Unfit
from .tree import Tree

__all__ = ["Guard", "Outcome", "Runner", "Tree", "Unfit", "guards_of", "instrumented"]
