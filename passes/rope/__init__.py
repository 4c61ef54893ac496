"""Rotary embeddings: the pass, and the search for rotations that no pattern knows."""

from .rope import Rope

__all__ = ["Rope"]
