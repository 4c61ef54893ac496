"""What a compiler fuses: as records, whoever says so — our model of it or the compiler itself."""

from .groups import Fusion, Group
from .rules import Rules, load_rules
from .schedule import Prediction, fuse

__all__ = ["Fusion", "Group", "Prediction", "Rules", "fuse", "load_rules"]
