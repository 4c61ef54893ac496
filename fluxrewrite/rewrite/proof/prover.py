"""The proof of a site: found in the cache by its digest, or obtained by running both sides once."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import tracing
from torch.fx import Node

from ...errors import RewriteError, one_line
from ...graph.fake_values import value_of
from ...graph.op_table import read
from ...graph.shapes import SYMBOLS, hint
from ...graph.view import GraphView
from ...kernel import Kernel
from ...provider.digests import core_files, files_digest, source_digest
from ...site import Proof, Site
from ..base import Pass
from .cache import Store
from .interpreter import Interpreter, wide
from .random_inputs import Maker
from .region import UNKNOWN, Region, region_of
from .sides import NoReplacement, Sides, sides_of
from .small_sizes import Cut, cuts
from .tolerance import TOLERANCE, TRACED, MaxError, max_error

__all__ = ["Prover"]

WORK = 4e9
"""Most multiplications and additions of a run: some seconds of one core in float64."""
ELEMENTS = 2**26
"""Most numbers that may enter a run: half a gigabyte in float64."""
SEED = 8
"""Fixed, so that every rank and every process proves the same sites."""
_INNER = {"linear": "input", "matmul": "input", "baddbmm": "batch1", "sdpa": "key"}
"""For the operations that take long, the operand whose size is the length of their sums."""


class Prover:
    """Proves sites, each distinct one once.

    Args:
        store: proofs from earlier compiles.

    Attributes:
        new: number of distinct sites that were run.
        cached: number of distinct sites whose proof was in the store.
        seconds: time spent in all calls.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[tuple[object, ...], Proof] = {}
        self.new = self.cached = 0
        self.seconds = 0.0

    def __call__(self, view: GraphView, site: Site, rewriter: Pass, kernel: Kernel | None) -> Proof:
        """The proof that a site and its replacement compute the same on random inputs.

        Args:
            view: the graph that contains the site.
            site: as `rewriter` found it.
            rewriter: emits the replacement.
            kernel: the kernel that replaces the site; the body of its op runs. None for a site that is written inline.

        Returns:
            A proof with the status "proved", "failed" or "unproved". An error of either side gives "unproved".

        Raises:
            NoReplacement: the pass fails to emit the replacement.
        """
        start = time.perf_counter()
        try:
            return self._proof(view, site, rewriter, kernel)
        except NoReplacement:
            raise
        except Exception as error:
            return Proof("unproved", note=_line(error))
        finally:
            self.seconds += time.perf_counter() - start

    def timing(self) -> dict[str, Any]:
        """Fields of the report's `Timing`, the only part of a report that differs between equal runs."""
        return {"proof_s": self.seconds, "proofs_new": self.new, "proofs_cached": self.cached}

    def _proof(self, view: GraphView, site: Site, rewriter: Pass, kernel: Kernel | None) -> Proof:
        region = region_of(view, site)
        sources = _sources(type(rewriter), kernel)
        # Without source files, as in a notebook, the objects themselves are the key, and nothing is stored.
        known = (region.digest, sources or (type(rewriter), None if kernel is None else kernel.op))
        if known not in self._seen:
            key = None if sources is None else hashlib.sha256("\n".join((region.digest, sources)).encode()).hexdigest()
            found = None if key is None else self._store.load(key)
            self.cached, self.new = self.cached + (found is not None), self.new + (found is None)
            if found is None:
                found = _prove(region, site, rewriter, kernel)
                if key is not None:
                    self._store.save(key, found)
            self._seen[known] = found
        return self._seen[known]


def _line(error: Exception) -> str:
    return one_line(error, named=not isinstance(error, RewriteError))


def _sources(rewriter: Any, kernel: Kernel | None) -> str | None:
    """What a proof depends on besides the region: torch, the core, the pass and the body of the op; None if one has no file."""
    parts = [_core(), _pass_text(rewriter), "inline" if kernel is None else _op_text(kernel.op)]  # type: ignore[arg-type]
    return None if None in parts else "\n".join([torch.__version__, *map(str, parts)])


@functools.cache
def _core() -> str:
    return files_digest(core_files())


@functools.cache
def _pass_text(rewriter: Any) -> str | None:
    """Name of the class, and digests of its source and that of its base classes; None if one has no file."""
    digests = [source_digest(c) for c in rewriter.__mro__ if c not in Pass.__mro__]
    name = f"{rewriter.__module__}.{rewriter.__qualname__}"
    return None if None in digests else " ".join([name, *map(str, digests)])


@functools.cache
def _op_text(op: Any) -> str | None:
    name = getattr(op, "_name", str(op)).removesuffix(".default")
    definition = torch._library.custom_ops.OPDEFS.get(name)
    digest = source_digest(op if definition is None else definition._init_fn)
    return None if digest is None else f"{name} {digest}"


