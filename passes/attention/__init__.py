"""Attention: the pass, and the search for attention that no pattern knows."""

from .attention import Attention

__all__ = ["Attention"]
