"""Whether a function of a tensor rotates pairs of channels, and by which factors, from its results on random values.

Not a pass: the search for rotations uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from fluxrewrite.passes.numeric import TOLERANCE, close
from torch import Tensor
from torch.fx import Node

from fluxrewrite.rewrite.proof.probe import Probe

__all__ = ["Factors", "factors_of", "not_proportional"]

FAR = (2.0**40, 2.0**-40)
"""Factors that take values past a clamp or below an epsilon, which random values do not reach; powers of two scale exactly."""
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Factors:
    """out = x * cos + rotate(x) * sin, where rotate gives (-second, first) of each pair.

    Attributes:
        cos, sin: one factor for each element of x, at the sizes of the probe; float64.
        interleaved: pairs are neighbours, else half a head apart.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool


def factors_of(probe: Probe, x: Node, out: Node) -> Factors | tuple[int, str]:
    """The factors by which `out` is x with its pairs rotated; else how many of the tests passed, and what the next one found.

    The number ranks failures, so that the report names the region that comes closest to a rotation.
    """
    given = probe.values[x]
    fn = probe.function(out, x)
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(given.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if fn(a).shape != a.shape or not bool(fn(a).isfinite().all()):
        return 0, "what is computed is not of the shape of the input, or not finite"
    if bool(fn(torch.zeros_like(a)).any()):
        return 1, "zeros do not become zeros"
    if not close(fn(2.0 * a - 3.0 * b), 2.0 * fn(a) - 3.0 * fn(b)):
        return 1, "the result is not linear in the input"
    if not all(close(fn(a * f), fn(a) * f) for f in FAR):
        return 1, "the result is not linear in inputs that are very large or very small"
    problem = _mixed_rows(fn, a)
    return (2, problem) if problem else _pairs(fn, a)


def not_proportional(probe: Probe, x: Node, out: Node, tables: Iterable[Node]) -> str:
    """Why the result is not in proportion to the tables, as that of a rotation is for any tables; "" where it is.

    The factors were seen for one set of tables: a clamp on a table, for one, changes others.
    """
    nodes = tuple(dict.fromkeys(tables))
    fn = probe.function(out, x, *nodes)
    given, values = probe.values[x], [probe.values[n] for n in nodes]
    wanted = fn(given, *values)
    if all(close(fn(given, *(v * f for v in values)), wanted * f) for f in FAR):
        return ""
    return "the result is not in proportion to tables that are very large or very small"


def _mixed_rows(fn: Map, values: Tensor) -> str:
    """Why a row of the result depends on other rows of x; "" where none does.

    The numbers of any two rows differ in some bit. Zeroing the rows with a bit set, then those without, for each bit, thus
    separates every pair of rows in 2 log2(rows) runs instead of one run for each row.
    """
    rows = values.shape[:-1]
    number = torch.arange(rows.numel()).reshape(rows)
    for bit in range(max(1, (rows.numel() - 1).bit_length())):
        for side in (0, 1):
            kept = (number >> bit & 1) == side
            found = fn(torch.where(kept[..., None], values, 0.0))
            stray = found[~kept].abs()
            if stray.numel() and float(stray.max()) > TOLERANCE * float(found.abs().max()):
                return "a row of the result depends on other rows of the input"
    return ""


def _pairs(fn: Map, like: Tensor) -> Factors | tuple[int, str]:
    """The factors, from a run for each channel in which it alone is 1."""
    size = like.shape[-1]
    own, columns = torch.zeros_like(like), torch.zeros(size, size)
    partners = {True: [i ^ 1 for i in range(size)], False: [(i + size // 2) % size for i in range(size)]}
    crossed = {style: torch.zeros_like(like) for style in partners}
    for i in range(size):
        channel = torch.zeros_like(like)
        channel[..., i] = 1.0
        found = fn(channel)
        own[..., i] = found[..., i]
        columns[:, i] = found.abs().reshape(-1, size).amax(0)
        for style, partner in partners.items():
            crossed[style][..., partner[i]] = found[..., partner[i]]
    mixed = columns > TOLERANCE * float(columns.max())
    for style, partner in partners.items():
        allowed = torch.eye(size, dtype=torch.bool)
        allowed[torch.arange(size), partner] = True
        if not bool((mixed & ~allowed).any()) and bool(crossed[style].any()):
            first = torch.tensor([i < p for i, p in enumerate(partner)])
            return Factors(own, torch.where(first, -crossed[style], crossed[style]), style)
    return 3, _describe_mixing(mixed)


def _describe_mixing(mixed: Tensor) -> str:
    for channel, row in enumerate(mixed):
        sources = row.nonzero().flatten().tolist()
        if sources != [channel]:
            listed = ", ".join(map(str, sources[:4])) + (", ..." if len(sources) > 4 else "")
            ways = "neither neighbours nor halves are paired" if len(sources) <= 2 else "more than pairs are mixed"
            return f"channel {channel} is made of channels {listed or 'none'} of {len(mixed)}: {ways}"
    return "no channels are mixed"
