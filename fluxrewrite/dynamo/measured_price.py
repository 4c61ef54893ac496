"""The measured time of a block with some of its sites replaced by kernels: the block is compiled by the inner backend and run."""

from __future__ import annotations

import hashlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._guards import tracing
from torch.fx import GraphModule

from ..cost.noise import median_noise
from ..errors import RewriteError
from ..graph.subgraph import Operand, Subgraph, extract
from ..provider.digests import kernel_text
from ..rewrite.apply import rewrite
from ..rewrite.base import Replacement
from ..rewrite.search import MARGIN, Basis, Block, Priced, kinds_of, label
from ..rewrite.selection import Selection
from ..site import Site
from .time_cache import Time, Times

__all__ = ["Measured", "interleaved", "relative", "sample"]

ROUNDS = (7, 60)
"""Minimum and maximum number of rounds. Rounds are added while the noise exceeds half of `search.MARGIN`."""
SECONDS = 3.0
"""Once a batch of candidates has run this long, no round is added to the minimum."""
SCREENING = 4
"""A candidate that loses each of the first rounds drops out. By chance alone that happens in one case in 16 at most."""
SAMPLE_S = 1e-3
"""A sample repeats a candidate until it takes this long, so that reading the clock does not matter."""
CHUNK = 1 << 20

log = logging.getLogger("fluxrewrite")
Compile = Callable[[GraphModule, list[Any]], Callable[..., Any]]
Run = Callable[[], Any]


@dataclass
class _Bench:
    """The state of one block while its candidates are compared.

    Attributes:
        block: the block.
        key: of its file of times.
        part: the block without kernels.
        operands: random tensors by name, made once; all candidates read the same memory.
        known: times by digest of the candidate, from the file and measured.
    """

    block: Block
    key: str
    part: Subgraph
    known: dict[str, Time]
    operands: dict[str, torch.Tensor] = field(default_factory=dict)
    base: Run | None = None


class Measured:
    """A `search.Price` in microseconds, measured on this machine.

    A block is extracted from the graph and runs on random tensors with the shapes, strides, dtypes and devices of its operands.
    Candidates and the block without kernels take turns, and a candidate's time is relative to the block without kernels in the
    same rounds, because a machine that slows down slows both. A candidate that fails has infinite time.

    Args:
        gm: the graph; not changed.
        selection: passes and kernels.
        compiler: the inner backend, `(gm, example_inputs) -> callable`.
        times: earlier measurements.
        machine: what times depend on besides the block, given the device (`machine.machine_text`).
        warn: called with a key and a message for each candidate that fails.

    Raises RewriteError, or what the compiler raises, when a block cannot run even without kernels.
    """

    basis: Basis = "measured"
    expensive = True

    def __init__(
        self,
        gm: GraphModule,
        selection: Selection,
        *,
        compiler: Compile,
        times: Times,
        machine: Callable[[torch.device], str],
        warn: Callable[[str, str], None],
    ) -> None:
        self._gm, self._selection, self._compiler = gm, selection, compiler
        self._times, self._machine, self._warn = times, machine, warn
        self._names = {n.name for n in gm.graph.nodes}
        self._bench: _Bench | None = None

    def __call__(self, block: Block, candidates: Sequence[Sequence[Site]]) -> list[Priced]:
        """Microseconds of `block` with kernels instead of each candidate's sites, and the noise."""
        if self._bench is None or self._bench.block is not block:
            self._bench = None  # frees the last block's tensors before the next block's are made: both may not fit
            self._bench = self._open(block)
        bench = self._bench
        parts = [self._candidate(bench, taken) for taken in candidates]
        new = {p[0]: p[1] for p in parts if p is not None and p[0] not in bench.known}
        if new:
            self._measure(bench, new)
            self._times.save(bench.key, bench.known)
        found = [None if p is None else bench.known.get(p[0]) for p in parts]
        prices = [Priced(math.inf) if t is None else Priced(t.us, t.noise_us) for t in found]
        self._log(bench, candidates, prices)
        return prices

    def _open(self, block: Block) -> _Bench:
        part = extract(self._gm, block.nodes)
        device = next((o.device for o in part.operands), torch.device("cpu"))
        key = hashlib.sha256(f"{part.digest}\n{self._machine(device)}".encode()).hexdigest()
        return _Bench(block, key, part, self._times.load(key))

    def _candidate(self, bench: _Bench, taken: Sequence[Site]) -> tuple[str, Subgraph] | None:
        """The block with these sites rewritten, and its digest; None when that fails."""
        if not taken:
            return bench.part.digest, bench.part
        passes, kernels = self._selection.passes, self._selection.kernels
        used = {s.kind: kernels[passes[s.kind].kernel] for s in taken if not s.inline}
        try:
            gm, left = rewrite(
                self._gm, [Replacement(passes[s.kind], s, None if s.inline else used[s.kind]) for s in taken]
            )
            if left:
                raise RewriteError(left[0][1].message)
            inside = {n.name for n in bench.block.nodes}
            mine = [n for n in gm.graph.nodes if n.name in inside or n.name not in self._names]
            part = extract(gm, [n for n in mine if n.op != "placeholder"])
        except Exception as error:
            self._failed(bench, taken, error)
            return None
        texts = [part.digest, *sorted(map(kernel_text, used.values()))]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest(), part

    def _measure(self, bench: _Bench, new: Mapping[str, Subgraph]) -> None:
        """Time new candidates and the block without kernels in turn, and keep their times."""
        none = bench.part.digest
        with _outside_the_compile():
            if bench.base is None:
                bench.base = self._ready(bench, bench.part)
            runs = {none: bench.base}
            for key, part in new.items():
                if key == none:
                    continue
                try:
                    runs[key] = self._ready(bench, part)
                except Exception as error:
                    self._failed(bench, part, error)
            seconds = interleaved(runs)
        base = bench.known.get(none) or Time(us=statistics.median(seconds[none]) * 1e6, noise_us=0.0)
        bench.known[none] = base
        for key in runs.keys() - {none}:
            ratio, noise = relative(seconds[key], seconds[none])
            bench.known[key] = Time(us=base.us * ratio, noise_us=base.us * noise)

    def _ready(self, bench: _Bench, part: Subgraph) -> Run:
        """The part, compiled, bound to its operands, and run twice: the first calls compile and fill caches."""
        for operand in part.operands:
            if operand.name not in bench.operands:
                bench.operands[operand.name] = sample(operand)
        inputs = [bench.operands[o.name] for o in part.operands]
        compiled = self._compiler(part.module, inputs)
        wait = _wait(part.operands)

        def run() -> None:
            compiled(*inputs)
            wait()

        run()
        run()
        return run

    def _failed(self, bench: _Bench, what: Sequence[Site] | Subgraph, error: Exception) -> None:
        kinds = "kernels" if isinstance(what, Subgraph) else "+".join(sorted({s.kind for s in what}))
        where = f" in {bench.block.path}" if bench.block.path else ""
        message = f"{kinds}{where} cannot be measured and are not chosen ({type(error).__name__}: {error})"
        self._warn(f"measure {bench.block.path}", message)

    def _log(self, bench: _Bench, candidates: Sequence[Sequence[Site]], prices: Sequence[Priced]) -> None:
        lines = [f"{bench.block.path or 'the graph'}: measured, in us"]
        for taken, price in zip(candidates, prices, strict=True):
            name = label(bench.block, kinds_of(taken))
            lines.append(f"{price.us:12.1f} +- {price.noise_us:.1f}  {name}")
        log.info("fluxrewrite: %s", "\n".join(lines))


