"""The dtype that a bench runs in by default."""

from __future__ import annotations

import time

import torch

__all__ = ["bfloat16_slowdown"]

_ROWS, _WIDTH, _RUNS = 256, 1024, 5


def bfloat16_slowdown() -> float:
    """How many times longer the product [256, 1024] @ [1024, 1024] takes in bfloat16 than in float32 on this CPU.

    It is measured, in a tenth of a second, and not derived from the instruction set, because what torch makes of a processor
    changes between releases. With torch 2.13, processors without bfloat16 instructions gave 4.6 (AVX-512) and 3.7 (AVX2).
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
