"""What a compiler fuses: as records, whoever says so — our model of it or the compiler itself."""

from .groups import Fusion, Group

__all__ = ["Fusion", "Group"]
