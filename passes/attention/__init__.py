"""Attention: the pass, and the search for attention that no pattern matches."""

from .attention import Attention

__all__ = ["Attention"]