def _prove(region: Region, site: Site, rewriter: Pass, kernel: Kernel | None) -> Proof:
    """Run both sides, at the smallest sizes first, in float64 first."""
    # Equal results at one size are enough, because results on random float64 inputs do not agree by chance. A difference counts
    # only if it shows at all sizes that can be run. A cut may itself make the sides differ: attention without a scale takes
    # that of its head size, which a scale written in the graph does not follow.
    sides = sides_of(region, site, rewriter, kernel)
    op = None if kernel is None else kernel.op
    problem, failed = "there is nothing to run", None
    for lift in (True, False):
        dtype = "float64" if lift else "traced"
        tolerance = TOLERANCE if lift else TRACED.get(site.dtype, 1e-5)
        for cut in cuts(site, (*sides.original, *sides.replacement), sides.inputs):
            try:
                found = _run_both(sides, cut, lift, op)
            except Exception as error:
                problem = _line(error)
                continue
            if found.error <= tolerance:
                return Proof("proved", dtype=dtype)
            failed = Proof("failed", None if found.note else float(f"{found.error:.2g}"), dtype, found.note)
        if failed is not None:
            return failed
    return Proof("unproved", note=problem)


def _run_both(sides: Sides, cut: Cut, lift: bool, op: Any) -> MaxError:
    """The error of the replacement. Raises if a side cannot be run at these sizes, or if the original computes NaN or inf."""
    if (work := _work(sides, cut)) > WORK:
        raise RewriteError(f"it would take {work:.1e} operations, more than {WORK:.0e}")
    with tracing(None), torch.no_grad(), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        given = _inputs(sides, cut, lift)
        run = Interpreter(cut, lift, op)
        original = run(sides.original, given)
        given.update({n: torch.cat([given[p] for p in parts]) for n, parts in sides.joined.items()})
        replacement = run(sides.replacement, given)
        pairs = [(replacement[b], original[a]) for a, b in zip(sides.expected, sides.made, strict=True)]
        _check_numbers(original, [wanted for _, wanted in pairs])
        return max_error(pairs)


def _check_numbers(original: Mapping[Node, Any], results: Iterable[Tensor]) -> None:
    """Raise RewriteError if the original computes NaN or inf: then the results cannot be compared."""
    # Inner values too: attention may return zeros for a row of NaN.
    bad = next((n for n, v in original.items() if isinstance(v, Tensor) and bool(v.isnan().any())), None)
    if bad is not None or not all(bool(r.isfinite().all()) for r in results):
        raise RewriteError(f"the original computes NaN or inf on random inputs{f' ({bad.name})' if bad else ''}")


def _inputs(sides: Sides, cut: Cut, lift: bool) -> dict[Node, Any]:
    tensors = [v for n in sides.inputs if isinstance(v := value_of(n), Tensor)]
    sizes = [s for t in tensors if t.dtype.is_floating_point for s in cut.shape(t) if s > 1]
    # Below every size, an integer is a valid index for any axis that it may be meant for.
    make = Maker(SEED, min(sizes, default=2))
    given: dict[Node, Any] = {}
    for node in sides.inputs:
        value = value_of(node)
        if isinstance(value, Tensor):
            dtype = wide(value.dtype) if lift else value.dtype
            given[node] = make(value, cut.shape(value), dtype, mask=node is sides.mask)
        elif isinstance(value, (int, float, *SYMBOLS)):  # as traced: passes use a float's traced value and add a guard
            number = hint(value, UNKNOWN)
            given[node] = cut.size(number) if type(number) is int else number
        else:
            raise RewriteError(f"{node.name} is a {type(value).__name__}, for which a proof cannot generate a value")
    return given


def _work(sides: Sides, cut: Cut) -> float:
    """Approximate number of operations in the matrix products of both sides; infinite if too many numbers enter."""
    entering = sum(math.prod(cut.shape(v)) for n in sides.inputs if isinstance(v := value_of(n), Tensor))
    return math.inf if entering > ELEMENTS else 2 * sum(_products(sides.original, cut))


def _products(nodes: Sequence[Node], cut: Cut) -> Iterator[float]:
    for node in nodes:
        fact, value = read(node), value_of(node)
        if not isinstance(value, Tensor):
            continue
        inner = fact.args.get(_INNER.get(fact.op, ""))
        other = value_of(inner) if isinstance(inner, Node) else None
        length = 1 if not isinstance(other, Tensor) else cut.shape(other)[-2 if fact.op == "sdpa" else -1]
        yield 2.0 * math.prod(cut.shape(value)) * length * (2 if fact.op == "sdpa" else 1)
