"""The time of a block with some of its sites taken by kernels, measured: compiled by the inner backend and run."""

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
"""Rounds at least, and at most: more while the noise is above half of `choose.MARGIN`."""
SECONDS = 3.0
"""After the least number of rounds no further one begins once a batch of candidates has run this long."""
SCREENING = 4
"""Rounds after which a candidate that lost them all drops out: by chance alone, one case in 16 at most."""
SAMPLE_S = 1e-3
"""A sample runs a candidate as often as it takes for the clock's own time not to count."""
CHUNK = 1 << 20

log = logging.getLogger("fluxrewrite")
Compile = Callable[[GraphModule, list[Any]], Callable[..., Any]]
Run = Callable[[], Any]


@dataclass
class _Bench:
    """What is kept of one block while its candidates are compared.

    Attributes:
        block: the block.
        key: of its file of times.
        part: the block without kernels.
        operands: made up once, by name; all candidates read the same memory.
        known: times by digest of the candidate, from the file and measured.
    """

    block: Block
    key: str
    part: Subgraph
    known: dict[str, Time]
    operands: dict[str, torch.Tensor] = field(default_factory=dict)
    base: Run | None = None


class Measured:
    """A `choose.Price` in microseconds, on the machine at hand.

    A block is taken out of the graph and runs on made-up tensors of the shapes, strides, dtypes and devices that its
    operands have. Candidates and the block without kernels run in turn, and a candidate's time is what it takes relative
    to the other in the same rounds: a machine that slows down meanwhile slows both. A candidate that fails has infinite time.

    Args:
        gm: the graph; not changed.
        selection: passes and kernels.
        compiler: the inner backend, `(gm, example_inputs) -> callable`.
        times: what was measured before.
        machine: what else times depend on, from the device (`times.machine_text`).
        warn: is told, under a name, of candidates that fail.

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
        """Microseconds of `block` with kernels in the place of each candidate's sites, and the noise."""
        if self._bench is None or self._bench.block is not block:
            self._bench = None  # the last block's tensors go before the next one's are made
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
        """Run new candidates and the block without kernels in turn, and keep their times."""
        none = bench.part.digest
        with _apart():
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
        """The part compiled and run twice, bound to its operands."""
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
def _apart() -> Iterator[None]:
    """Where a compile inside a compile sees nothing of the outer one: Dynamo's fake mode and its parameters."""
    with tracing(None), torch.no_grad():
        yield


def _wait(operands: Sequence[Operand]) -> Callable[[], None]:
    device = next((o.device for o in operands if o.device.type != "cpu"), None)
    return (lambda: None) if device is None else (lambda: torch.accelerator.synchronize(device))


def interleaved(runs: Mapping[str, Run]) -> dict[str, list[float]]:
    """Seconds of each run in each round, one after the other; another one comes first in each round.

    The first of `runs` is what the others are compared with: rounds go on until they are known well enough beside it. One that
    was slower in each of the first rounds has lost and drops out, so that its list is shorter.
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
    """Whether each is known to half of the margin, or is slower beyond doubt."""
    beside = [relative(seconds[name], seconds[base]) for name in seconds.keys() - {base}]
    return all(noise <= MARGIN / 2 or ratio - noise > 1 for ratio, noise in beside)


def relative(seconds: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """How long something takes beside something else that ran in the same rounds: the median of the ratios, and its noise.

    The noise is that of the median (`cost.noise.median_noise`). Other programs lengthen times and never shorten them: where the
    least times of the two give a larger ratio than the medians do, the noise is at least the difference.

    Args:
        seconds: of the one, in the first rounds.
        base: of the other, in all rounds.
    """
    base = base[: len(seconds)]
    ratios = [a / b for a, b in zip(seconds, base, strict=True)]
    middle = statistics.median(ratios)
    return middle, max(median_noise(ratios), min(seconds) / min(base) - middle)


def sample(operand: Operand) -> torch.Tensor:
    """A tensor with the operand's shape, strides, dtype and device: small normal numbers, zeros for integers, True for bool.

    Zero is an index into any tensor, and True keeps every place of a mask.
    """
    if 0 in operand.shape:
        return torch.empty_strided(operand.shape, operand.stride, dtype=operand.dtype, device=operand.device)
    size = 1 + sum((n - 1) * s for n, s in zip(operand.shape, operand.stride, strict=True))
    if operand.dtype.is_floating_point or operand.dtype.is_complex:
        draws = torch.randn(min(size, CHUNK), generator=torch.Generator().manual_seed(0)) * 0.02
        chunk = draws.to(operand.dtype).to(operand.device)  # the same numbers again and again: new ones take seconds
        memory = torch.empty(size, dtype=operand.dtype, device=operand.device)
        for start in range(0, size, CHUNK):
            memory[start : start + CHUNK] = chunk[: size - start]
    else:
        memory = torch.full((size,), int(operand.dtype == torch.bool), dtype=operand.dtype, device=operand.device)
    return memory.as_strided(operand.shape, operand.stride)
