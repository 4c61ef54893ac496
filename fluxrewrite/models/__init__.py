"""Models by name: their weights or one rank's shards, their captured graphs, and their denoising loops."""

from .registry import Shapes, find_model

__all__ = ["Shapes", "find_model"]
