"""Measure a device profile of this machine's processor, with torch.

Every figure is the median of several rounds, with the smallest and the largest as its range. A round is the best of three tries,
because other programs make a try slower, never faster.
"""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..cost.devices import DEVICE_SCHEMA, Device, Figure
from ..errors import InputError, one_line

__all__ = ["FULL", "QUICK", "RESTLESS", "Effort", "calibrate", "figure", "seconds", "steps", "with_threads"]

Step = Callable[[str], None]

RESTLESS = 0.5
"""Above this spread, a figure depends more on other programs than on the machine."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_FEW, _MANY = 4, 20  # the cost of one operation is the difference between graphs with so many
_TRIES = 3
_LEAST_US = 0.01  # a smaller difference of two times is noise of the clock


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: rounds per figure; the median counts.
        stream_mb: size of each of the three arrays for memory bandwidth, in MB (10^6 bytes); far larger than a cache.
        matmul_s: matrices grow until one product takes this many seconds.
        matmul_max: largest number of rows of a matrix.
        loops: calls per try if a single one is too short to time.
    """

    rounds: int
    stream_mb: int
    matmul_s: float
    matmul_max: int
    loops: int


FULL = Effort(rounds=9, stream_mb=256, matmul_s=0.05, matmul_max=4096, loops=200)
QUICK = Effort(rounds=5, stream_mb=64, matmul_s=0.01, matmul_max=1024, loops=30)


def steps() -> tuple[str, ...]:
    """Names of the figures, in the order in which they are measured."""
    return (
        "memory",
        "vector",
        *(f"matmul {str(d).removeprefix('torch.')}" for d in DTYPES),
        "kernel",
        "call",
        "launch",
    )


def calibrate(
    effort: Effort = FULL,
    *,
    name: str = "cpu",
    threads: int | None = None,
    backend: str | Callable[..., Any] = "inductor",
    step: Step = lambda name: None,
) -> Device:
    """Measure a profile of this machine's processor.

    Args:
        effort: how much is measured.
        name: name of the profile. Evidence is looked up by it, so a plain "cpu" finds runs on "cpu".
        threads: number of torch threads; torch's own when None.
        backend: compiler whose fixed costs are measured, as `torch.compile` takes it.
        step: called with the name of each figure once it is measured.

    Raises:
        InputError: fewer than 1 thread, or a backend that cannot compile here.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads {threads}: must be 1 or more")
    with with_threads(threads) as used, torch.no_grad():
        figures = _figures(effort, backend, step)
        return Device(
            schema=DEVICE_SCHEMA,
            name=name,
            title=_processor(),
            core=f"{used} threads of the processor, with torch {torch.__version__}",
            regimes=("compile", "lazy"),
            compiler="inductor",
            runs_kernels=False,
            matmul={n.removeprefix("matmul "): f for n, f in figures.items() if n.startswith("matmul ")},
            **{n: f for n, f in figures.items() if not n.startswith("matmul ")},  # type: ignore[arg-type]
        )


def _figures(effort: Effort, backend: str | Callable[..., Any], step: Step) -> dict[str, Figure]:
    """Every figure, by its name in `steps`."""
    found: dict[str, Figure] = {}

    def add(name: str, unit: str, values: list[float], how: str) -> None:
        found[name] = figure(values, unit, f"fluxrewrite calibrate, median of {effort.rounds}: {how}")
        step(name)

    add("memory", "GB/s", _memory(effort), f"a = b + s * c on 3 x {effort.stream_mb} MB")
    add("vector", "Gelem/s", _vector(effort), "a = b + c on 65536 float32 numbers")
    for dtype in DTYPES:
        rates, rows = _matmul(effort, dtype)
        add(f"matmul {str(dtype).removeprefix('torch.')}", "TFLOP/s", rates, f"{rows} x {rows} matrices")
    kernel, call, launch = _fixed_costs(effort, backend)
    graph = f"a graph of {_named(backend)}"
    add("kernel", "us", kernel, f"each further small loop in {graph}")
    add("call", "us", call, f"each further opaque custom op in {graph}, less its work")
    add("launch", "us", launch, f"call of {graph} with one small loop, less the loop")
    return found


def figure(values: list[float], unit: str, source: str) -> Figure:
    """A measured figure, rounded to three digits because the rounds differ in the second."""
    low, middle, high = (float(f"{v:.3g}") for v in (min(values), statistics.median(values), max(values)))
    return Figure(
        value=middle,
        unit=unit,
        basis="measured",
        source=source,
        low=low,
        high=high,
        spread=float(f"{(high - low) / middle:.3g}"),
    )


def seconds(run: Callable[[], object], loops: int = 1) -> float:
    """Seconds per call, the best of three tries."""
    best = float("inf")
    for _ in range(_TRIES):
        start = time.perf_counter()
        for _ in range(loops):
            run()
        best = min(best, (time.perf_counter() - start) / loops)
    return best


def _memory(effort: Effort) -> list[float]:
    """GB/s of a triad, which reads two arrays and writes one: 12 bytes per element."""
    n = effort.stream_mb * 1_000_000 // 4
    a, b, c = (torch.ones(n) for _ in range(3))

    def triad() -> None:
        torch.add(b, c, alpha=2.0, out=a)

    triad()
    return [12 * n / seconds(triad) / 1e9 for _ in range(effort.rounds)]


def _vector(effort: Effort) -> list[float]:
    """10^9 elements per second, on arrays that stay in a cache."""
    n = 1 << 16
    a, b, c = (torch.ones(n) for _ in range(3))

    def add() -> None:
        torch.add(b, c, out=a)

    add()
    return [n / seconds(add, effort.loops) / 1e9 for _ in range(effort.rounds)]


def _matmul(effort: Effort, dtype: torch.dtype) -> tuple[list[float], int]:
    """TFLOP/s of a product of square matrices, and their number of rows."""
    rows = 128
    product = _product(rows, dtype)
    while seconds(product) < effort.matmul_s and rows * 2 <= effort.matmul_max:
        rows *= 2
        product = _product(rows, dtype)
    return [2 * rows**3 / seconds(product) / 1e12 for _ in range(effort.rounds)], rows


def _product(rows: int, dtype: torch.dtype) -> Callable[[], object]:
    """A product of square matrices that has run once, so that the first try is not slower than the rest."""
    a, b, out = (torch.ones(rows, rows, dtype=dtype) for _ in range(3))
    torch.mm(a, b, out=out)
    return lambda: torch.mm(a, b, out=out)


@torch.library.custom_op("fluxrewrite_calibrate::copy", mutates_args=())
def _copy(x: torch.Tensor) -> torch.Tensor:
    """An opaque op that does almost nothing, declared in the same way as the kernels."""
    return x.clone()


@_copy.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _loops(count: int) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """A function whose results differ in size, so that a compiler cannot fuse them into one loop."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x[: 64 * (i + 1)] * 1.5 for i in range(count))

    return run


