"""What a compiler fuses: as records, whoever says so — our model of it or the compiler itself."""

from .groups import Fusion, Group
from .rules import Rules, load_rules
from .schedule import FusionPrediction, fuse

__all__ = ["Fusion", "FusionPrediction", "Group", "Rules", "fuse", "load_rules"]
