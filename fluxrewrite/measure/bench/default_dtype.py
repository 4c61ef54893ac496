"""The dtype that a bench runs in where none is asked for."""

from __future__ import annotations

import time

import torch

__all__ = ["bfloat16_slowdown"]

_ROWS, _WIDTH, _RUNS = 256, 1024, 5


def bfloat16_slowdown() -> float:
    """Time of a matrix product [256, 1024] @ [1024, 1024] in bfloat16 over that in float32 on this CPU; a tenth of a second.

    Measured, not read off the instruction set: what torch does with a processor changes with its release. Seen with torch 2.13 on
    processors without instructions for bfloat16: 4.6 with AVX-512, 3.7 with AVX2.
    """
    return _seconds(torch.bfloat16) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    x, weight = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - start)
    return min(times)
