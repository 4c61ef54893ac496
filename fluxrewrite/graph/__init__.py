"""Reading a traced graph: one name for each operation, views and shapes, memory, modules, subgraphs."""

from .shapes import same_shape, size_of
from .view import GraphView

__all__ = ["GraphView", "same_shape", "size_of"]