@contextmanager
def _outside_the_compile() -> Iterator[None]:
    """Hide the compile that is going on: without this, the inner one would see Dynamo's fake mode and its parameters."""
    with tracing(None), torch.no_grad():
        yield


def _wait(operands: Sequence[Operand]) -> Callable[[], None]:
    device = next((o.device for o in operands if o.device.type != "cpu"), None)
    return (lambda: None) if device is None else (lambda: torch.accelerator.synchronize(device))


def interleaved(runs: Mapping[str, Run]) -> dict[str, list[float]]:
    """Seconds of each run in each round. Each round starts with another run, so that none always profits from a warm cache.

    The first of `runs` is the baseline: rounds go on until the others are known well enough relative to it. A run that was slower
    in each of the first rounds drops out, and its list is shorter.
    """
    names = list(runs)
    repeats = {name: max(1, math.ceil(SAMPLE_S / max(_seconds(runs[name], 1), 1e-9))) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for number in range(ROUNDS[1]):
        for i in range(len(names)):
            name = names[(i + number) % len(names)]
            seconds[name].append(_seconds(runs[name], repeats[name]))
        base = seconds[names[0]]
        names = [n for n in names if n == names[0] or not _lost(seconds[n], base)]
        decided = len(names) == 1 < len(runs)
        late = time.perf_counter() - start > SECONDS
        if decided or (number + 1 >= ROUNDS[0] and (late or _clear({n: seconds[n] for n in names}, names[0]))):
            break
    return seconds


def _lost(seconds: Sequence[float], base: Sequence[float]) -> bool:
    """Slower by more than the margin in each of `SCREENING` rounds."""
    return len(seconds) >= SCREENING and all(a > b * (1 + MARGIN) for a, b in zip(seconds, base, strict=True))


def _seconds(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _clear(seconds: Mapping[str, Sequence[float]], base: str) -> bool:
    """Whether each ratio is known to within half of the margin, or is certainly above 1."""
    ratios = [relative(seconds[name], seconds[base]) for name in seconds.keys() - {base}]
    return all(noise <= MARGIN / 2 or ratio - noise > 1 for ratio, noise in ratios)


def relative(seconds: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Time of a run relative to a baseline in the same rounds: the median of the ratios, and its noise.

    The noise is that of the median (`cost.noise.median_noise`). Other programs make times longer and never shorter, so if the
    ratio of the shortest times is above the median of the ratios, the noise is at least the difference.

    Args:
        seconds: of the run, for the first rounds.
        base: of the baseline, for all rounds.
    """
    base = base[: len(seconds)]
    ratios = [a / b for a, b in zip(seconds, base, strict=True)]
    middle = statistics.median(ratios)
    return middle, max(median_noise(ratios), min(seconds) / min(base) - middle)


def sample(operand: Operand) -> torch.Tensor:
    """A tensor with the operand's shape, strides, dtype and device: small normal numbers, zeros for integers, True for bool.

    Zero is a valid index into any tensor, and True masks nothing.
    """
    if 0 in operand.shape:
        return torch.empty_strided(operand.shape, operand.stride, dtype=operand.dtype, device=operand.device)
    size = 1 + sum((n - 1) * s for n, s in zip(operand.shape, operand.stride, strict=True))
    if operand.dtype.is_floating_point or operand.dtype.is_complex:
        draws = torch.randn(min(size, CHUNK), generator=torch.Generator().manual_seed(0)) * 0.02
        chunk = draws.to(operand.dtype).to(
            operand.device
        )  # repeated, because drawing new numbers for a large tensor takes seconds
        memory = torch.empty(size, dtype=operand.dtype, device=operand.device)
        for start in range(0, size, CHUNK):
            memory[start : start + CHUNK] = chunk[: size - start]
    else:
        memory = torch.full((size,), int(operand.dtype == torch.bool), dtype=operand.dtype, device=operand.device)
    return memory.as_strided(operand.shape, operand.stride)