def _calls(count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(x: torch.Tensor) -> torch.Tensor:
        for _ in range(count):
            x = torch.ops.fluxrewrite_calibrate.copy(x)
        return x

    return run


def _fixed_costs(effort: Effort, backend: str | Callable[..., Any]) -> tuple[list[float], list[float], list[float]]:
    """The us that another kernel, another opaque call and another executable add, with a value for each round."""
    x = torch.ones(64 * _MANY)
    made = (_loops(_FEW), _loops(_MANY), _calls(_FEW), _calls(_MANY), _loops(1))
    runs = [_compiled(function, x, backend) for function in made] + [x.clone]
    times = [[seconds(run, effort.loops) * 1e6 for run in runs] for _ in range(effort.rounds)]
    more = _MANY - _FEW
    kernels = [max(_LEAST_US, (t[1] - t[0]) / more) for t in times]
    kernel = statistics.median(kernels)
    calls = [max(_LEAST_US, (t[3] - t[2]) / more - t[5]) for t in times]
    return kernels, calls, [max(_LEAST_US, t[4] - kernel) for t in times]


def _compiled(function: Callable[..., Any], x: torch.Tensor, backend: str | Callable[..., Any]) -> Callable[[], object]:
    compiled = torch.compile(function, backend=backend, dynamic=False, fullgraph=True)
    try:
        for _ in range(3):
            compiled(x)
    except Exception as error:  # backends have no error class in common
        raise InputError(
            f"{_named(backend)} cannot compile here ({one_line(error)}); it needs a C++ compiler such as g++"
        ) from error
    return lambda: compiled(x)


@contextlib.contextmanager
def with_threads(count: int | None) -> Iterator[int]:
    """Run the block with this many torch threads; yields the number in use."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _named(backend: str | Callable[..., Any]) -> str:
    return backend if isinstance(backend, str) else getattr(backend, "__name__", type(backend).__name__)


def _processor() -> str:
    """The name of the processor, as the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
