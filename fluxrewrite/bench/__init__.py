"""Denoising loops with and without kernels, timed: each variant in a process of its own, with caches that are empty."""

from .evidence import evidence_of
from .runs import RUNS_SCHEMA, Runs, Setup, Timed, Variant, load_runs, save_runs
from .suite import bench
from .variants import DEFAULT_VARIANTS, Chosen, parse_variants

__all__ = [
    "DEFAULT_VARIANTS",
    "RUNS_SCHEMA",
    "Chosen",
    "Runs",
    "Setup",
    "Timed",
    "Variant",
    "bench",
    "evidence_of",
    "load_runs",
    "parse_variants",
    "save_runs",
]
