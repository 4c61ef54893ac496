"""Random respellings of small programs, and programs that are close but wrong; what the passes make of them."""

from .case import RESPELLINGS, Case, Verdict, drawn, judged
from .judge import Judge
from .programs import PROGRAMS
from .wrong import WRONG

__all__ = ["PROGRAMS", "RESPELLINGS", "WRONG", "Case", "Judge", "Verdict", "drawn", "judged"]
