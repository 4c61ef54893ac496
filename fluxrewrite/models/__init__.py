"""A model by name, its weights or one rank's shards, its captured graphs, its denoising workload."""

from .registry import Shapes, find_model

__all__ = ["Shapes", "find_model"]
