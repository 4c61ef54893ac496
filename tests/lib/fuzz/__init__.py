"""Random respellings of small programs, and programs that are close but wrong; what the passes make of them."""

from .case import RESPELLINGS, Case, Verdict, drawn, judged
from .edit import Draft, Draw, Unfit
from .judge import Judge
from .programs import PROGRAMS, program
from .tally import GOAL, KINDS, Tally, ran
from .wrong import WRONG

__all__ = [
    "GOAL",
    "KINDS",
    "PROGRAMS",
    "RESPELLINGS",
    "WRONG",
    "Case",
    "Draft",
    "Draw",
    "Judge",
    "Tally",
    "Unfit",
    "Verdict",
    "drawn",
    "judged",
    "program",
    "ran",
]
