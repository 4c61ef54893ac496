"""Checks of a provider's kernels: the cases, and the result of each."""

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
        sizes: the sizes that differ from the defaults; the provider adds the others.
        logits: greatest scaled score that inputs are scaled to; 0 leaves random inputs unscaled.
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
        """The name that `--filter` searches: "rope fp32 sequence=77 heads=6"."""
        words = [self.kernel, self.dtype, *(f"{k}={v}" for k, v in self.sizes.items())]
        return " ".join(words + [f"logits={self.logits:g}"] * bool(self.logits) + ["cores=2"] * (self.cores == 2))


@dataclass(frozen=True)
class Result:
    """The result of a case.

    Attributes:
        case: its name; `kernel`, `dtype` and `logits` as in the case.
        simulator: "emulator", "nki", or "nki against emulator" for the difference of the two.
        error, cosine: relative Frobenius error and cosine of the worst output; not-a-number without a result.
        tolerance, least_cosine: their limits.
        seconds: of the run.
        note: why there is no result.
        outside: whether the case is beyond the provider's limits and was not run.
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
        """Whether the limits hold. A case that was not run because it is `outside` counts as passed."""
        return self.outside or (self.error <= self.tolerance and self.cosine >= self.least_cosine)

    @property
    def excess(self) -> float:
        """How close the case is to failing: the larger of error / its limit and (1 - cosine) / its limit; inf without a result."""
        if self.outside:
            return 0.0
        if math.isnan(self.error):
            return math.inf
        return max(self.error / self.tolerance, (1 - self.cosine) / (1 - self.least_cosine))


class Suite(Protocol):
    """The cases of a provider, the simulators that can run them here, and how to run one."""

    def cases(self) -> Sequence[CheckCase]:
        """All cases, in the order in which they run."""

    def simulators(self, choice: str | None) -> Mapping[str, Any]:
        """The simulators that run the kernels, by name: that of `choice`, or all installed ones when None.

        Raises InputError for a choice that is not installed.
        """

    def run_case(
        self, case: CheckCase, tools: Mapping[str, Any], provider: str = "builtin", seed: int = 0
    ) -> Sequence[Result]:
        """Run a case in each of `tools`, the simulators by name, with random inputs drawn from `seed`."""
