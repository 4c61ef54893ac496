"""Q, K and V projections: the pass, and how roles and rows are traced."""

from .qkv import Qkv

__all__ = ["Qkv"]
