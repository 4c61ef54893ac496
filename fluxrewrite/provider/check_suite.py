"""What a provider's kernels are checked by: its cases, and what became of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["CheckCase", "Result", "Suite"]


@dataclass(frozen=True)
class CheckCase:
    """One call to check.

    Attributes:
        kernel: name of the op.
        dtype: "bf16" or "fp32".
        sizes: those that differ from the defaults, which the provider completes.
        logits: greatest scaled score; 0 leaves inputs as they are drawn.
        cores: physical cores.
        quick: part of the representative subset.
    """

    kernel: str
    dtype: str
    sizes: Mapping[str, int]
    logits: float = 0.0
    cores: int = 1
    quick: bool = False

    def __str__(self) -> str:
        """Name that `--filter` looks into: "rope fp32 sequence=77 heads=6"."""
        words = [self.kernel, self.dtype, *(f"{k}={v}" for k, v in self.sizes.items())]
        return " ".join(words + [f"logits={self.logits:g}"] * bool(self.logits) + ["cores=2"] * (self.cores == 2))


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes:
        case: its name; `kernel`, `dtype` and `logits` as in the case.
        simulator: "emulator", "nki", or "nki against emulator" for the difference of the two.
        error: relative Frobenius error, of the worst output; `cosine` likewise. Not-a-number when there is no result.
        tolerance, least_cosine: the limits.
        seconds: of the run.
        note: why there is no result.
        outside: the case is beyond the provider's limits and was not run.
    """

    case: str
    kernel: str
    dtype: str
    logits: float
    simulator: str
    error: float
    cosine: float
    tolerance: float
    least_cosine: float
    seconds: float
    note: str = ""
    outside: bool = False

    @property
    def passed(self) -> bool:
        """Whether the limits hold; a case that was not run counts as passed."""
        return self.outside or (self.error <= self.tolerance and self.cosine >= self.least_cosine)

    @property
    def excess(self) -> float:
        """How near to failing: the error over its limit or the same for 1 - cosine, the larger; inf without a result."""
        if self.outside:
            return 0.0
        if math.isnan(self.error):
            return math.inf
        return max(self.error / self.tolerance, (1 - self.cosine) / (1 - self.least_cosine))


class Suite(Protocol):
    """The cases of a provider, what can run them here, and how one is run."""

    def cases(self) -> Sequence[CheckCase]:
        """All cases, in the order in which they run."""

    def simulators(self, choice: str | None) -> Mapping[str, Any]:
        """What runs the kernels, by name: those of `choice`, or what is there when None. Raises InputError for what is not."""

    def run_case(
        self, case: CheckCase, tools: Mapping[str, Any], provider: str = "builtin", seed: int = 0
    ) -> Sequence[Result]:
        """Run a case in each of `tools`, as `simulators` answers them, with random inputs that `seed` changes."""
