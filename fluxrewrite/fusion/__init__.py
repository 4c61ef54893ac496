"""What a compiler fuses. The records are the same for the model in this package and for the answer of a real compiler."""

from .groups import Fusion, Group
from .rules import Rules, load_rules
from .schedule import FusionPrediction, fuse

__all__ = ["Fusion", "FusionPrediction", "Group", "Rules", "fuse", "load_rules"]
