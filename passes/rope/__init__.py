"""Rotary embeddings: the pass, and the search for rotations that no pattern matches."""

from .rope import Rope

__all__ = ["Rope"]
