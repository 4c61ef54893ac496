"""Small models of many classes, built from their configurations with random weights."""

from . import decoders, exotic, image, other, video
from .case import Case, build

CASES: dict[str, Case] = {case.name: case for part in (image, video, exotic, other, decoders) for case in part.CASES}

__all__ = ["CASES", "Case", "build"]
