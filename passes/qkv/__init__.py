"""Q, K and V projections: the pass, and the tracing of roles and rows."""

from .qkv import Qkv

__all__ = ["Qkv"]
