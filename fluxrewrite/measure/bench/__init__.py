"""Denoising loops with and without kernels, timed: each variant in a process of its own, with caches that are empty."""

from .run import bench
from .variants import DEFAULT_VARIANTS, Chosen, parse_variants

__all__ = ["DEFAULT_VARIANTS", "Chosen", "bench", "parse_variants"]
